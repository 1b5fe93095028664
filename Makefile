# Every target sets up what it needs. A fresh clone needs Python 3.11+ and nothing of CUDA.

PYTHON ?= python3
# The Python of the GPU targets: one that has a CUDA build of PyTorch, which .venv has not.
DEVICE_PYTHON ?= $(PYTHON)
ARCH ?= sm_90a,sm_100a
BUILD_FLAGS ?=
PYTEST_FLAGS ?= -q

VENV := .venv
BIN := $(VENV)/bin
# The wheel would carry the folder's modules under the package's name; this path does the same.
ON_DEVICE := PYTHONPATH=.typing DSV4_AOT_ARTIFACTS=artifacts/build $(DEVICE_PYTHON)

.DEFAULT_GOAL := help
.PHONY: help build test test-device validate bench wheel lint format lock clean

help:  ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | \
	while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done
	@echo "  Variables: PYTHON=$(PYTHON) DEVICE_PYTHON=$(DEVICE_PYTHON) ARCH=$(ARCH)"

build: $(VENV)/.installed-build  ## compile every kernel for ARCH into artifacts/build
	$(BIN)/dsv4-aot build --arch $(ARCH) $(BUILD_FLAGS)

test: $(VENV)/.installed-test  ## tests that need no GPU
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-device:  ## tests on the GPU that is here, of the artifacts that are built
	$(ON_DEVICE) -m pytest $(PYTEST_FLAGS) tests/device

validate:  ## run every case against its reference on this GPU and record the result
	$(ON_DEVICE) -m dsv4_aot.generator.cli validate

bench:  ## time every benchmark case on this GPU
	$(ON_DEVICE) -m dsv4_aot.generator.cli bench

wheel: $(VENV)/.installed-dev build  ## the runtime's wheel and one artifact wheel a target, in dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/dsv4-aot wheel --arch $(ARCH) --out dist

lint: $(VENV)/.installed-dev  ## formatting, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite files to the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(VENV)/.installed-build  ## build, and write artifacts/<target>.lock.json
	$(BIN)/dsv4-aot build --arch $(ARCH) --update-lock

clean:  ## remove the environment and everything built
	rm -rf $(VENV) artifacts/build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The environment --------------------------------------------------------------------------------
# Stamps are touched last, so that an interrupted installation is taken up again.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or later is needed" \
	"(TIP: make PYTHON=python3.12)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	@touch $@

$(VENV)/.installed-build: EXTRAS := build
$(VENV)/.installed-test: EXTRAS := build,test
$(VENV)/.installed-dev: EXTRAS := build,test,dev
$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	--editable '.[$(EXTRAS)]'
	@touch $@
