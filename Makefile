# `make demo` and `make test` do everything on a fresh machine; the rest is for those who work on aweigh.

VENV := .venv
BIN := $(VENV)/bin
# The first Python on the PATH that is 3.11 or 3.12.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test fast drill docs dist lock clean

demo: $(VENV)/installed
	$(BIN)/aweigh demo

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.phases

# The tests that take seconds, for while you work.
fast: $(VENV)/installed
	$(BIN)/python -m tests.phases light

# Every fault of `aweigh drill --faults`, some 30 minutes; checkpoint-disk-full needs root.
drill: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/aweigh drill

# The site, in site/; nothing is fetched.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A wheel and a source archive, in dist/.
dist: $(VENV)/installed
	$(BIN)/python -m build --no-isolation

$(VENV)/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "aweigh needs Python 3.11 or 3.12; install one, or name it: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 2; }
	@echo "installing the pinned packages into $(VENV), about 2 GB: some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable .
	touch $@

# Pin what requirements.in resolves to; +cpu is cut off so that a GPU machine gets the CUDA build of the same version.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --requirement requirements.in
	{ echo "# Every package of a run, pinned; made from requirements.in by: make lock"; \
	  $(VENV)-lock/bin/python -m pip freeze | sed 's/+cpu//'; } > requirements.txt
	rm -rf $(VENV)-lock

# Runs stay: they hold checkpoints.
clean:
	rm -rf $(VENV) demo drill site dist build
