# `make demo` and `make test` set up all they need. The second run of each installs nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
MODEL  := weights/smollm2-135m-instruct

.PHONY: demo test check install
.DEFAULT_GOAL := demo

demo: $(STAMPS)/installed
	$(BIN)/surgery fetch smollm2-135m-instruct --to $(MODEL)
	$(BIN)/surgery run edits/demo.yaml --base $(MODEL) -o out/demo --overwrite

test: $(STAMPS)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest --durations=15

# The quick half of the tests: no real model.
check: $(STAMPS)/installed-test
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -m "not slow and not browser"

install: $(STAMPS)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "surgery needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/installed
