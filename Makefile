# make run    a model on this machine writes text
# make test   the environment, then every test, those on real weights included
# make lint   style, types, and the floors of the house
# make bench  the speed benchmarks (needs the dev environment; prints one JSON object last)
# make clean  removes the environment and the caches of the tools (downloaded models stay)

PYTHON ?= python3
TORCH  ?= torch==2.13.0
MODEL  ?= smollm2-135m-instruct
PROMPT ?= Write a short poem about the sea.
# How many test processes; each one computes on a single thread.
JOBS   ?= 2

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A stamp file says what is installed; it lies in the environment, so that removing one removes the other.
TORCH_STAMP := $(VENV)/.installed-$(subst =,-,$(TORCH))

.PHONY: run test lint bench clean help environment pull
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

run: pull
	@echo
	@echo "> $(PROMPT)"
	@echo
	@$(BIN)/polyformer generate $(MODEL) --chat --stream --temperature 0.6 --top-p 0.9 \
	    --repetition-penalty 1.1 --seed 1 --max-new-tokens 96 "$(PROMPT)"

pull: $(VENV)/.installed
	@$(BIN)/polyformer pull $(MODEL)

test: $(VENV)/.installed-dev pull
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGUMENTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev pull
	$(BIN)/python -m benchmarks $(BENCH_ARGUMENTS)

environment: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and alone: the release the tests are run with, whatever else asks for it afterwards.
$(TORCH_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Polyformer needs Python 3.10 or newer; name one with: make PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade "pip>=24.1"
	@echo "Installing $(TORCH) into $(VENV) (a few minutes the first time)"
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(TORCH_STAMP) pyproject.toml
	@echo "Installing Polyformer into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(TORCH_STAMP) pyproject.toml
	@echo "Installing Polyformer and its tests' tools into $(VENV)"
	@$(PIP) --editable '.[dev,plot]'
	@touch $@ $(VENV)/.installed
