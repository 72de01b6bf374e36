# Everything that needs an environment makes it first; a second call starts in seconds.
#   make lab      open the course in JupyterLab            make test     lint, unit tests, every notebook
#   make course   run all notebooks, print a table         make lint     ruff, check only
#   make notebooks  rebuild notebooks from notebooks/src   make checkpoints  train data/checkpoints again
#   make bench    compare with peers, write the table      make book     the course as a web site in build/book
#   make lock     renew constraints.txt
#   make clean    remove the environment
# Variables: PYTHON (interpreter for the environment), EXTRAS, PIP_ARGS (for pip install), LAB_ARGS (for jupyter lab), JOBS.

PYTHON ?= python3
EXTRAS ?= lab,export,hf,book,dev
PIP_ARGS ?=
# Files that are tested, or notebooks that are run, at the same time.
JOBS ?= 2
# Jupyter refuses to run as root, which is who one is in a container.
LAB_ARGS ?= $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root)
VENV := .venv
STAMP := $(VENV)/.installed-$(EXTRAS)
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
RUN := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help env lab test lint course notebooks checkpoints bench book lock clean

help:
	@sed -n '2,8s/^# *//p' Makefile

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('compresslab needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; call make with PYTHON=python3.12, say') if sys.version_info < (3, 11) else None"
	@echo "[1/3] making the environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing compresslab[$(EXTRAS)] (about 2.5 GB with the CPU build of torch; one to three minutes)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[$(EXTRAS)]"
	@echo "[3/3] checking it"
	@$(RUN) -m compresslab.cli doctor --brief
	@rm -f $(VENV)/.installed-*
	@touch "$@"

lab: $(STAMP)
	@echo "opening lesson 00; without a browser on this machine, open the address printed below (stop with Ctrl-C)"
	@$(BIN)/jupyter lab $(LAB_ARGS) notebooks/00_measure_first.ipynb

lint: $(STAMP)
	@echo "ruff: lint and format, check only"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

test: lint
	@echo "pytest: unit tests, then every notebook, cell by cell, against its committed outputs"
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile

course: $(STAMP)
	@$(RUN) -m compresslab.cli course --jobs $(JOBS)

notebooks: $(STAMP)
	@$(RUN) -m compresslab.course.notebooks notebooks/src/*.py

checkpoints: $(STAMP)
	@$(RUN) -m compresslab.workbench.make_checkpoints

book: $(STAMP)
	@rm -rf build/book
	@$(RUN) -m compresslab.course.book build/book

bench: $(STAMP)
	@$(RUN) -m benchmarks

lock:
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv
	@(sed -n '1,2p' constraints.txt; printf 'torch==2.13.0\ntorchvision==0.28.0\n' > .venv-lock/pins.txt; \
	  .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml \
	  --extra lab --extra export --extra hf --extra book --extra dev -c .venv-lock/pins.txt | grep -v -E '^(nvidia|cuda|triton)') > .venv-lock/out.txt
	@mv .venv-lock/out.txt constraints.txt && rm -rf .venv-lock && echo "constraints.txt renewed"

clean:
	@rm -rf $(VENV) && echo "removed $(VENV)"
