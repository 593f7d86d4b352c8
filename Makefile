# make demo [SERVE=0] | make test [PG=16] | make lint | make bench | make up
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PG ?= 18
SERVE ?= 1
PORT ?= 3000
TESTS ?= crm_analytics_tests

.PHONY: demo test lint bench up help clean
help:
	@echo "make demo          sample data, everything computed, Dagster UI on port $(PORT) (SERVE=0: do not serve)"
	@echo "make test [PG=16]  lint, types and the whole suite on the embedded PostgreSQL"
	@echo "make up            Dagster UI and daemon on your own exports in LANDING_DIR"
	@echo "make bench         speed, as ratios; writes docs/benchmarks.md"

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/crm-analytics demo $(if $(filter 0,$(SERVE)),--no-serve,--port $(PORT))

up: $(VENV)/.installed
	@$(BIN)/crm-analytics up --port $(PORT)

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --nocolor --processes 2 sql

test: lint
	PG=$(PG) $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

bench: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV) .crm_analytics
