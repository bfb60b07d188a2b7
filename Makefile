# What people try first. Everything that is made lies in .venv and in the cache outside the repository
# (~/.cache/lorafinetune, or LORAFINETUNE_CACHE): the pinned Kubernetes programs, built once.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?=
COMPILE := $(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal \
	--python-version 3.11 pyproject.toml
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-unit lint format generate lock programs clean
.PHONY: bench bench-operator bench-trainer bench-simulate bench-deadline bench-eta

help: ## Say what there is to do
	@echo "lorafinetune: fine-tune SDXL LoRAs on interruptible GPUs and never lose work"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## One run on a local cluster, preempted twice, to a verified LoRA (KEEP=1 keeps the cluster up)
	@$(BIN)/python -m localcluster programs
	@$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

test: lint programs ## All that a contributor needs: lint, unit, chart, integration on real servers, end to end
	@$(BIN)/python -m $(if $(TESTS),pytest $(TESTS),tests)

test-long: $(STAMP) programs ## The big matrices of kills and faults that make test leaves out (an hour or so)
	@$(BIN)/python -m pytest -m long $(or $(TESTS),tests)

test-unit: $(STAMP) ## The pure tests only, in about a minute
	@$(BIN)/python -m pytest tests/unit

lint: $(STAMP) ## Format, style, types, walls, generated files
	@echo "== ruff format"; $(BIN)/ruff format --check .
	@echo "== ruff"; $(BIN)/ruff check .
	@echo "== mypy"; $(BIN)/mypy
	@echo "== import-linter"; $(BIN)/lint-imports

format: $(STAMP) ## Put the code into its one form
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: $(STAMP) ## Render crds/ and the chart's copies from api/
	@$(BIN)/python -m lorafinetune.api

programs: $(STAMP) ## Find or build etcd, the Kubernetes programs, versitygw and helm (minutes, once)
	@$(BIN)/python -m localcluster programs

lock: $(STAMP) ## Resolve the dependencies anew and write locks/ with hashes
	@$(COMPILE) --extra operator --extra trainer --extra eight-bit --extra tensorboard --extra dev -o locks/dev.txt
	@$(COMPILE) --extra operator -o locks/operator.txt -c locks/dev.txt
	@$(COMPILE) --extra trainer --extra eight-bit --extra tensorboard -o locks/trainer.txt -c locks/dev.txt

bench-operator: programs ## Measure the operator beside the Job controller, hold it to its limits (SIZES=1,100,1000)
	@mkdir -p build
	@$(BIN)/python -m tests.bench build/bench-operator.json

bench: bench-operator ## The same

bench-trainer: programs ## Measure the trainer; prints a table, writes JSON (REFERENCE=script.py: beside that script)
	@mkdir -p build
	@$(BIN)/python -m tests.bench.trainer build/bench-trainer.json

bench-simulate: $(STAMP) ## 45 days of nine zones and 100 runs through the real engine (TRACES=file.json: measured ones)
	@$(BIN)/python -m tests.bench.simulate $(if $(TRACES),--traces $(TRACES))

bench-eta: programs ## What ETA says of real runs of the tiny model, and what then came to pass
	@$(BIN)/python -m tests.bench.eta

bench-deadline: $(STAMP) ## What deadlines cost: Uniform Progress, ours, foresight (TRACES=file.json: on those traces)
	@TRACES="$(TRACES)" $(BIN)/python -m tests.bench.deadline

clean: ## Remove the virtual environment and what tools left (the cache outside the repository stays)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml locks/dev.txt locks/uv.txt
	@echo "== virtual environment in $(VENV) (a minute or two, once)"
	@$(PYTHON) -c 'import sys; sys.exit("lorafinetune needs Python 3.11 or newer: set PYTHON=...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --require-hashes -r locks/dev.txt
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
