# Every target makes and refreshes .venv by itself; nothing needs to be activated. `make` lists the targets.
PYTHON ?= python3
VENV ?= .venv
EXP ?= arithmetic_tiny
ARGS ?=
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# The tests compile many small programs; a cache between runs saves most of that.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install install-dev train eval test test-all lint format bench smoke-real lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(RUN): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sspo_jax needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

$(DEV): $(RUN) requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

install: $(RUN)  ## make .venv with what training needs
install-dev: $(DEV)  ## ... and what the tests need

train: $(RUN)  ## train EXP=arithmetic_tiny, with ARGS="--section.field value"
	@$(BIN)/python -m sspo_jax train $(EXP) $(ARGS)
