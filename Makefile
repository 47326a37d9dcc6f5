# Everything a person or a CI starts. Each target works on a fresh machine with Python >= 3.11 and
# make: it creates .venv itself, and again installs what pyproject.toml asks for when that changed.
#
# Knobs: PYTHON=python3.12  PIP_ARGS="--no-index"  JOBS=4  MINUTES=5  ARGS="-k softmax"

MINUTES  ?= 10
COUNT    ?= 10000
SEED     ?= 1
JOBS     ?= 2
ARGS     ?=
PIP_ARGS ?=
VENV     := .venv
PY       := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup speedrun test test-all check format lint types bench golden docs opdb fuzz clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------- the environment
# One stamp per set of extras; a stamp is written only after pip succeeded.

$(VENV)/.stamp-venv:
	@sh tools/find-python.sh "$(PYTHON)" > /dev/null
	"$$(sh tools/find-python.sh "$(PYTHON)")" -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-chat: pyproject.toml $(VENV)/.stamp-venv
	@echo "installing Gossamer and its workbench into $(VENV), about a minute the first time ..."
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[chat]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml $(VENV)/.stamp-venv
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[chat,dev]'
	@touch $@ $(VENV)/.stamp-chat

$(VENV)/.stamp-compare: pyproject.toml $(VENV)/.stamp-venv
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[chat,dev,compare]'
	@touch $@ $(VENV)/.stamp-chat $(VENV)/.stamp-dev

$(VENV)/.stamp-bench: pyproject.toml $(VENV)/.stamp-compare
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[chat,dev,compare,bench]'
	@touch $@

setup: $(VENV)/.stamp-chat  ## create .venv and install Gossamer with its workbench
	@echo "ready: . $(VENV)/bin/activate"

# -------------------------------------------------------------------------------- for users

speedrun: $(VENV)/.stamp-chat  ## train a chat model from nothing in MINUTES (10), then talk to it
	$(PY) -m gossamer speedrun --minutes $(MINUTES) $(ARGS)

# --------------------------------------------------------------------------- for developers

test: $(VENV)/.stamp-compare  ## the default tests (ARGS="-k softmax" to choose)
	$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-all: $(VENV)/.stamp-compare  ## every test, also those marked slow
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "slow or not slow" $(ARGS)

check: lint types  ## lint and types

lint: $(VENV)/.stamp-dev  ## ruff
	$(VENV)/bin/ruff check .

types: $(VENV)/.stamp-dev  ## mypy --strict over the package
	$(VENV)/bin/mypy

format: $(VENV)/.stamp-dev  ## mend what ruff can mend: imports, old syntax, dead code
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/.stamp-bench  ## measure against PyTorch, JAX and tinygrad (ARGS="mlp gpt --quick")
	$(PY) -m benchmarks $(ARGS)

golden: $(VENV)/.stamp-dev  ## rewrite the golden IR of tests/golden from what the compiler prints now
	$(PY) -m pytest tests/test_golden.py --accept-golden $(ARGS)

docs: $(VENV)/.stamp-dev  ## write docs/reference from the tables in the code
	$(PY) tools/reference.py

opdb: $(VENV)/.stamp-compare  ## PyTorch's operator database over Gossamer: passes, fails, exceptions
	$(PY) -m tests.opdb $(ARGS)

fuzz: $(VENV)/.stamp-compare  ## 10,000 random graphs: compiled = uncompiled = NumPy = PyTorch
	$(PY) -m tests.fuzz $(ARGS)

clean:  ## remove .venv and everything generated (not runs/, not the kernel cache of your user)
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
