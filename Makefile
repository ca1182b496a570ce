PYTHON ?= python3
# The newest torch this version was tested with; the package itself asks only for a floor.
TORCH ?= torch<=2.14.1
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-bolts check format

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /	/'

demo: .venv/installed  ## pre-train on generated pictures and measure what was learned, 3 minutes on 2 cores
	$(BIN)/python -m unmask.runtime.quickstart

# One process a core and one thread a process: what the tests compute is too small for more threads.
test: check test-bolts  ## check, then all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-bolts: .bolts/installed  ## test data=imagenet_bolts beside lightning-bolts, in a folder of its own
	PYTHONPATH=.bolts $(BIN)/python -m pytest -m bolts tests/data/sources/test_imagenet_bolts.py

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

# What the extra `bolts` gives, without the old Lightning getting into .venv.
.bolts/installed: .venv/installed-dev
	rm -rf .bolts
	$(BIN)/python -m pip install --quiet --no-deps --target .bolts lightning-bolts==0.7.0 pytorch-lightning==1.9.5
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@
