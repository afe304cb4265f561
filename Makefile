# make help lists what there is. PYTHON=python3.12 chooses another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Models are kept across runs of the tests and of the demo; `make clean` leaves them.
MODELS := $(CURDIR)/.models
MODEL := smollm2-135m
MODEL_FILE := $(MODELS)/SmolLM2-135M-Instruct.Q4_1.gguf

# The demo names PoCL from pip, by its version, so that it runs the same on every machine; where
# that cannot compile for the processor, the best CPU device that works. DEMO_DEVICE=... is another.
DEMO := $(CURDIR)/.demo
DEMO_DEVICE ?=
DEMO_FIRST := PoCL 3.0-rc2:
DEMO_CHOICE = export CLKILN_CACHE_DIR='$(DEMO)'; \
  if $(BIN)/clkiln devices --try --device '$(DEMO_FIRST)' >/dev/null 2>&1; then \
    echo '$(DEMO_FIRST)'; \
  else \
    echo 'PoCL from pip does not work here: the demo takes the best CPU device that does' >&2; \
    $(BIN)/clkiln devices --try >/dev/null; echo cpu; \
  fi
QUESTION ?= What is the capital of France?

# Tests run in as many processes as there are cores, up to four: kernels use every core, too.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet

# PoCL from pip is older than some processors. Where no driver works, one more is installed.
TRY_DRIVERS := $(BIN)/clkiln devices --try >/dev/null 2>&1 || { \
  echo "no OpenCL driver that is here works on this processor: installing Intel's"; \
  $(PIP) -e '.[intel]' || echo "that failed: see clkiln doctor" >&2; }

.DEFAULT_GOAL := help
.PHONY: help install check format test test-long walk model demo clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "clkiln needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }

# What the demo needs, and what the tests need besides.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing clkiln into $(VENV)"
	@$(PIP) -e '.[pocl,report]'
	@$(TRY_DRIVERS)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing clkiln and its development tools into $(VENV)"
	@$(PIP) -e '.[pocl,report,dev]'
	@$(TRY_DRIVERS)
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed-dev ## set up .venv with everything that development needs

# mypy knows a package by its folder's name: the link gives the root the one it has when installed.
check: $(VENV)/.installed-dev ## lint, formatting, types, who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@ln -sfn .. $(VENV)/clkiln
	MYPYPATH=$(VENV) $(BIN)/mypy -p clkiln
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tests that need the model skip without it, so no network is no failure.
model: $(VENV)/.installed-dev ## fetch the model that the tests use
	@test -s '$(MODEL_FILE)' || CLKILN_MODELS_DIR='$(MODELS)' $(BIN)/clkiln pull $(MODEL) || \
	  echo "no model, tests that need one will be skipped: clkiln pull $(MODEL) failed" >&2

test: check model ## everything that CI runs
	CLKILN_TEST_MODEL='$(MODEL_FILE)' $(PYTEST) $(PYTEST_ARGS)

test-long: install model ## the tests that take minutes; RECORD=FILE keeps what came of them
	@$(PIP) -e '.[intel]'
	CLKILN_TEST_MODEL='$(MODEL_FILE)' $(PYTEST) -m long \
	  $(if $(RECORD),-p clk_record --record='$(RECORD)') $(PYTEST_ARGS)

walk: ## follow the README, command by command, in a fresh clone
	$(PYTHON) tests/walk.py

demo: export CLKILN_CACHE_DIR := $(DEMO)
demo: export CLKILN_MODELS_DIR := $(MODELS)
demo: export POCL_CACHE_DIR := $(DEMO)/pocl
demo: $(VENV)/.installed ## tune a small model, ask it a question, report
	@mkdir -p '$(DEMO)/pocl'
	$(if $(DEMO_DEVICE),,$(eval DEMO_DEVICE := $(shell $(DEMO_CHOICE))))
	@echo "The demo's device:" && $(BIN)/clkiln devices --device '$(DEMO_DEVICE)'
	$(BIN)/clkiln pull $(MODEL)
	$(BIN)/clkiln tune $(MODEL) --level fast --device '$(DEMO_DEVICE)'
	$(BIN)/clkiln run $(MODEL) '$(QUESTION)' --temp 0 --device '$(DEMO_DEVICE)'
	@echo "Once more, and this time nothing may be compiled:"
	$(BIN)/clkiln run $(MODEL) '$(QUESTION)' --temp 0 --device '$(DEMO_DEVICE)' --require-cache
	$(BIN)/clkiln report --device '$(DEMO_DEVICE)' --html '$(DEMO)/report.html'
	@echo "Report: $(DEMO)/report.html"

clean: ## remove what was built, tuned and cached here, but not the models
	rm -rf $(VENV) '$(DEMO)' build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
