# make setup | demo | ui | test | check | format | lock      (help: make)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export CONTEXT_OS_HOME ?= $(CURDIR)/.context-os
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.installed
REPO ?= .
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test check format lock

help: ## What there is to make.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Make .venv from the committed lock; does nothing the second time.

$(STAMP): requirements.lock pyproject.toml
	@echo "==> .venv from requirements.lock with $(PYTHON)"
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Context-OS needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	@"$(PYTHON)" -m venv .venv
	@echo "==> installing packages (a minute or two, the first time only)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup ## A repository in, a pack out, on the embedded store: make demo [REPO=path]
	@echo "==> ingesting $(REPO) with every connector, then a pack for its last change (state in $(CONTEXT_OS_HOME))"
	@$(BIN)/context-os demo "$(REPO)"

ui: setup ## The Dagster UI on http://127.0.0.1:3000
	@$(BIN)/context-os ui

check: setup ## Lint, types, import contracts.
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import contracts"
	@$(BIN)/lint-imports

test: check ## Everything: lint, types, import contracts, the suite with a real Weaviate server.
	@echo "==> the code location loads"
	@$(BIN)/dagster definitions validate -w workspace.yaml --log-level warning
	@echo "==> tests (the first run builds the Weaviate server where no binary is had: three minutes)"
	@$(BIN)/python -m pytest -n $(WORKERS)

format: setup ## Format and mend what can be mended.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: setup ## Resolve the dependencies again.
	@$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --extra dev --python-version 3.11 --upgrade \
	  -o requirements.lock pyproject.toml
