# Every target sets up what it needs: a .venv with the pinned dependencies, bytecode compiled.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's and Ray's start-up chatter; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2

CHAOS_FIGURES := $(CURDIR)/chaos-figures.jsonl

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-local test-cluster test-s3 check format lock docs chaos clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.ready  ## create .venv with the pinned dependencies

$(VENV)/.ready: requirements/dev.txt pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh $(VENV)

demo: setup  ## train, evaluate, publish and reload a model on real handwritten digits, offline
	$(BIN)/transfer demo

test: setup  ## the whole test suite
	$(MAKE) --jobs=2 --output-sync=target test-local test-cluster

# Side by side: most tests of either half keep less than one core busy.
test-local: setup
	$(BIN)/pytest -m "not cluster"

test-cluster: setup
	$(BIN)/pytest -m cluster

test-s3: setup  ## the tests of storage against a real S3 server (see scripts/s3_server)
	$(BIN)/pytest -m s3 --s3 ceph tests/storage tests/dataset tests/registry tests/nightly tests/scripts tests/integration/test_job.py

chaos: setup  ## the tests under faults at full length, and a table of what they counted
	rm -f $(CHAOS_FIGURES)
	TRANSFER_CHAOS=long TRANSFER_CHAOS_FIGURES=$(CHAOS_FIGURES) $(BIN)/pytest --timeout=1800 tests/chaos; \
		ended=$$?; $(BIN)/python -m tests.chaos.figures $(CHAOS_FIGURES); exit $$ended

check: setup  ## lint, format, types, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.generate_docs --check

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerate the config reference and the JSON Schema
	$(BIN)/python -m scripts.generate_docs

lock:  ## resolve the pins again (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --upgrade -q -o requirements/run.txt
	uv pip compile pyproject.toml --extra gpu -c requirements/run.txt --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url -q -o requirements/gpu.txt
	uv pip compile pyproject.toml --group dev -c requirements/run.txt --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url -q -o requirements/dev.txt

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache demo-output $(CHAOS_FIGURES)
