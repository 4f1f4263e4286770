# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.10 to 3.13.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out/demo

export TOKENIZERS_PARALLELISM := false

.PHONY: demo test unit check style soak clean

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,sim,mcap,stereo,ray,viz,serve]'
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
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 8

## the unit suite alone (under 90 s on two cores)
unit: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu and not sim and not soak'

## lint, format and types; changes nothing
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

## mend what `check` can mend
style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## hours of hammering; results belong in docs/log.md
soak: $(READY)
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) out runs
