.PHONY: help setup demo test lint types unit test-gpu bench-gpu bench-peers bench-disk bench-sparsity clean
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin

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

demo: setup  ## train the demo frontier and print where the report lies; ARGS="--set train.tokens=300_000" for a part of it
	$(BIN)/jumpahead run studies/demo.toml $(ARGS)
	$(BIN)/jumpahead ask runs/demo --delta-loss 0.2

test: lint types unit  ## lint, types and tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

unit: setup
	$(BIN)/pytest -n 2

test-gpu: setup  ## the GPU's kernels: on a card where there is one, else in Triton's interpreter, and compiled for one
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet 'triton>=3.6'
	TRITON_INTERPRET=$$($(BIN)/python -c 'import torch; print(int(not torch.cuda.is_available()))') $(BIN)/pytest -n 2 tests/gpu tests/engine/test_padding.py tests/test_on_a_card.py

bench-gpu: setup  ## steps of every architecture on the card here; ARGS=--dry-run needs none, ARGS=--help
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-peers: .venv-peers/.done  ## the same work in other SAE libraries; ARGS="--whole-runs", ARGS=--quick, ARGS=--help
	$(PEERS)/python -m benchmarks.peers $(ARGS)

bench-disk: setup  ## activations on disk against plain copying; ARGS=--quick, ARGS=--help
	$(BIN)/python -m benchmarks.disk $(ARGS)

bench-sparsity: setup  ## tuning runs, and the table of requested L0; ARGS=tune, ARGS=requested, ARGS=--help
	$(BIN)/python -m benchmarks.sparsity $(or $(ARGS),tables)

# torchvision, which overcomplete asks for, loads only beside the build of torch that it was made for; where it does not,
# it is taken out again: transformers would import it, and nothing here needs it.
.venv-peers/.done: pyproject.toml constraints.txt benchmarks/peers-requirements.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet uv || true
	if test -x $(PEERS)/uv; then \
	    VIRTUAL_ENV=.venv-peers UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(PEERS)/uv pip install --quiet -c constraints.txt -r benchmarks/peers-requirements.txt -e . \
	    || $(PEERS)/python -m pip install --quiet -c constraints.txt -r benchmarks/peers-requirements.txt -e .; \
	else $(PEERS)/python -m pip install --quiet -c constraints.txt -r benchmarks/peers-requirements.txt -e .; fi
	$(PEERS)/python -c 'import torchvision' 2>/dev/null || $(PEERS)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

clean:  ## remove what the commands above made
	rm -rf .venv .venv-peers runs .pytest_cache .ruff_cache .hypothesis
