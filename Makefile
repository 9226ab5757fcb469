# make demo: fine-tune the small BERT on the embedded data, score, print.   make test: the whole test suite.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint

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

lint: .venv/ready
	$(BIN)/ruff check .
