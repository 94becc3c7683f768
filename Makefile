# Targets for people. Everything runs in .venv, which the first target that needs it makes from
# requirements.lock: only Python 3.11 or newer, make and git have to be there.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_VERSION := uv>=0.13,<0.14

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one or call: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: this Python cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV_VERSION)'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

.PHONY: install
install: $(READY) ## Make .venv with everything in it (done by the other targets too)

.PHONY: test
test: $(READY) ## Run the tests (starts a Redis of its own; under ten minutes)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup $(ARGS)

.PHONY: demo
demo: $(READY) ## From nothing to a prepared task, in under two minutes
	$(BIN)/buttercup demo

.PHONY: bench
bench: $(READY) ## Measure the source engine against tar, tarfile and curl
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-system
bench-system: $(READY) ## Measure the whole product from POST to ready (20 minutes)
	@$(BIN)/python -m benchmarks.system $(ARGS)

FUZZ := .cache/fuzz
.PHONY: fuzz
fuzz: $(READY) ## Fuzz the archive reader for a minute (SECONDS=3600 for longer)
	@mkdir -p $(FUZZ)/found
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(FUZZ)/packages --group fuzz
	PYTHONPATH=$(FUZZ)/packages $(BIN)/python tests/fuzz/fuzz_archive.py \
		-max_total_time=$(or $(SECONDS),60) -artifact_prefix=$(FUZZ)/found/ -print_final_stats=1

.PHONY: check
check: $(READY) ## Lint, check the format and the types, validate the Dagster definitions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/dagster definitions validate -w workspace.yaml

.PHONY: format
format: $(READY) ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: api-models
api-models: $(READY) ## Generate task_api/wire.py from task_api/api/crs-v1.4.0.yaml
	$(BIN)/python -m task_api.api.generate

.PHONY: lock
lock: $(READY) ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml

.PHONY: clean
clean: ## Remove .venv and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
