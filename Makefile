# make demo | make test | make check | make test-slow. See README.md.
#   TORCH=keep      use the torch that $(PYTHON) already has, instead of the tested version
#   PIP_ARGS=…      passed to pip, e.g. PIP_ARGS="--index-url …" for a CPU-only torch
PYTHON ?= python3
TORCH ?= tested
PIP_ARGS ?=
OUT ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false
ifneq ($(wildcard ../shared),)
export ADARANK_SHARED ?= $(abspath ../shared)
endif

.PHONY: demo test test-slow test-gpu check lint types clean

demo: $(READY)
	$(BIN)/python experiments/run.py -m experiment=quickstart method=full,lora,adalora seed=0,1 out=$(OUT) tracker=wandb tracker.mode=offline
	$(BIN)/python analysis/compare.py $(OUT)

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -n 0

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

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
