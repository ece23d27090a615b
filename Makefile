# `make quickstart` trains, evaluates and samples a small model; `make test` checks everything; `make validate` checks checkpoints from end to
# end, the published ones or small ones (see `python -m validation --help` for MODELS). All need Python >= 3.10 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/quickstart

.PHONY: quickstart test validate

quickstart: .venv/installed
	$(BIN)/python main.py $(QUICKSTART) --mode train
	$(BIN)/python main.py $(QUICKSTART) --mode eval
	@echo "Report: runs/quickstart/eval/report.md   Curves: $(BIN)/tensorboard --logdir runs/quickstart/tensorboard"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

validate: .venv/installed
	$(BIN)/python -m validation $(MODELS)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # that of Python 3.10 loses itself among the versions
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@
