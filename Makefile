# Everything sets itself up: `make demo` and `make test` work on a fresh clone with Python >= 3.10.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of this version is enough for the demo and the tests; on a GPU machine pass your own.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench report train clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $(STAMP)

demo: $(STAMP)
	mkdir -p outputs
	$(BIN)/stepvar compare "two yellow stars above a striped blue ring on sand" --seed 7 --pruning best -o outputs/demo.png
	@echo "Open outputs/demo.png: dense, pruned, the kept tokens and the difference."

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/lint-imports
	$(BIN)/mypy

report: $(STAMP)
	mkdir -p outputs
	$(BIN)/stepvar reproduce --quick --output outputs/report
	@echo "Open outputs/report/index.html; without --quick it takes under an hour and is surer."

bench: $(STAMP)
	$(BIN)/stepvar bench

train: $(STAMP)
	$(BIN)/python -m stepvar.training pictures

clean:
	rm -rf $(VENV) build dist outputs .pytest_cache .ruff_cache
