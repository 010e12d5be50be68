# `make demo` and `make test` each set up what they need in .venv and work on their own.
# PYTHON=python3.12 make demo    takes another Python than 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-all check format docs tutorials dist constraints bench clean

# Creating the environment again over a half-made one repairs it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not here. Install Python 3.11, or name another: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) with the versions of constraints.txt. This happens once and takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/plft demo --out demo-run --overwrite

# The models of the tests are so small that threads only get in each other's way.
test test-all: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs-installed: $(VENV)/.installed
	@$(PIP) install --quiet -c constraints.txt -e ".[dev,docs]"
	@touch $@

docs: $(VENV)/.docs-installed
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_commands.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "The first page is build/docs/index.html"

$(VENV)/.tutorials-installed: $(VENV)/.installed
	@$(PIP) install --quiet -c constraints.txt -e ".[dev,tutorials]"
	@touch $@

# PLFT_DATA=folder make tutorials    runs them on published data and writes their pages.
tutorials: $(VENV)/.tutorials-installed
	$(BIN)/python tutorials/build.py

# An sdist, and the wheel that is built from it.
dist:
	$(PYTHON) -m venv build/packaging
	build/packaging/bin/python -m pip install --quiet build
	rm -rf dist && build/packaging/bin/python -m build

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/speed.py

# The newest versions that pyproject.toml allows, found in a fresh environment.
constraints:
	rm -rf build/fresh && $(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet -e ".[dev,docs,tutorials]"
	grep '^#' constraints.txt > build/constraints.txt
	build/fresh/bin/python -m pip freeze --all | grep -v -E '^(#|-e |plft==|pip==)' | sed 's/+[a-z0-9.]*$$//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info demo-run demo-run-*
