# Every target sets up what it needs: a .venv with the pinned dependencies, bytecode compiled.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's and Ray's start-up chatter; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Ray's workers are polite (nice 15), and would starve beside the tests that run in the other process.
export RAY_worker_niceness ?= 0
# Where CPUs are few, Ray ends idle workers while others work, and a job's next step imports TensorFlow again.
export RAY_num_workers_soft_limit ?= 6

# Tests run in two processes: most keep less than one core busy, and each process imports TensorFlow once.
PROCESSES ?= 2
PYTEST := $(BIN)/pytest --durations=10 -n $(PROCESSES)
# In another order each time, which is printed with its seed: --random-order-seed=N repeats it.
ANY_ORDER := --random-order

# What `make chaos` takes for S3: ceph, or emulator where Ceph's packages cannot be installed.
S3 ?= ceph
CHAOS_FIGURES := $(CURDIR)/chaos-figures.jsonl
ON_RAY := tests/proof/on_ray

.DEFAULT_GOAL := help
.PHONY: help setup demo unit system test proof thorough quality test-s3 chaos chaos-s3 chaos-on-ray chaos-rest check format lock docs notebook docs-site clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.ready  ## create .venv with the pinned dependencies

$(VENV)/.ready: requirements/dev.txt pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh $(VENV)

demo: setup  ## train, evaluate, publish and reload a model on real handwritten digits, offline
	$(BIN)/transfer demo

unit: setup  ## the tests of one process, in any order: what to run all day
	$(PYTEST) $(ANY_ORDER) -m unit

system: setup  ## the tests with real processes, an S3 service and a Ray cluster
	$(PYTEST) -m system

test: unit system  ## the test suite: unit and system

proof: setup  ## the tests under faults, in short: kills, races, damage, several machines
	$(PYTEST) -m proof

thorough: setup  ## every network of Keras, the benches, and faults that cheaper tests guard, too
	$(PYTEST) -m thorough

quality: setup  ## accuracies on real images, compared with committed ones: does a change make models worse?
	$(BIN)/python -m scripts.bench.accuracy --check

test-s3: setup  ## the tests of storage against a real S3 server (see scripts/s3_server)
	$(PYTEST) -m s3 --s3 ceph

chaos: setup  ## the tests under faults at full length, on a real S3 server (S3=emulator: without), and their figures
	$(if $(filter ceph,$(S3)),bash scripts/s3_server/install.sh)
	rm -f $(CHAOS_FIGURES)
	$(MAKE) --jobs=3 --output-sync=target chaos-s3 chaos-on-ray chaos-rest; \
		ended=$$?; $(BIN)/python -m tests.proof.figures $(CHAOS_FIGURES); exit $$ended

chaos-s3 chaos-on-ray chaos-rest: export TRANSFER_CHAOS = long
chaos-s3 chaos-on-ray chaos-rest: export TRANSFER_CHAOS_FIGURES = $(CHAOS_FIGURES)

chaos-s3: setup
	$(BIN)/pytest -m s3 --s3 $(S3) --timeout=1800 tests/proof --ignore=$(ON_RAY)

chaos-on-ray: setup
	$(BIN)/pytest --s3 $(S3) --timeout=1800 $(ON_RAY)

chaos-rest: setup
	$(BIN)/pytest -m "not s3" --timeout=1800 tests/proof --ignore=$(ON_RAY)

check: setup docs-site  ## lint, format, types, generated files, the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.generate_docs --check

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerate the config reference and the JSON Schema
	$(BIN)/python -m scripts.generate_docs

notebook: setup  ## run docs/notebook.ipynb again
	$(BIN)/python -m scripts.build_notebook

docs-site: setup  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock:  ## resolve the pins again (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --upgrade -q -o requirements/run.txt
	uv pip compile pyproject.toml --extra gpu -c requirements/run.txt --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url -q -o requirements/gpu.txt
	uv pip compile pyproject.toml --group dev -c requirements/run.txt --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url -q -o requirements/dev.txt
	echo uv | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade \
		-q -o requirements/uv.txt

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache demo-output site $(CHAOS_FIGURES)
