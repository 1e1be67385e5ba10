.PHONY: help setup demo test lint types unit test-faults test-readme test-browser test-triton test-wheel test-gpu test-interop bench-gpu bench-peers bench-disk bench-sparsity bench-quality reference models clean
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin
TRITON := .venv-triton/bin
INTEROP := .venv-interop/bin
WHEEL := build/wheel

# $(call install,ENVIRONMENT,REQUIREMENTS): by uv, which hard-links large packages from its cache; by pip if uv is not there.
install = if test -x $(BIN)/uv && VIRTUAL_ENV=$(1) UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet -c constraints.txt $(2); then :; \
    else $(BIN)/python -m pip --python $(1)/bin/python install --quiet -c constraints.txt $(2); fi

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.done  ## make .venv and install everything into it

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"jumpahead needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv || true
	$(call install,.venv,-e '.[dev]')
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

test-faults: setup  ## kills at every write, damages of every file, forged inputs: about an hour on two cores
	FAULTS=all $(BIN)/pytest -n 2 tests/faults tests/storage tests/study/test_values.py tests/pipeline/test_verify_and_clean.py

test-readme: setup  ## the Python blocks of the README on the demo's run: after make demo
	DEMO=required $(BIN)/pytest tests/test_readme.py

test-browser: setup  ## the pages in headless chromium, which must be there: figures, answers, keyboard, no request, no complaint
	BROWSER=required $(BIN)/pytest tests/report/test_page.py tests/features/test_pages.py tests/features/test_prompt.py

# The GPU's tests have an environment of their own: beside triton, which torch's CPU builds come without, pyright's
# findings in .venv would be others.
test-triton: .venv-triton/.done  ## every GPU kernel in Triton's interpreter, and compiled for a card: needs no card
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(TRITON)/python -m pytest -p tools.every_kernel -n 2 --dist worksteal \
	    tests/gpu tests/test_on_fake_gpu.py -k "not benchmark"

test-gpu: .venv-triton/.done  ## the GPU's kernels: on a card where there is one, else as test-triton
	TRITON_INTERPRET=$$($(TRITON)/python -c 'import torch; print(int(not torch.cuda.is_available()))') $(TRITON)/pytest -n 2 tests/gpu tests/engine/test_supports.py tests/test_on_fake_gpu.py

.venv-triton/.done: .venv/.done
	test -x $(TRITON)/python || $(BIN)/python -m venv --without-pip .venv-triton
	$(call install,.venv-triton,-e '.[dev]' 'triton>=3.6')
	@touch $@

test-wheel: setup  ## the built wheel in an empty environment: its files, its metadata, a small study from the command line
	rm -rf .venv-wheel $(WHEEL)
	if test -x $(BIN)/uv; then $(BIN)/uv build --quiet --out-dir $(WHEEL); else $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .; fi
	if test -x $(BIN)/uv; then $(BIN)/uv tool run --quiet twine check --strict $(WHEEL)/*; else echo "twine check: skipped, uv is not there"; fi
	$(BIN)/python -m venv --without-pip .venv-wheel
	$(call install,.venv-wheel,$(WHEEL)/*.whl)
	.venv-wheel/bin/python -I tools/check_wheel.py $(WHEEL)/*.whl

test-interop: .venv-interop/.done  ## SAEs to and from the other libraries themselves; writes docs/INTEROP.md
	$(INTEROP)/python -m tools.interop

# torchvision: see .venv-peers
.venv-interop/.done: .venv/.done tools/interop-requirements.txt
	test -x $(INTEROP)/python || $(BIN)/python -m venv .venv-interop
	$(call install,.venv-interop,-r tools/interop-requirements.txt -e .)
	$(INTEROP)/python -c 'import torchvision' 2>/dev/null || $(INTEROP)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

bench-gpu: setup  ## steps of every architecture on the card here; ARGS=--dry-run needs none, ARGS=--help
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-peers: .venv-peers/.done  ## the same work in other SAE libraries; ARGS="--whole-runs", ARGS=--quick, ARGS=--help
	$(PEERS)/python -m benchmarks.peers $(ARGS)

bench-disk: setup  ## activations on disk against plain copying; ARGS=--quick, ARGS=--help
	$(BIN)/python -m benchmarks.disk $(ARGS)

bench-sparsity: setup  ## tuning runs, and the table of requested L0; ARGS=tune, ARGS=requested, ARGS=--help
	$(BIN)/python -m benchmarks.sparsity $(or $(ARGS),tables)

bench-quality: .venv-peers/.done  ## SAEs of other libraries and ours at the same data; ARGS=plan, ARGS=--quick, ARGS=--help
	$(PEERS)/python -m benchmarks.quality $(ARGS)

# torchvision, which overcomplete asks for, loads only beside the build of torch that it was made for; where it does not,
# it is taken out again: transformers would import it, and nothing here needs it.
.venv-peers/.done: .venv/.done benchmarks/peers-requirements.txt
	test -x $(PEERS)/python || $(BIN)/python -m venv .venv-peers
	$(call install,.venv-peers,-r benchmarks/peers-requirements.txt -e .)
	$(PEERS)/python -c 'import torchvision' 2>/dev/null || $(PEERS)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

models: setup  ## docs/MODELS.md anew: the sites of every model family of transformers; ARGS="llama bloom" for some
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.models $(ARGS)

reference: setup  ## docs/study-reference.md and its JSON Schema anew, from the field docstrings
	$(BIN)/python -m tools.study_reference

clean:  ## remove what the commands above made
	rm -rf .venv .venv-* build runs .pytest_cache .ruff_cache .hypothesis
