# make demo: fine-tune the small BERT on support tickets, score, print.   make test: the whole test suite.
# make figures, make tables: draw every figure (but card.png: lab/commands/report.sh), and make every table, again from results/.
# CPU=1: a new .venv gets torch's build for processors, from PyTorch's own index, without the libraries of CUDA.
# make bench: speed against stock kronfluence, into checkpoints/lab. GLUE_DIR and MODEL_DIR: folders with data and a BERT (default: the hub's).
PYTHON ?= python3
BIN := .venv/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# By uv, or by pip where uv or its index cannot be had. uv compiles nothing: the
# first start does, or, with PYTHONDONTWRITEBYTECODE, every start would.
COMPILE = $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
install = $(BIN)/uv pip install --quiet $(COMPILE) --python $(BIN)/python $(1) || { echo "installing with pip, which takes some minutes"; $(PIP) $(1); }

.PHONY: demo test test-search test-processes faults test-oldest lint figures tables bench

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	@$(PIP) uv || true
	$(if $(CPU),$(call install,torch torchvision --index-url $(CPU_INDEX)))
	$(call install,-r requirements.txt)
	touch $@

demo: .venv/ready
	$(BIN)/python train.py --dataset_name tickets --dataset_path demo/tickets.csv --text_columns text \
		--label_column label --validation_split demo/tickets_valid.csv --model_name_or_path demo \
		--learning_rate 1e-3 --num_train_epochs 20 --train_batch_size 16
	$(BIN)/python analyze.py --dataset_name tickets --overwrite
	@echo 'To ask it something yourself:  . .venv/bin/activate && python analyze.py --dataset_name tickets --query_text "I was billed twice."'

test: .venv/ready lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# The same rows and flags are searched as in make test, with other seeds and for longer.
test-search: .venv/ready
	SEARCH_SECONDS=600 $(BIN)/python -m pytest tests/test_search.py

# Two, three and five processes, ten kills, and strategies x flags on a pretended GPU: some minutes.
test-processes: .venv/ready
	LONG_TESTS=1 $(BIN)/python -m pytest tests/test_processes.py tests/test_train_processes.py tests/test_pretended_gpu.py

# 240 trials of what may go wrong, and the longer search: some ten minutes each. Writes results/faults.json and search.json.
faults: .venv/ready
	$(BIN)/python tests/faults/run.py --trials 240 --result results/faults.json
	SEARCH_SECONDS=600 SEARCH_RESULT=results/search.json $(BIN)/python -m pytest tests/test_search.py

# The lowest versions that requirements.txt allows, in an environment of their own.
test-oldest: requirements.txt
	$(PYTHON) -m venv .venv-oldest
	sed -n 's/>=/==/;s/ *#.*//;/^[a-z].*==/p' requirements.txt | grep -v -e ruff -e mypy > .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pytest

figures: .venv/ready
	for task in demo sst2 stsb; do \
		$(BIN)/python evaluate_lds.py --dataset_name $$task --plot_only \
			--results_dir results --figure_path figure/lds_$$task.png || exit 1; \
	done
	$(BIN)/python run_counterfactual.py --dataset_name demo --plot_only \
		--results_dir results --figure_path figure/counterfactual_demo.png
	$(BIN)/python -m lab.predicted --dataset_name demo --plot_only \
		--results_dir results --figure_path figure/predicted_demo.png
	$(BIN)/python -m lab.figures
	cp figure/counterfactual_sst2.png figure/counterfactual.png

bench: .venv/ready
	$(BIN)/python -m lab.speed $(if $(GLUE_DIR),--dataset_path $(GLUE_DIR)) $(if $(MODEL_DIR),--model_name_or_path $(MODEL_DIR))

tables: .venv/ready
	$(BIN)/python -m lab.pages

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
