# Every target makes what it needs first: a virtual environment with the pinned, hashed packages. The pinned set is
# complete, so pip resolves nothing (--no-deps).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
CELLS  ?=

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true
export BENTOML_DO_NOT_TRACK := True
export DVC_NO_ANALYTICS := 1

.PHONY: help install demo up test lint bench lock clean

help:
	@echo "make demo [CELLS=DIR]  the whole chain: train, register, promote, serve, predict, watch"
	@echo "make up                start the registry, the service, the monitor and the dashboards"
	@echo "make test              every test (the first call installs)"
	@echo "make lint              ruff and mypy --strict"
	@echo "make bench             the benchmarks, each a ratio in one run"
	@echo "make lock              resolve the pins anew"
	@echo "make clean             remove the virtual environment, caches and the demo (.blastwatch/demo)"

install: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@# In four parts abreast: pip unpacks on one core, and no part waits for another, as what each needs is pinned here.
	@# What MLflow is split into owns the same files, and goes into one part.
	for part in 0 1 2 3; do \
		awk -v part=$$part '/^[^ ]/ && !/^mlflow-/ { n++ } n % 4 == part' requirements/dev.txt >$(VENV)/part-$$part.txt || exit 1; \
	done
	printf '%s\n' 0 1 2 3 | xargs -P 4 -I PART $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--require-hashes --no-deps -r $(VENV)/part-PART.txt
	@# On all cores, where pip takes one. Templates among the packages are no Python and fail, as they do under pip.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/blastwatch demo $(if $(CELLS),--cells "$(CELLS)")

up: $(STAMP)
	$(BIN)/blastwatch up

# The tests start two hundred processes: compiled once, not by each of them, whatever the caller's environment says.
test: export PYTHONDONTWRITEBYTECODE :=
# Two processes test at a time, each on a core of its own: threads of OpenMP would wait for one another, spinning.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.feeding
	$(BIN)/python -m tests.benchmarks.fuzzing

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--constraint requirements/dev.txt \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/run.txt

# The rest of .blastwatch is somebody's registry, its signing key and its predictions.
clean:
	rm -rf $(VENV) .blastwatch/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
