PYTHON ?= python3
# The newest torch this version was tested with; the package itself asks only for a floor.
TORCH ?= torch<=2.14.1
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /	/'

demo: .venv/installed  ## pre-train on generated pictures and measure what was learned, 3 minutes on 2 cores
	$(BIN)/python -m unmask.runtime.demo

test: check  ## check, then all tests
	$(BIN)/python -m pytest

check: .venv/installed-dev  ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev  ## rewrite files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@
