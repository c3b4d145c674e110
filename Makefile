# make         print this
# make demo    train the digits on this machine and leave a sample grid
# make test    the test suite
# make check   the linters, and all tests that compile no network
# make lint    the linters of Python and of the shell scripts
# PYTHON picks the interpreter (3.11 to 3.13); VENV the environment's folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
SHELL := /bin/bash
# pip compiles nothing: Python keeps what it imports, also where the shell forbids it to. The suite
# starts many processes, and half of a start would be compiling
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check lint clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.base
	$(BIN)/python -m rin_jax.main --config=configs/digits_modern.py --workdir=$(WORKDIR)
	$(BIN)/python -m rin_jax.main --workdir=$(WORKDIR) --mode=sample

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10

CHECKED := tests/test_imports.py tests/test_configs.py tests/test_experiment.py tests/data \
	tests/diffusion tests/evaluation tests/launch tests/runtime

check: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow" $(CHECKED)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/shellcheck --external-sources launch/*.sh .ci/run

$(VENV)/.base: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[demo]'
	touch $@

$(VENV)/.installed: $(VENV)/.base tests/peers.txt
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement tests/peers.txt
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info
