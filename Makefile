# `make demo` and `make test` need Python 3.11 or newer, make and a C library, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2 --dist loadfile
# Rooms whose tests must run at least 95 % of their lines.
COVERED := fl protocol coordinator manager

# Where it is set, as in many containers, each of the hundreds of processes that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check bench soak clean help

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.runtime ## Install Propeller into .venv

demo: setup ## Train a classifier across three hospitals, and compare
	@$(BIN)/propeller demo

test: $(VENV)/.dev ## Run the tests (COVERAGE=1 also holds the share of lines that they run to its floor)
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(if $(COVERAGE),$(COVERED:%=--cov=propeller.%) --cov-report=)
ifdef COVERAGE
	@for room in $(COVERED); do \
	  share=$$($(BIN)/coverage report --include="src/propeller/$$room/*" --fail-under=95 --format=total) \
	    || { echo "coverage of $$room: $$share % of its lines, at least 95 % are needed" >&2; exit 1; }; \
	  echo "coverage of $$room: $$share %"; \
	done
endif

check: $(VENV)/.dev ## Lint, type-check, and see that imports point downward
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev ## Measure what docs/benchmarks.md lists
	@missed=; for file in benchmarks/[a-z]*.py; do \
	  echo "== $$file"; $(BIN)/python $$file || missed="$$missed $$file"; \
	done; test -z "$$missed" || { echo "a bound was missed in:$$missed" >&2; exit 1; }

soak: $(VENV)/.dev ## Make faults in a running stack for SOAK_MINUTES (10), and check what holds (SOAK_SEED=N as before)
	@cd tests && $(abspath $(BIN))/python -m faults.soak --minutes $(or $(SOAK_MINUTES),10) $(SOAK_SEED:%=--seed %) $(if $(SOAK_KINDS),--kinds "$(SOAK_KINDS)") $(SOAK_DATABASE:%=--database %)

clean: ## Remove the environment and what runs left behind
	rm -rf $(VENV) .propeller .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A marker instead of the interpreter, which exists before pip does: an interrupted run must begin again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11 make $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing Propeller into $(VENV) …"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[build]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what tests need …"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
