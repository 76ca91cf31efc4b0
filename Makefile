# Everything needs only Python >= 3.11 and make; the first target that runs sets up .venv from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

# Processes come and go here by the dozen; without cached bytecode each would compile torch again, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast test-postgresql check bench chaos attack load lock serve clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Where there is no uv it is installed by pip, into a place of its own: the system's Python stays as it is.
.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

demo: $(STAMP)
	$(BIN)/python client/creditgrid/client/examples/demo.py

# Three processes share two cores, because the tests mostly wait. Plain pytest runs in one.
PARALLEL := --numprocesses 3 --no-loadscope-reorder

test: $(STAMP) check
	$(BIN)/python -m pytest $(PARALLEL)

# For the inner loop: no Ray, no service, no PostgreSQL, nothing that takes long.
test-fast: $(STAMP)
	env -u CREDITGRID_TEST_POSTGRES $(BIN)/python -m pytest $(PARALLEL) -rfE -m "not slow"

# make test with a PostgreSQL server, so that no test is skipped. Debian's programs start it.
test-postgresql:
	.ci/postgresql $(MAKE) test

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

# A longer or another run: make chaos CHAOS="--kills 100 --minutes 60 --seed 1"
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos $(CHAOS)

# A longer or another run: make attack ATTACK="--minutes 60 --seed 1"
attack: $(STAMP)
	$(BIN)/python -m tests.attack $(ATTACK)

# The check for leaks: make load LOAD="--rounds 10"
load: $(STAMP)
	$(BIN)/python -m tests.load $(LOAD)

lock: | $(UV)
	$(UV) lock --upgrade --quiet
	$(UV) export --quiet --no-emit-project --all-extras --all-groups --no-header --output-file requirements.txt
	rm -f uv.lock

serve: $(STAMP)
	$(BIN)/creditgrid serve

clean:
	rm -rf $(VENV) .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis
