# Everything a newcomer needs: `make check` and `make test`. Each target makes its own environment in $(VENV) when missing.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
SAMPLE ?= 25

BIN := $(VENV)/bin
ROOMS := core torch_frontend jax_backend proofs
PROGRAMS := $(wildcard tests examples benchmarks)
LINKS := build/types/samebits

.DEFAULT_GOAL := help
.PHONY: help check test thorough lint format docs bench installs matrix findings mutants proofs certificates vectors clean

help:
	@echo "make check    set up, then compare every quantizer in every execution mode (exit code 1 on any difference)"
	@echo "make test     set up, then run the whole test suite"
	@echo "make thorough the tests that take long, of what a quicker one or make check finds too"
	@echo "make lint     formatting, lint, strict types, import contracts"
	@echo "make format   rewrite files in the project's format"
	@echo "make docs     the documentation site in build/site: no broken link, no undocumented public name"
	@echo "make bench    timings beside other libraries"
	@echo "make installs   every extra in a fresh environment: what works in it and what says what is missing (many minutes)"
	@echo "make matrix   tests, check and diverge on other Pythons, on the newest and the oldest releases: docs/versions.md (half an hour)"
	@echo "make findings what other libraries were seen to do on valid input: is it still so? (some minutes)"
	@echo "make mutants  small faults in some modules: do their tests notice? docs/mutants.md (hours; SAMPLE=25 of each module)"
	@echo "make proofs   every quantizer in every mode on all 16-bit inputs: docs/proofs.md (takes about 20 minutes)"
	@echo "make certificates   for every input and scale: integers to 8 bits, binary, ternary, float4, MX scales (half an hour)"
	@echo "make atlas-GROUP  ask the libraries of an environment of their own, GROUP keras, compressed-tensors, gguf, litert, bitsandbytes, mlx, openvino or fixed: docs/atlas.md"
	@echo "make vectors  test vectors of the whole catalog in build/vectors, to be released as they lie there: docs/vectors.md"
	@echo "make clean    remove the environment and everything built"

check: $(VENV)/.installed
	$(BIN)/samebits check

# One file stays in one process, so that its compiled functions are compiled once. In the order of their names: xdist would
# begin with the files of most tests, and end with a long one alone.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Long tests of what a quicker test, or `make check`, finds too.
thorough: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m thorough

lint: $(VENV)/.installed $(LINKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(PROGRAMS)
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed $(LINKS)
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest -q tests/project/test_documentation.py -k reference -m ""

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/fake_quantize.py
	$(BIN)/python benchmarks/fake_quantize.py --keep-memory
	$(BIN)/python benchmarks/qat_step.py
	$(BIN)/python benchmarks/families.py

# Other Python releases that are on this machine: make installs PYTHONS='python3.12 python3.13'
installs: $(VENV)/.installed
	$(BIN)/python tests/project/installs.py --resolve $(PYTHONS)

# One environment or another Python: python -m tests.matrix --help
matrix:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samebits needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m tests.matrix --jobs $(JOBS)

# Each script installs what it states in a folder of its own; its output is shown where it is not what the script states.
findings:
	@bad=0; for script in findings/*.sh; do \
		if output=$$(PYTHON=$(PYTHON) bash $$script 2>&1); then result="as stated"; else result="CHANGED"; bad=1; fi; \
		printf '%-9s | %-46s | %s\n' "$$result" $$script "$$(sed -n 's/^# Finding: //p' $$script)"; \
		if [ "$$result" = CHANGED ]; then printf '%s\n' "$$output"; fi; \
	done; exit $$bad

# The tool has an environment of its own; the tests run in that of `make test`. Other modules or seeds: python -m tests.mutants --help
mutants: $(VENV)/.installed build/mutants/.installed
	build/mutants/venv/bin/python -m tests.mutants --python $(BIN)/python --sample $(SAMPLE)

build/mutants/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/mutants/venv
	build/mutants/venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	touch $@

proofs: $(VENV)/.installed
	$(BIN)/samebits prove --workers $(JOBS) --output docs/proofs.md

# Entries of one elementwise function share their tiles. Interrupted, it goes on from the tiles that are finished.
certificates: $(VENV)/.installed
	$(BIN)/samebits certify `$(BIN)/python -m samebits.proofs.certificates.kept boundary` --output docs/certificates --missing --workers $(JOBS)
	$(BIN)/samebits certify `$(BIN)/python -m samebits.proofs.certificates.kept scales` --engine scales --output docs/certificates --missing --workers $(JOBS)
	$(BIN)/python -m samebits.proofs.certificates.kept docs/certificates

# Libraries that do not live beside the others; their rows of docs/atlas.md anew. What changed: git diff docs/atlas.json
atlas-%: build/atlas/%/.installed
	build/atlas/$*/bin/samebits fingerprint --atlas docs/atlas.md \
		`build/atlas/$*/bin/python -c "from samebits.proofs.conformance.peers import of_extra; print(*of_extra('peers-$*'))"`

build/atlas/%/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/atlas/$*
	build/atlas/$*/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[proofs,peers-$*]'
	touch $@

.PRECIOUS: build/atlas/%/.installed

# Not in git: the same source makes the same bytes. Digests in SHA256SUMS and in each manifest.
vectors: $(VENV)/.installed
	rm -rf build/vectors
	$(BIN)/samebits vectors --all --out build/vectors

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(ROOMS) $(PROGRAMS) -name __pycache__ -type d -prune -exec rm -rf {} +

# The exact versions of constraints.txt are what the promise was tested with.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samebits needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,test,dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[peers]'
	touch $@

# The folders are installed under the name `samebits`; type checkers, which run no import hooks, find them by these links.
$(LINKS):
	mkdir -p $@
	for room in $(ROOMS); do ln -sfn ../../../$$room $@/$$room; done
