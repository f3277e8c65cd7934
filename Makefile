# make demo: see it learn, on images that it draws itself. make test: every test but the long ones. Both set up a
# fresh machine. make quick: for every save. make test-long: what takes minutes. make test-idle: whole recipes.
# the first that really runs: a name on the path may be a version manager's empty shell
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: lock sbom demo test quick test-long test-idle golden gpu-check lint docs setup clean

DEMO := local-only fuss-ref default label-free

demo: setup
	rm -rf demo
	$(BIN)/python -m partitions synthetic --sites 4 --out demo/shards
	@for name in $(DEMO); do \
		echo; echo "== $$name"; \
		$(BIN)/python -m server simulate --recipe recipes/demo-$$name.toml --run-dir demo/runs/$$name || exit; \
	done
	@echo
	@$(BIN)/python -m server report $(DEMO:%=demo/runs/%) --out demo/comparison
	@echo "pictures, classes, sites and bytes of the federation: demo/runs/label-free/report.html"

# three workers for two cores, a thread each: those whose networks wait leave room for those that compute
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

# at most 10 minutes on two idle cores
test: setup lint
	$(PYTEST) -m "not long and not idle"

# at most 3 minutes: no real processes, and of the whole runs only the shortest
quick: setup
	$(BIN)/ruff check .
	$(PYTEST) -m "not long and not idle and not net and not slow"

# minutes of arithmetic: every hostile reply and site, thousands of damaged files
test-long: setup
	$(PYTEST) -m long

# whole recipes and faults of real processes, whose waits are bounded: for an idle machine, one worker
test-idle: setup
	$(PYTEST) -n 1 -m idle

# what the code computes, pinned: a figure that left its tolerance is rewritten and named
golden: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden

# on a machine with a GPU, by an interpreter that has the packages: nothing is installed, ten minutes at most
GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the documentation as a site: open site/index.html
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict --quiet

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo site

# hashes of what the images install; to be run after a change of docker/requirements.txt
lock: setup
	$(BIN)/uv pip compile docker/requirements.txt --no-deps --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --python-version 3.11 --quiet --output-file docker/requirements.lock

# a list of all that the images hold (CycloneDX)
sbom: setup
	$(BIN)/python docker/sbom.py > sbom.json
