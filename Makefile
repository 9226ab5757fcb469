# make demo: fine-tune the small BERT on the embedded data, score, print.   make test: the whole test suite.
# make figures, make tables: draw every figure, and make every table of the READMEs, again from results/.
# make bench: speed against stock kronfluence. GLUE_DIR and MODEL_DIR: folders with data and a BERT (default: the hub's).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint figures tables bench

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/ready
	$(BIN)/python train.py --dataset_name demo
	$(BIN)/python analyze.py --dataset_name demo --overwrite --self_influence --profile
	$(BIN)/python analyze.py --dataset_name demo --query_index 79 --top_k 4

test: .venv/ready lint
	$(BIN)/python -m pytest

figures: .venv/ready
	$(BIN)/python evaluate_lds.py --dataset_name demo --plot_only
	$(BIN)/python evaluate_lds.py --dataset_name sst2 --plot_only --figure_path figure/lds_sst2.png
	$(BIN)/python run_counterfactual.py --dataset_name demo --plot_only
	$(BIN)/python run_counterfactual.py --dataset_name sst2 --plot_only --figure_path figure/counterfactual_sst2.png

bench: .venv/ready
	$(BIN)/python benchmarks/speed.py $(if $(GLUE_DIR),--dataset_path $(GLUE_DIR)) $(if $(MODEL_DIR),--model_name_or_path $(MODEL_DIR))

tables: .venv/ready
	$(BIN)/python -m attribution.show.pages

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
