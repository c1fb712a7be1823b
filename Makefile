# Two commands do everything on a fresh machine with Python 3.11 or newer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
COMPILED ?= $(VENV)-compiled
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart compiled test solver nightly lint bench tables golden docs site clean

quickstart: $(VENV)/.run
	$(BIN)/simulate scenarios/quickstart.yaml

test: $(VENV)/.dev
	$(MAKE) --no-print-directory -j 2 lint solver
	$(BIN)/pytest -n auto --dist worksteal

# The flow solver is compiled once per machine; without this the tests would begin with it in several processes at once.
solver: $(VENV)/.dev
	$(BIN)/pytest -n 0 tests/network/test_fabric.py -k compiled

# What is compiled is held against the golden digests and whole scenarios; the laws of its parts are those of the source.
nightly: $(VENV)/.dev compiled
	$(BIN)/pytest -m nightly
	$(COMPILED)/bin/python -m pip --quiet install --constraint constraints.txt pytest pytest-xdist hypothesis
	mkdir -p $(COMPILED)/source
	tar xzf $(COMPILED)/wheel/*.tar.gz -C $(COMPILED)/source --strip-components=1 --exclude='*/simulator'
	cd $(COMPILED)/source && ../bin/python -m pytest -n auto tests/golden tests/laws/test_random_scenarios.py tests/test_*_scenarios.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/serving.py --full
	$(BIN)/python benchmarks/network.py
	$(BIN)/python benchmarks/topology.py
	$(BIN)/python benchmarks/dead_links.py
	$(BIN)/python benchmarks/network_studies.py
	$(BIN)/python benchmarks/timeline.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/cost.py

# An environment with the actors compiled. A product and a sum may not be rounded as one (-ffp-contract): figures would
# depend on the processor. From a source distribution, so that no compiled module is left beside its source.
compiled:
	$(PYTHON) -m venv --clear $(COMPILED)
	$(COMPILED)/bin/python -m pip --quiet install --constraint constraints.txt build
	CFLAGS=-ffp-contract=off HATCH_BUILD_HOOKS_ENABLE=true $(COMPILED)/bin/python -m build --outdir $(COMPILED)/wheel .
	$(COMPILED)/bin/python -m pip --quiet install --constraint constraints.txt $(COMPILED)/wheel/*.whl

golden: $(VENV)/.dev
	$(BIN)/python tests/golden/regenerate.py

docs: $(VENV)/.dev
	$(BIN)/python -m simulator.results.dictionary > docs/data-dictionary.md
	$(BIN)/python -m simulator.report.presets docs
	$(BIN)/python -m simulator.report.devices docs
	$(BIN)/python -m simulator.report.models > docs/models.md
	$(BIN)/python -m simulator.report.reference docs/reference
	$(BIN)/simulate schema --out schema/scenario.v1.json
	$(BIN)/simulate schema --sweep --out schema/sweep.v1.json

site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Tables of accuracy need the public data in ../shared/data; figures of speed a quiet machine.
tables: $(VENV)/.dev bench
	$(BIN)/python benchmarks/accuracy.py --docs
	$(BIN)/python benchmarks/accuracy_tables.py
	$(BIN)/python benchmarks/performance_page.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) $(COMPILED) results build dist
