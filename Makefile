# Needs Python 3.11+ and make, nothing else. Each target sets the project up first when needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWEEP ?= act
PRESET ?= small
GPU_FIGURES ?= gpu-figures

.PHONY: setup sweep test check bench bench-cluster bench-gpu chaos help

help:
	@echo "make setup   create $(VENV) and install the pinned packages"
	@echo "make sweep   run the ACT sweep (PRESET=smoke|small|full)"
	@echo "make test    run every test"
	@echo "make check   format, lint, types, floors"
	@echo "make chaos   kill sweeps at random moments, resume them, hold them to whole ones (20 minutes)"
	@echo "make bench   speed of the scan, of ACT, of recording, of what is idle, and the quality of the mixers"
	@echo "make bench-gpu   every figure of one GPU, into GPU_FIGURES (under 8 minutes on an H200)"
	@echo "make bench-cluster   a sweep against plain Ray Tune, three times (PRESET=small: 40 minutes)"

setup: $(READY)

# torch comes first and by plain pip, so that the build at hand is taken.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/pip install --quiet --disable-pip-version-check torch
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

sweep: setup
	$(BIN)/bkray sweep $(SWEEP) --preset $(PRESET)

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 20

check: setup
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

bench: setup
	$(BIN)/python -m benchmarks.scan
	$(BIN)/python -m benchmarks.mamba
	$(BIN)/python -m benchmarks.act
	$(BIN)/python -m benchmarks.recording
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.idle
	$(BIN)/python -m benchmarks.frontier

bench-cluster: setup
	$(BIN)/python -m benchmarks.overhead --preset $(PRESET)

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu --out $(GPU_FIGURES)

chaos: setup
	PYTHONPATH=tests $(BIN)/python tests/chaos/storm.py
