# Two commands to know:
#   make demo   make the environment, run the main job on simulated patients, print the report's path
#   make test   make the environment, run every check and test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
WORKERS ?= 2
# modules are compiled when they are imported; most of those installed never are
PIP_ARGS := --quiet --disable-pip-version-check --no-compile
# neighbouring tests stay on one worker, and with them what they share
PYTEST_ARGS ?= -n $(WORKERS) --dist worksteal

.PHONY: help demo test lint format environment wheel-check benchmarks clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3p' Makefile

environment: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

demo: environment
	test -e $(DEMO)/patients/cases.csv || $(BIN)/medpipe data demo $(DEMO)/patients
	$(BIN)/medpipe run head-ct-prepare $(DEMO)/patients/cases.csv $(DEMO)/out --workers $(WORKERS) || test $$? -eq 3
	@echo
	@echo "One of the six patients has a missing slice and is refused: that is the point."
	@echo "Report: $(abspath $(DEMO))/out/index.html"

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS) --nbmake --nbmake-timeout=900 notebooks tests

# What a user gets: the wheel alone, in an environment of its own, away from the checkout.
wheel-check: environment
	sh .ci/wheel_check $(BIN)/python

benchmarks: environment
	$(BIN)/python benchmarks/engine_overhead.py
	$(BIN)/python benchmarks/dicom_readers.py
	$(BIN)/python benchmarks/cli_startup.py

clean:
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
