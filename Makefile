# Two commands do everything from a clean clone:
#   make demo    sets up .venv and runs the quickstart: log -> semantic IDs -> generator -> report
#   make test    sets up .venv and runs the tests
# `make check` formats nothing, it only complains: format, lint, types.

PYTHON := $(shell for p in python3 python3.12 python3.13 python3.14 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1 \
	&& { command -v $$p; break; }; done)
BIN := .venv/bin
SLOTS ?= 2
# Large arrays are kept by the allocator instead of being returned and faulted in again each step.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export MALLOC_TOP_PAD_ ?= 268435456
export MALLOC_ARENA_MAX ?= 1

.PHONY: demo test test-slow test-install test-matrix check format dist gpu-bundle clean

demo: .venv/.demo
	$(BIN)/jaxrec run configs/quickstart.py

test: .venv/.dev
	$(BIN)/python -m pytest -n $(SLOTS) --dist loadfile -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

# The wheel in a fresh environment: minutes, most of them pip's.
test-install: .venv/.dev
	$(BIN)/python -m pytest -m slow tests/test_packaging.py

# Python 3.12 and 3.13 with the lowest and the newest jax; .ci/matrix explains CELLS and TESTS.
test-matrix:
	@.ci/matrix

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The wheel is built from the sdist, so that nothing stale in the checkout gets into it.
dist: .venv/.dev
	rm -rf dist
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')"
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist dist/*.tar.gz

gpu-bundle: .venv/.demo
	$(BIN)/python tpu_scripts/gpu_bundle.py

clean:
	rm -rf .venv .venv-matrix build dist *.egg-info gpu-bundle

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "jaxrec needs Python 3.12 or newer and found none: install one (for example 'apt install python3.12 python3.12-venv', 'brew install python@3.12' or 'uv python install 3.12') and run make again." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[plots]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.demo
