# make demo | test | test-slow | lint | bench: each makes .venv first and reuses it while setup.cfg stays as it is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint bench clean

demo: $(STAMP)
	$(BIN)/fatai-submit demo --out runs/demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -q -m "not slow and not network and not gpu"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow and not network and not gpu"

lint: $(STAMP)
	$(BIN)/python -m flake8 fatai tests examples benchmarks
	$(BIN)/python -m mypy

bench: $(STAMP)
	for f in benchmarks/[a-z]*.py; do $(BIN)/python -m benchmarks.$$(basename $$f .py) || exit 1; done

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
