# Everything that you or CI do with this project. `make` alone prints the help.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Another package index for torch, e.g. one with CUDA builds; empty: pip's configured index.
TORCH_INDEX ?=
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCKS := requirements/light.txt requirements/train.txt requirements/rehearse.txt requirements/test.txt
# Tests run with one thread each, so that results do not depend on the machine's cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE
# Processes that share the tests; 0: all of them in pytest's own, for example for a debugger.
WORKERS ?= 2
# Each worker gets one half of the tests in their order, so a module's fixtures are made once; who
# is done first takes over from the other. With a file as the unit the last long file decides.
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=20
# A test starts many processes that import torch: without compiled modules, each compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup check-python venv install-torch install-dependencies install-app install-light \
        install-train install-all demo lint format test test-gpu test-all lock manifests docs clean

help: ## Print this help
	@echo "cogvx-train: fine-tune CogVideoX on Kubernetes"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(VENV)/.stamp ## Create .venv with everything in it (cogvx, trainer, rehearsal, tests)

$(VENV)/.stamp: $(LOCKS) pyproject.toml | check-python
	@echo "[setup] virtual environment in $(VENV) ($$($(PYTHON) --version))"
	@$(MAKE) --no-print-directory venv install-torch install-all
	@touch $@
	@echo "[setup] done: $(BIN)/cogvx --help"

check-python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found"; \
	  echo "  where: PATH"; echo "  fix:   apt-get install python3 python3-venv make git"; exit 66; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), but 3.11 or 3.12 is needed"; \
	  echo "  where: PATH"; echo "  fix:   make setup PYTHON=/path/to/python3.11"; exit 66; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments"; \
	  echo "  where: its modules venv and ensurepip"; \
	  echo "  fix:   apt-get install python3-venv"; exit 66; }

# The Dockerfile and `make setup` run the same targets.
venv: | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)

install-torch: ## Install the locked torch (TORCH_INDEX names another index)
	$(PIP) install --no-compile --progress-bar on -c requirements/light.txt -c requirements/train.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)

install-light: ## Install the light client (no torch)
	$(PIP) install --no-compile --no-deps -r requirements/light.txt
	$(PIP) install --no-deps .

install-dependencies: ## Install the trainer's dependencies at the locked versions
	$(PIP) install --no-compile --no-deps -r requirements/light.txt -r requirements/train.txt

install-app: ## Install the program itself
	$(PIP) install --no-deps .

install-train: install-dependencies install-app ## Install the trainer, as the image does

install-all: install-train
	$(PIP) install --no-compile --no-deps $(foreach lock,$(LOCKS),-r $(lock))
	$(PIP) install --no-deps -e .

demo: setup ## Run the whole job on this machine: bucket, fine-tune, kill, resume, LoRA, export
	$(BIN)/cogvx demo

lint: setup ## Check style, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Fix what the formatter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## Run the tests with WORKERS=2 processes (under 15 minutes on 2 cores)
	$(PYTEST) -m "not slow"

# Any Python with torch, numpy, safetensors and pytest can run these tests.
GPU_PYTHON ?= $(BIN)/python
test-gpu: ## Run tests/gpu with GPU_PYTHON and write the measurements to benchmarks/results
	$(GPU_PYTHON) -m pytest tests/gpu -o addopts=--import-mode=importlib

test-all: setup ## Run all tests (up to 75 minutes)
	$(PYTEST)

COPIES := deploy/helm/files/configs deploy/kustomize/base/config
manifests: ## Copy configs/ into the chart and the kustomize base
	rm -rf deploy/helm/files/configs && mkdir -p deploy/helm/files/configs
	cp configs/*.yaml deploy/helm/files/configs/
	cp configs/cogvideox_2b_lora.yaml deploy/kustomize/base/config/00-cogvideox_2b_lora.yaml
	cp configs/sft.yaml deploy/kustomize/base/config/01-sft.yaml
	for folder in $(COPIES); do echo '{"$$ref": "../../../../configs/schema.json"}' > $$folder/schema.json; done

docs: setup ## Write the generated pages of docs/ and the JSON schema for editors
	$(BIN)/cogvx config arguments --write docs/configuration.md
	$(BIN)/cogvx config schema configs > configs/schema.json

lock: setup ## Write requirements/*.txt from this environment
	$(BIN)/python requirements/lock.py

clean: ## Remove the environment and the demo's output
	rm -rf $(VENV) build *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
