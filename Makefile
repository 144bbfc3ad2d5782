# make demo | test | test-slow | test-engines | lint | figures | docs | bench | bench-all | fuzz | coverage: each creates .venv first and reuses it while setup.cfg is unchanged.
# make docs executes the notebooks, some minutes the first time; NOTEBOOKS=00_* executes these alone, NOTEBOOKS=none builds the pages without outputs.
# make figures prints how much of the code is documented and how long its functions are.
# make bench writes the summary, in minutes; make bench-all runs the benchmarks that need no data, in hours; make bench-data DATA=FOLDER those that
# train on clips with a known truth. Those of a run,
# of ESC-10 and of a GPU (benchmarks.inference, backends, tagging, ensembles, esc10, few_shot, shapes, label_loop, background, first_answer, competition, gpu) are run one by one; their first lines show how.
# make test-engines starts Ray, Dask and, where there is a JVM, Spark on this machine; elsewhere these tests are skipped.
# make test-oldest runs the tests with the oldest versions that setup.cfg allows, in a separate environment (some GB, so by hand and not in CI).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

OLDEST_VENV ?= .venv-oldest

MEASURES := data front_end loader lsep lwlrap models overhead parts scale threads whole_clips
DATA_MEASURES := augmentation ingredients label_issues noisy precision systems

.PHONY: demo test test-slow test-engines test-oldest lint figures docs bench bench-all bench-data fuzz coverage clean

demo: $(STAMP)
	$(BIN)/fatai-submit demo --out runs/demo

# mypy keeps one core busy for half a minute: the tests run beside it.
test: $(STAMP)
	$(BIN)/python -m ruff check
	@$(BIN)/python -m mypy > $(VENV)/mypy.txt & types=$$!; \
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=20 -m "not slow and not network and not gpu"; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/mypy.txt; exit $$((tests ? tests : types))

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=20 -m "slow and not network and not gpu"

test-engines: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[ray,dask]" pyspark
	$(BIN)/python -m pytest -q -s -m slow tests/experiment/test_engines.py

lint: $(STAMP)
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

figures: $(STAMP)
	$(BIN)/python tests/helpers/code_figures.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check torchlibrosa
	$(BIN)/python -m benchmarks.summary

bench-all: $(STAMP)
	for name in $(MEASURES); do $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-data: $(STAMP)
	test -n "$(DATA)" || { echo "make bench-data DATA=FOLDER: in the competition's layout, with truth/"; exit 2; }
	for name in $(DATA_MEASURES); do $(BIN)/python -m benchmarks.$$name "$(DATA)" || exit 1; done

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz_all.py
	$(BIN)/python -m pytest -q --hypothesis-profile=random -m "not slow and not network and not gpu" $$(grep -rl "from hypothesis" tests --include="test_*.py")

coverage: $(STAMP)
	$(BIN)/python -m coverage run -m pytest -q -m "not network and not gpu"
	$(BIN)/python -m coverage report --skip-covered --fail-under=90

test-oldest:
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(PYTHON) tests/helpers/oldest_versions.py > $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST_VENV)/oldest.txt -e ".[dev]"
	$(OLDEST_VENV)/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow and not network and not gpu"

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist *.egg-info
