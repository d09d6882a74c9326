# Needs Python >= 3.11, a C compiler and make. `make demo` and `make test` set up by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)

.PHONY: setup demo test check
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet uv
	$(UV) pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/mpc-pareto demo

# The fast tier, then the tests that start real party processes or take long.
test: setup
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -m "parties or slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
