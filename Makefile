# Everything a newcomer needs: `make check` and `make test`. Each target makes its own environment in $(VENV) when missing.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
ROOMS := core torch_frontend jax_backend proofs
PROGRAMS := $(wildcard tests examples benchmarks)
LINKS := build/types/samebits

.DEFAULT_GOAL := help
.PHONY: help check test lint format bench proofs certificates clean

help:
	@echo "make check    set up, then compare every quantizer in every execution mode (exit code 1 on any difference)"
	@echo "make test     set up, then run the whole test suite"
	@echo "make lint     formatting, lint, strict types, import contracts"
	@echo "make format   rewrite files in the project's format"
	@echo "make bench    timings beside other libraries"
	@echo "make proofs   every quantizer in every mode on all 16-bit inputs: docs/proofs.md (takes about 20 minutes)"
	@echo "make certificates   for every input and scale: integers to 8 bits, binary, ternary, float4, MX scales (half an hour)"
	@echo "make clean    remove the environment and everything built"

check: $(VENV)/.installed
	$(BIN)/samebits check

# One file stays in one process, so that its compiled functions are compiled once.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.installed $(LINKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(PROGRAMS)
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/fake_quantize.py
	$(BIN)/python benchmarks/fake_quantize.py --keep-memory
	$(BIN)/python benchmarks/qat_step.py
	$(BIN)/python benchmarks/families.py

proofs: $(VENV)/.installed
	$(BIN)/samebits prove --workers $(JOBS) --output docs/proofs.md

# Entries of one elementwise function share their tiles. Interrupted, it goes on from the tiles that are finished.
certificates: $(VENV)/.installed
	$(BIN)/samebits certify `$(BIN)/python -m samebits.proofs.certificates.kept boundary` --output docs/certificates --missing --workers $(JOBS)
	$(BIN)/samebits certify `$(BIN)/python -m samebits.proofs.certificates.kept scales` --engine scales --output docs/certificates --missing --workers $(JOBS)
	$(BIN)/python -m samebits.proofs.certificates.kept docs/certificates

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(ROOMS) $(PROGRAMS) -name __pycache__ -type d -prune -exec rm -rf {} +

# The exact versions of constraints.txt are what the promise was tested with.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samebits needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[peers]'
	touch $@

# The folders are installed under the name `samebits`; type checkers, which run no import hooks, find them by these links.
$(LINKS):
	mkdir -p $@
	for room in $(ROOMS); do ln -sfn ../../../$$room $@/$$room; done
