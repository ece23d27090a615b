# `make quickstart` trains, evaluates and samples a small model; `make demo` draws samples of the models that come with the library; `make test`
# checks everything; `make validate` checks checkpoints from end to end, the published ones or small ones (see `python -m validation --help`
# for MODELS). All need Python >= 3.10 and nothing else. The first two install the core packages alone, without TensorFlow.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/quickstart

.PHONY: quickstart demo test validate

quickstart: .venv/core
	$(BIN)/python main.py $(QUICKSTART) --mode train
	$(BIN)/python main.py $(QUICKSTART) --mode eval
	$(BIN)/python examples/demo.py
	@echo "Report: runs/quickstart/eval/report.md   Curves: $(BIN)/tensorboard --logdir runs/quickstart/tensorboard"

demo: .venv/core
	$(BIN)/python examples/demo.py

test: .venv/all
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

validate: .venv/all
	$(BIN)/python -m validation $(MODELS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # the pip of Python 3.10 takes very long to choose versions

.venv/core: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/all: requirements.txt .venv/core
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@
