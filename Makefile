# Every target makes and refreshes .venv by itself; nothing needs to be activated. `make` lists the targets.
PYTHON ?= python3
VENV ?= .venv
EXP ?= arithmetic_tiny
STUDY ?= ratio_levels
ARGS ?=
DATA ?= aime24,amc23,math500,minerva,olympiadbench
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
# The tests compile many small programs; a cache between runs saves most of that.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install install-dev train warm-start study eval test test-all coverage routes metrics-page docs notebook figures lint format bench bench-peers smoke-real lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(RUN): requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sspo_jax needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some hundred MB, a minute or two"
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

$(DOCS): $(RUN) requirements-docs.txt
	$(BIN)/python -m pip install -q -r requirements-docs.txt
	@touch $@

$(DEV): $(RUN) requirements-dev.txt requirements-docs.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

install: $(RUN)  ## make .venv with what training needs
install-dev: $(DEV)  ## ... and what the tests need

train: $(RUN)  ## train EXP=arithmetic_tiny, with ARGS="--section.field value"
	@$(BIN)/python -m sspo_jax train $(EXP) $(ARGS)

warm-start: $(RUN)  ## train the warm start of EXP anew and compare it with the shipped one
	@$(BIN)/python -m sspo_jax warm-start $(EXP) $(ARGS)

study: $(RUN)  ## run what is missing of STUDY=ratio_levels, with ARGS="--jobs 2", and write its report
	@$(BIN)/python -m sspo_jax study $(STUDY) $(ARGS)

eval: $(RUN)  ## evaluate MODEL=path-or-run, on DATA=aime24,math500 or the run's own sets
	@$(BIN)/python -m sspo_jax evaluate --model $(MODEL) $(if $(DATA),--data $(DATA)) $(ARGS)

test: $(DEV)  ## the fast suite
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not accelerator" $(ARGS)

test-all: $(DEV)  ## with the slow tests, on programs compiled as users get them
	SSPO_TESTS_OPTIMIZED=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not accelerator" $(ARGS)

coverage: $(DEV)  ## the fast suite, and the share of lines it runs in the package
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not accelerator" --cov=sspo_jax --cov-report= $(ARGS)
	@echo "coverage of sspo_jax: $$($(BIN)/python -m coverage report --format=total) %"

routes: $(DEV)  ## the table of docs/architecture.md: how long the routes through the package are
	@$(BIN)/python scripts/routes.py $(ARGS)

metrics-page: $(RUN)  ## docs/metrics.md from the table in the code
	@$(BIN)/python -m sspo_jax.runs.metric_table > docs/metrics.md

# Not with -q, which would keep --strict from counting warnings.
docs: $(DOCS)  ## the documentation as a site, with the API reference, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "site/index.html; with the search: $(BIN)/python -m http.server -b localhost -d site"

notebook: $(DEV)  ## run notebooks/*.ipynb from start to end and keep what they print
	JAX_PLATFORMS=cpu $(BIN)/python -m jupyter execute --inplace $(wildcard notebooks/*.ipynb)

figures: $(DOCS)  ## draw the figures of docs/pictures/ anew
	$(BIN)/python scripts/figures.py

lint: $(DEV)  ## ruff and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(DEV)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix -q . || true
	$(BIN)/ruff format .

bench: $(DEV)  ## speed and memory, one JSON line each
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

bench-peers:  ## environments with Tunix and TRL beside .venv, for `make bench` to compare with
	test -x .venv-tunix/bin/python || $(PYTHON) -m venv .venv-tunix
	.venv-tunix/bin/python -m pip install -q google-tunix==0.1.7
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install -q torch==2.13.0
	.venv-trl/bin/python -m pip install -q trl==1.16.0

smoke-real: $(DEV)  ## the 1.5B experiment end to end at a small size: train, evaluate, export, load elsewhere
	$(BIN)/python tests/smoke_real.py $(ARGS)

lock:  ## renew requirements.txt from pyproject.toml (needs uv)
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --extra all pyproject.toml -o requirements.txt

clean:  ## remove .venv and caches, never runs/
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
