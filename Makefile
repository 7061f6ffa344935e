# Each target does its own set-up in $(VENV); a second call starts at once.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

export TORCH_INDEX
export PIP_DISABLE_PIP_VERSION_CHECK = 1

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip -qq
# editable, so that the kernels are built in place and edits to Python need no second install
INSTALL := $(PIP) install --no-build-isolation -c constraints.txt -e
KERNEL_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h)
PACKAGING := setup.py pyproject.toml constraints.txt stein_kernels/_build.py

.DEFAULT_GOAL := help
.PHONY: help train test lint bench install clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo
	@echo "PYTHON=python3.12   the interpreter of a new environment"
	@echo "TORCH_INDEX=URL     the package index to take torch from (see pytorch.org, Get started)"
	@echo "ARGS='...'          what train passes on to python -m steinvae.train"

train: $(VENV)/.train  ## train a Stein VAE on the 8x8 digits, offline
	@$(RUN) -m steinvae.train $(ARGS)

# Triton's interpreter replaces its compiler for a whole process: its tests have one, beside the rest.
test: lint  ## ruff, pyright, then every test
	@TRITON_INTERPRET=1 $(RUN) -m pytest tests/interpret >$(VENV)/interpret.log 2>&1 & beside=$$!; \
	$(RUN) -m pytest; status=$$?; \
	wait $$beside || status=1; cat $(VENV)/interpret.log; exit $$status

lint: $(VENV)/.develop  ## ruff and pyright
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m pyright --pythonpath $(RUN)

bench: $(VENV)/.bench  ## measure the kernels against naive torch, torch.compile and KeOps
	@$(RUN) -m pytest bench --benchmark-only
	@$(RUN) -m bench.report

install: $(VENV)/.train  ## the environment alone

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info stein_kernels/*.so

# --- environment: torch first and by its pin, so that nothing else decides which torch comes ------

# Debian without python3-venv has no ensurepip: there the outer pip installs pip.
$(VENV)/.torch: constraints.txt .ci/install_torch.py
	@echo "installing torch into $(VENV)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	      $(PYTHON) -m pip -qq --python $(RUN) install pip; }
	@$(RUN) .ci/install_torch.py
	@$(PIP) install "setuptools>=77" wheel ninja
	@touch $@

$(VENV)/.train: $(VENV)/.torch $(PACKAGING) $(KERNEL_SOURCES)
	@echo "installing stein-kernels and what training needs; building the C++ kernels"
	@$(INSTALL) ".[train]"
	@touch $@

# The kernels are built by then, in place: "none" adds the packages and leaves them.
$(VENV)/.develop: $(VENV)/.train
	@echo "installing what the tests need"
	@STEIN_KERNELS_BUILD=none $(INSTALL) ".[train,dev,triton]"
	@touch $@

$(VENV)/.bench: $(VENV)/.train
	@echo "installing what the benchmarks need"
	@STEIN_KERNELS_BUILD=none $(INSTALL) ".[train,bench,keops]"
	@touch $@
