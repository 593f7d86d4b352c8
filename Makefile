# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PG ?= 18
SERVE ?= 1
PORT ?= 3000
TESTS ?= crm_analytics_tests
KILLS ?= 200
TIMES ?= 5

.PHONY: demo test fuzz chaos lint generate bench up help clean
help:
	@echo "make demo          load sample data, compute everything, serve Dagster on port $(PORT) (SERVE=0: don't serve)"
	@echo "make up            serve Dagster with its daemon on your own exports"
	@echo "make test [PG=16]  run lint and all tests on the embedded PostgreSQL (TESTS=path: only these)"
	@echo "make fuzz          run all random tests with a new SEED and TIMES=$(TIMES) as many cases"
	@echo "make chaos         kill loads and refreshes $(KILLS) times, compare with undisturbed ones, write docs/chaos.md"
	@echo "make lint          check format, rules, types and SQL"
	@echo "make generate      write all generated files again"
	@echo "make bench         measure speed and write docs/benchmarks.md"
	@echo "make clean         remove the virtual environment and the state folder with its databases"

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (only once; takes about a minute)"
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
	$(BIN)/sqlfluff lint --nocolor sql
	$(BIN)/python -m crm_analytics_tests.crm.spot

test: lint
	PG=$(PG) $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

# Random tests have fixed seeds in `make test`. A failure here is repeated with the seed that is printed.
fuzz: $(VENV)/.installed
	@seed=$(or $(SEED),$$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')) && again="make fuzz PG=$(PG) TIMES=$(TIMES) SEED=$$seed TESTS=$(TESTS)" && \
	echo "$$again repeats this run" && \
	PG=$(PG) FUZZ_SEED=$$seed FUZZ_TIMES=$(TIMES) $(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-seed=$$seed \
		-m "random or hypothesis" $(TESTS) || { test $$? = 5 && echo "no random test in $(TESTS)" || echo "again: $$again"; exit 1; }

chaos: $(VENV)/.installed
	@PG=$(PG) $(BIN)/python -m crm_analytics_tests.chaos --kills $(KILLS) $(if $(SEED),--seed $(SEED))

# Everything is read from databases made for this purpose, so neither a .env file nor configured databases matter.
# docs/benchmarks.md (make bench), docs/chaos.md (make chaos) and docs/crm-guard-mutation.md (its test) take too long.
generate: $(VENV)/.installed
	@home=$$(mktemp -d) && trap '$(BIN)/crm-analytics stop >/dev/null; rm -rf "$$home"' EXIT && \
	export CRM_ANALYTICS_HOME="$$home" CRM_ANALYTICS_ENV_FILE=/dev/null ANALYTICS_DATABASE_URL= CRM_DATABASE_URL= && \
	$(BIN)/python -m crm_analytics.core.list_objects && \
	$(BIN)/python -m crm_analytics.dashboards.generate && \
	$(BIN)/crm-analytics migrate analytics && \
	$(BIN)/python -m crm_analytics.analytics.warehouse.data_model_doc > "$$home/page" && \
	cp "$$home/page" docs/data-model.md && \
	$(BIN)/crm-analytics crm manifest && \
	$(BIN)/crm-analytics crm reference

bench: $(VENV)/.installed
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV) .crm_analytics
