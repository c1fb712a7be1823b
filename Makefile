# Two commands do everything on a fresh machine with Python 3.11 or newer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart test nightly lint bench tables golden docs site clean

quickstart: $(VENV)/.run
	$(BIN)/simulate scenarios/quickstart.yaml

test: $(VENV)/.dev lint
	$(BIN)/pytest -n auto

nightly: $(VENV)/.dev
	$(BIN)/pytest -m nightly

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/serving.py --full
	$(BIN)/python benchmarks/network.py
	$(BIN)/python benchmarks/topology.py
	$(BIN)/python benchmarks/network_studies.py
	$(BIN)/python benchmarks/timeline.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/cost.py

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

# Contraction of a product and a sum into one rounding would make figures depend on the processor.
compiled: $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt build
	rm -rf build/compiled
	CFLAGS=-ffp-contract=off HATCH_BUILD_HOOKS_ENABLE=true $(BIN)/python -m build --outdir build/compiled .
	$(PIP) install --constraint constraints.txt --force-reinstall --no-deps build/compiled/*.whl

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) results build dist
