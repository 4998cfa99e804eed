# The front desk: `make` lists what can be asked for. Everything runs from the committed lock, in .venv.

PYTHON ?= python3
# Files of tests that run at once.
WORKERS ?= 3
UV_VERSION := 0.13.8
UV := .venv-tools/bin/uv
BIN := .venv/bin
STAMP := .venv/.locked

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint soak bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make .venv from uv.lock

demo: $(STAMP) ## train a real model under a private runner
	@examples/digits/demo.sh

test: lint ## lint, then every test, a tenth of the long counts
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(STAMP) ## the fault tests at their full counts, recorded in docs/soak.md
	STOKER_SOAK=1 $(BIN)/python -m pytest tests/faults --timeout 7200 -s

bench: $(STAMP) ## measure beside the peers, recorded in docs/speed.md and docs/speed-storage.md
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.storage

lock: $(UV) ## resolve the dependencies anew
	$(UV) lock

clean: ## remove all that make made; runners and their state stay
	rm -rf .venv .venv-tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +

$(UV): Makefile
	$(PYTHON) -m venv --clear .venv-tools
	.venv-tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(STAMP): uv.lock pyproject.toml $(UV)
	UV_PYTHON_DOWNLOADS=never $(UV) sync --frozen --compile-bytecode --python $(PYTHON)
	@touch $@
