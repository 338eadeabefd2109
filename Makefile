# The commands for users and developers. `make` alone lists the targets.
# Variables: PYTHON=python3.12 (interpreter of the environment), VENV=folder, PYTEST_WORKERS=processes, PYTEST_ARGS="-k memory",
# TRANSFORMERS="5.17.0 5.24.0" (releases that test-transformers tries), MCORE=0.19.2 (a release of Megatron-Core other than the pinned one,
# in an environment of its own, e.g. make test MCORE=0.19.2)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

MCORE ?=
VENV ?= $(if $(MCORE),.venv-mcore/$(MCORE),.venv)
PYTHON ?=
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
TRANSFORMERS ?= 5.17.0 5.23.0 5.24.0

bin := $(VENV)/bin
pytest := $(bin)/python -m pytest -q -n $(PYTEST_WORKERS) --dist worksteal --durations 15 --durations-min 1
transformers_tests := tests/hf tests/tools/test_generate_text.py
setup_inputs := pyproject.toml constraints.txt tools/setup.sh
shell_scripts = $(shell git ls-files --cached --others --exclude-standard '*.sh' '*.sbatch' .ci/run)

# One thread per process: the processes are the parallelism. No start-up of the compiler, no warnings about missing GPU libraries.
export OMP_NUM_THREADS ?= 1
export TORCHDYNAMO_DISABLE ?= 1
export PYTHONWARNINGS ?= ignore:Transformer Engine and Apex:UserWarning,ignore:Apex is not installed:UserWarning

.PHONY: help setup quickstart test test-all test-transformers test-lm-eval sanitize-kernels lint format bench docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Create the environment (once; keeps a CUDA build of torch that PYTHON already has)

$(VENV)/.ready: $(setup_inputs)
	@PYTHON='$(PYTHON)' MCORE='$(MCORE)' bash tools/setup.sh '$(VENV)' train,hf,eval,deepspeed,test
	@touch $@

$(VENV)/.ready-dev: $(setup_inputs) $(VENV)/.ready
	@PYTHON='$(PYTHON)' MCORE='$(MCORE)' bash tools/setup.sh '$(VENV)' dev
	@touch $@

$(VENV)/.ready-docs: $(setup_inputs) $(VENV)/.ready
	@PYTHON='$(PYTHON)' MCORE='$(MCORE)' bash tools/setup.sh '$(VENV)' docs
	@touch $@

quickstart: setup ## From text to a trained, exported and evaluated model, with a report
	@env -u OMP_NUM_THREADS PYTHON='$(bin)/python' bash examples/quickstart/run.sh

test: setup ## Run all tests except the slow ones (under 15 minutes on 2 cores)
	@$(pytest) -m 'not slow' $(PYTEST_ARGS)

test-all: setup ## Run every test, with new examples for property tests, and the layouts for every CPU instruction set
	@$(pytest) --timeout 1200 --hypothesis-profile explore $(PYTEST_ARGS)
	@capabilities=$$($(bin)/python -m tests.cpu_capabilities); for capability in $$capabilities; do \
	    echo "== layouts with ATEN_CPU_CAPABILITY=$$capability"; \
	    ATEN_CPU_CAPABILITY=$$capability $(pytest) --timeout 1200 -m layouts $(PYTEST_ARGS) || [ $$? -eq 5 ]; done

test-transformers: ## Run the exported model's tests with several releases of Transformers (an environment each)
	@for release in $(TRANSFORMERS); do \
	  PYTHON='$(PYTHON)' TRANSFORMERS=$$release bash tools/setup.sh "$(VENV)-transformers/$$release" hf,test; \
	  echo "== test with transformers $$release"; \
	  "$(VENV)-transformers/$$release/bin/python" -m pytest -q $(transformers_tests) $(PYTEST_ARGS); \
	done

test-lm-eval: ## Run the tests with lm-evaluation-harness (an environment of its own)
	@PYTHON='$(PYTHON)' bash tools/setup.sh '$(VENV)-lm-eval' hf,lm-eval,test
	@'$(VENV)-lm-eval/bin/python' -m pytest -q tests/evaluation/harness $(PYTEST_ARGS)

$(VENV)-sanitizer/.ready: $(setup_inputs)
	@PYTHON='$(PYTHON)' TRITON_VIZ=3.0 bash tools/setup.sh '$(VENV)-sanitizer' ''
	@touch $@

sanitize-kernels: $(VENV)-sanitizer/.ready ## Look for loads and stores outside tensors in the Triton kernels (an environment of its own)
	@TRITON_INTERPRET=1 '$(VENV)-sanitizer/bin/python' -m benchmarks.sanitize_kernels

lint: $(VENV)/.ready-dev ## Check style, types, the import rule, shell scripts and the Dockerfile
	@echo '== ruff' && $(bin)/ruff check .
	@echo '== mypy' && $(bin)/mypy
	@echo '== import-linter' && $(bin)/lint-imports
	@echo '== shellcheck' && $(bin)/shellcheck -x $(shell_scripts)
	@echo '== hadolint' && $(bin)/hadolint Dockerfile

format: $(VENV)/.ready-dev ## Sort imports and fix what ruff can fix
	@$(bin)/ruff check --fix .

bench: setup ## Measure the memory: at the paper's shape and over sizes (4 minutes on a CPU)
	@$(bin)/python -m benchmarks.run memory --grid paper
	@$(bin)/python -m benchmarks.run memory

docs: $(VENV)/.ready-docs ## Regenerate docs/options.md and the table of docs/engines.md, and build the site into site/
	@$(bin)/python -m megatron_fwpkm.config.options_table
	@$(bin)/python -m megatron_fwpkm.config.combinations
	@# With --quiet it would not count the warnings.
	@NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict

clean: ## Remove caches and build products (not the environment, not runs/)
	@rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis ./*.egg-info
	@find . -name __pycache__ -not -path './.venv*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +
