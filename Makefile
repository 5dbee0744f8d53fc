# make quickstart    trains, judges and exports a tiny model on the embedded corpus
# make test          style checks and tests
# make test-slow     the tests that start many processes: runs killed and resumed, wrong command lines
# Variables: PYTHON=python3.12 (which Python .venv is made of), ARGS="..." (passed on at the end).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-slow clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m empathy_jax.main --config=configs/quickstart.py --workdir=runs/quickstart $(ARGS)

# A test file stays on one worker, so that what it compiles and builds is built once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(ARGS)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build *.egg-info

# The stamps are older than these two files whenever an installation is due.
$(VENV)/.installed: setup.py constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV): 3.6 GB, about 4 minutes."
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-test: setup.py constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV), with what the tests need: 4.5 GB, about 5 minutes."
	$(PIP_INSTALL) -e '.[test]'
	touch $(VENV)/.installed $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "error: Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
