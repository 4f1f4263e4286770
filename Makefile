# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.10 to 3.13.
# The first that runs: a version manager's name for a Python that it has not chosen is there, and does not.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
  $$python -c '' 2> /dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out/demo

export TOKENIZERS_PARALLELISM := false
# Where it is set, every process that a test starts compiles the package again: a third of the suite's time.
unexport PYTHONDONTWRITEBYTECODE

EXTRAS := dev,docs,sim,mcap,stereo,ray,viz,serve
# Two processes, a file's tests in one of them, files in the order in which they are collected.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
UNIT := -m pytest $(TWO) -m 'not slow and not gpu and not sim and not soak'

.PHONY: demo test unit test-lowest test-pythons check style docs mutants bench-quick soak clean

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@# openpi's own client, for its test; its package asks for numpy below 2, its code does not.
	@$(BIN)/python -m pip install --quiet --no-deps 'openpi-client==0.1.2' || echo 'no openpi-client: its test will skip'
	@touch $@

## the main job on the bundled recordings: shards, a run, a bundle, pictures, numbers
demo: $(READY)
	$(BIN)/xwam-ft demo --out $(OUT)

# Two test processes share the cores; threads inside each would only wait for the other's (ten times slower exports).
test unit: export OMP_NUM_THREADS := 1

## every test this machine can run; two processes, as long ones would otherwise wait for each other
test: $(READY)
	$(BIN)/python -m pytest $(TWO) --durations 8

## the unit suite alone (under 90 s on two cores)
unit: $(READY)
	$(BIN)/python $(UNIT)

## the unit suite with the lowest version of every dependency that pyproject.toml allows; needs the network
test-lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip uv
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[$(EXTRAS)]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(UNIT)

## the unit suite on every Python that pyproject.toml allows and this machine has; says which it has not
test-pythons:
	@for version in 3.10 3.11 3.12 3.13; do \
	  if ! python$$version -c '' 2> /dev/null; then echo "python$$version: not on this machine, not tried"; continue; fi; \
	  python$$version -m venv --clear .venv-$$version && \
	  .venv-$$version/bin/python -m pip install --quiet --upgrade pip && \
	  .venv-$$version/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]' && \
	  OMP_NUM_THREADS=1 .venv-$$version/bin/python $(UNIT) || exit 1; \
	  echo "python$$version: passed"; \
	done

## lint, format and types; changes nothing
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

## mend what `check` can mend
style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## the documentation as a site: site/index.html, which opens from disk and asks no network
docs: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site/index.html"

## what tests do not see: single mutations of the rooms that move a robot, in copies; prints the survivors
mutants: $(READY)
	$(BIN)/python benchmarks/mutants.py

## the benchmarks in their small forms: every ratio, and the command that gives it
bench-quick: export OMP_NUM_THREADS := 1
bench-quick: $(READY)
	$(BIN)/python benchmarks/quick.py

## hours of hammering; results belong in docs/log.md
soak: $(READY)
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) .venv-lowest .venv-3.* out runs site
