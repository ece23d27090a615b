# make quickstart   train and evaluate a small model, then draw the demo picture
# make demo         draw samples of the pretrained models to runs/demo.png
# make test         lint and run all tests
# make test-fast    lint and run the tests that are not slow and do not need TensorFlow
# make durations    measure all tests and write those slower than ABOVE seconds to tests/tiers.txt
# make coverage     run all tests and print the share of lines and branches that they cover
# make docs         build the documentation site in runs/site
# make validate     validate the checkpoints MODELS from end to end (see python -m validation --help)
#
# All need only Python >= 3.10. The first two install only the core packages, without TensorFlow.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/quickstart

PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
ABOVE ?= 2.5

.PHONY: quickstart demo test test-fast durations coverage docs validate

quickstart: .venv/core
	$(BIN)/python main.py $(QUICKSTART) --mode train
	$(BIN)/python main.py $(QUICKSTART) --mode eval
	$(BIN)/python examples/demo.py
	@echo "Report: runs/quickstart/eval/report.md   Curves: $(BIN)/tensorboard --logdir runs/quickstart/tensorboard"

demo: .venv/core
	$(BIN)/python examples/demo.py

test: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

test-fast: .venv/all
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow and not tensorflow" --limit 5

durations: .venv/all
	$(BIN)/python tests/tiers.py --write --above $(ABOVE) --numprocesses logical --maxprocesses 8 --dist worksteal

coverage: .venv/all
	$(PYTEST) --cov --cov-report=term

docs: .venv/all
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

validate: .venv/all
	$(BIN)/python -m validation $(MODELS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is required: pass it as PYTHON=/path/to/python")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # the pip of Python 3.10 resolves versions very slowly

.venv/core: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/all: requirements.txt .venv/core
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@
