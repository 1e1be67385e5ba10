.PHONY: help setup demo test lint types unit clean
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.done  ## make .venv and install everything into it

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"jumpahead needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv || true
	if test -x $(BIN)/uv; then \
	    VIRTUAL_ENV=.venv UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]' \
	    || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; fi
	@touch $@

demo: setup  ## train the demo frontier and print where the report lies
	$(BIN)/jumpahead run studies/demo.toml
	$(BIN)/jumpahead ask runs/demo --delta-loss 0.2

test: lint types unit  ## lint, types and tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

unit: setup
	$(BIN)/pytest -n 2

clean:  ## remove what the commands above made
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis
