# `make` lists the targets. Settings of every target that needs an environment:
#   TORCH=keep      use the torch that $(PYTHON) already has, instead of the tested version
#   PIP_ARGS=…      passed to pip, e.g. PIP_ARGS="--index-url …" for a CPU-only torch
PYTHON ?= python3
TORCH ?= tested
PIP_ARGS ?=
OUT ?= runs/demo
NAME ?= mine
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false
unexport PYTHONDONTWRITEBYTECODE  # containers set it; the tests start dozens of processes, each of which would compile everything
ifneq ($(wildcard ../shared),)
export ADARANK_SHARED ?= $(abspath ../shared)
endif

.PHONY: help demo test test-slow test-gpu support docs check lint types clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(READY)  ## Train full fine-tuning, LoRA and AdaLoRA on MiniLM-L6 and sentence polarity, two seeds, and report.
	@echo "This trains MiniLM-L6 (22.7 million parameters) to tell positive from negative film reviews in three ways: all its"
	@echo "parameters, LoRA of rank 8, and AdaLoRA, which starts at rank 12 and keeps 8 on average where they matter most."
	@echo "Two seeds each make 6 runs of 100 steps: about six minutes on two free cores. Runs that are finished in $(OUT) are"
	@echo "skipped; Ctrl-C stops, and the same command resumes. The report follows."
	@echo
	@$(BIN)/python experiments/run.py -m hydra/launcher=cores experiment=quickstart method=full,lora,adalora seed=0,1 out=$(OUT) tracker=wandb tracker.mode=offline
	@echo
	@$(BIN)/python analysis/compare.py $(OUT)

test: $(READY)  ## Run the default tests: every contract with one case or a few, in about five minutes on two cores.
	$(BIN)/python -m pytest

test-slow: $(READY)  ## Run the tests marked slow: all further cases, kills, several processes, and all examples of property tests.
	$(BIN)/python -m pytest -m slow --hypothesis-profile=full

test-gpu: $(READY)  ## Run the tests that need a GPU.
	$(BIN)/python -m pytest -m gpu -n 0

support: $(READY)  ## Run the tests of docs/support.md in this environment: make support NAME=constraints
	$(BIN)/python experiments/support.py $(NAME)

docs: $(READY)  ## Build the documentation as a site, site/index.html, with strict links.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(READY)  ## Check the code with ruff, and its format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check the types with mypy.
	$(BIN)/mypy

check: lint types test  ## Run lint, types and test: the gate for changes.

clean:  ## Delete the environment, runs/, site/ and the caches.
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
ifeq ($(TORCH),keep)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || { rm -rf $(VENV); \
	  echo "TORCH=keep: $(PYTHON) has no torch that a new environment can see; leave TORCH out, or name a PYTHON that has it" >&2; exit 2; }
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
else
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
endif
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c $(VENV)/constraints.txt -e '.[embedded,dev]'
	touch $@
