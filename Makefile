# Two commands do everything on a fresh machine with Python 3.11 or newer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart test nightly lint bench golden docs clean

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
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/network.py
	$(BIN)/python benchmarks/topology.py
	$(BIN)/python benchmarks/network_studies.py
	$(BIN)/python benchmarks/timeline.py
	$(BIN)/python benchmarks/report.py

golden: $(VENV)/.dev
	$(BIN)/python tests/golden/regenerate.py

docs: $(VENV)/.dev
	$(BIN)/python -m simulator.results.dictionary > docs/data-dictionary.md
	$(BIN)/python -m simulator.report.presets docs
	$(BIN)/python -m simulator.report.devices docs
	$(BIN)/python -m simulator.report.models > docs/models.md
	$(BIN)/simulate schema --out schema/scenario.v1.json

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
