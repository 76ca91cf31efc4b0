# Everything needs only Python >= 3.11 and make; the first target that runs sets up .venv from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check bench lock serve clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@command -v uv >/dev/null 2>&1 || $(PYTHON) -m uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet --user uv || $(PYTHON) -m pip install --quiet uv
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# uv as a command where there is one, else as a module of $(PYTHON); looked up when used, since setup may install it.
UV = $(shell command -v uv 2>/dev/null || echo $(PYTHON) -m uv)

demo: $(STAMP)
	$(BIN)/python client/creditgrid/client/examples/demo.py

test: $(STAMP) check
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

lock:
	uv lock --upgrade --quiet
	uv export --quiet --no-emit-project --all-extras --all-groups --no-header --output-file requirements.txt
	rm -f uv.lock

serve: $(STAMP)
	$(BIN)/creditgrid serve

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
