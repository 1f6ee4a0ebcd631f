# SPDX-License-Identifier: Apache-2.0
# pyvattn's commands. `make demo` and `make test` set themselves up in .venv: nothing
# needs to be activated or installed by hand beyond Python >= 3.10, g++ and make.
#
#   make PYTHON=python3.12 test      another Python for .venv (run `make clean-env` first)
#   make test PYTEST_ARGS='-k pool'  anything pytest takes

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := PYTHON=$(PYTHON) scripts/setup_env.sh
PYTEST_ARGS ?=
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))

CXX_SOURCES := $(shell find uvm_ext driver_patch/uapi -name '*.[ch]pp' -o -name '*.[ch]' -o -name '*.inc' -o -name '*.map' -o -name CMakeLists.txt)

.PHONY: help
help: ## Show this list
	@echo "pyvattn: a KV cache that is contiguous in virtual memory and paged in physical memory"
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' \
	  | awk -F'\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'

# ---- set-up: each stamp is one step, redone only when what it depends on changed ----

$(VENV)/.tools: scripts/setup_env.sh constraints.txt pyproject.toml
	@$(SETUP) tools

$(VENV)/.build: $(VENV)/.tools $(CXX_SOURCES)
	@$(SETUP) build

$(VENV)/.test: $(VENV)/.tools
	@$(SETUP) test

$(VENV)/.demo: $(VENV)/.tools
	@$(SETUP) demo

$(VENV)/.docs: $(VENV)/.tools
	@$(SETUP) docs

.PHONY: build env
build: $(VENV)/.build ## Build the C++ core and install the package, editable, in .venv
env: $(VENV)/.build $(VENV)/.test $(VENV)/.demo ## Install everything that development needs

# ---- what people run ----

.PHONY: demo test
demo: $(VENV)/.demo $(VENV)/.build ## Serve 24 prompts with a real language model out of one KV cache (CPU)
	@$(BIN)/pyvattn demo

test: $(VENV)/.test $(VENV)/.build ## Run every test that this machine can run
	@$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)
	@$(if $(PYTEST_ARGS),,JOBS=$(JOBS) scripts/test_cxx.sh)

.PHONY: test-transformers-newest
test-transformers-newest: $(VENV)/.test $(VENV)/.build ## Run tests/integrations against the newest release of transformers
	@scripts/test_newest_transformers.sh -n $(JOBS) $(PYTEST_ARGS)

.venv-vllm/.done: scripts/setup_vllm.sh scripts/vllm_constraints.txt | $(VENV)/.test
	@scripts/setup_vllm.sh

.PHONY: test-vllm
test-vllm: .venv-vllm/.done $(VENV)/.build ## Run tests/vllm_plugin with real vLLM for a CPU, in an environment of its own
	@scripts/check_vllm_newest.sh
	@OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W default tests/vllm_plugin $(PYTEST_ARGS)

.PHONY: test-peers
test-peers: $(VENV)/.test $(VENV)/.build ## Run the tests that transformers brings, with our cache
	@scripts/fetch_peers.sh
	@$(BIN)/python -m pytest -n 2 tests/peers $(PYTEST_ARGS)

# ---- checks ----

# Warnings are errors, and a link that leads nowhere is a warning: see mkdocs.yml.
.PHONY: docs
docs: $(VENV)/.docs ## Build the documentation site into build/site
	@NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build
	@echo build/site/index.html

.PHONY: lint format sanitize model-check wheel wheel-check wheels stubs results
lint: $(VENV)/.test $(VENV)/.build ## Check style, types, layers and locks: ruff, mypy --strict, clang-format, clang
	@scripts/lint.sh check

format: $(VENV)/.test ## Rewrite the sources in the project's style
	@scripts/lint.sh fix

sanitize: $(VENV)/.tools ## Run the C++ tests under ASan + UBSan, then under TSan
	@scripts/sanitize.sh address,undefined
	@scripts/sanitize.sh thread

model-check: ## Check the protocol of shared memory with spin (MODEL_ARGS=--thorough: minutes)
	@$(PYTHON) uvm_ext/ledger/model/run.py $(MODEL_ARGS)

wheel: $(VENV)/.tools ## Build the wheel into dist/
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

wheel-check: wheel ## Install the wheel alone in a new environment and use it there
	@scripts/check_wheel.sh dist/*.whl

# Needs neither .venv nor a compiler: Pythons with headers, and packages.
wheels: ## Build the sdist and a manylinux wheel for each CPython (WHEEL_PYTHONS=…), and use each
	@$(PYTHON) scripts/build_wheels.py --arch '$(or $(WHEEL_ARCH),x86_64)' $(WHEEL_PYTHONS)

results: $(VENV)/.demo ## Write README's tables and the plots from the JSON in docs/results/
	@$(BIN)/python scripts/update_results.py
	@$(BIN)/python scripts/plot_results.py

stubs: $(VENV)/.test $(VENV)/.build ## Regenerate pyvattn/_native.pyi from the built module
	@$(BIN)/python scripts/generate_stubs.py

# ---- cleaning ----

.PHONY: clean clean-env
clean: ## Remove build products and caches
	@rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.build

clean-env: ## Remove .venv and .venv-vllm, to set up anew
	@rm -rf $(VENV) .venv-vllm

# The driver patch brings its own targets.
-include driver_patch/driver.mk
-include driver_patch/vm/vm.mk
-include driver_patch/install/install.mk
