# All set-up is here: `make run` and `make test` create .venv and install into it once. VENV=PATH puts it elsewhere.
# Versions are those of the recorded run (constraints.txt); `make PINNED= …` takes the newest that pyproject.toml allows.
# A path with a space in it works: make itself is only ever given relative names (a VENV of your own must not have one).

VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/miniature
SITE ?= build/site
PINNED ?= constraints.txt
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo "$$p" && break; done)

.PHONY: run test test-all bench lint verify notebooks site clean

run: $(VENV)/installed  ## the default profile; more with ARGS="--profile coco"
	$(BIN)/python run_all.py $(ARGS)

test: $(VENV)/all  ## the quick tests of every room
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/all  ## all tests: kills, races, whole runs, browsers and real training, too
	$(BIN)/python -m pytest -m "" $(ARGS)

bench: $(VENV)/bench  ## the dataset, then every stage; on a GPU it leaves data/results/bench/<device>.json
	$(BIN)/python tests/bench_dataset.py $(ARGS)
	$(BIN)/python tests/bench_stages.py

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

verify: $(VENV)/installed  ## each finished run beside the record of its profile, in one table
	$(BIN)/python run_all.py --verify --profile all

notebooks: $(VENV)/installed  ## run the default profile and put its outputs into the notebooks of the checkout
	$(BIN)/python run_all.py --refresh

site: $(VENV)/all  ## a searchable site of a finished run, its tables and the docs: RUN=folder SITE=folder
	$(BIN)/sphinx-build -qE -D run="$(RUN)" docs "$(SITE)"

# what the notebooks need; what the tests need as well; what others' ways need, to be measured beside ours
$(VENV)/installed: EXTRA = study
$(VENV)/all: EXTRA = all
$(VENV)/bench: EXTRA = all,bench
$(VENV)/installed $(VENV)/all $(VENV)/bench: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed, and none was found; pass PYTHON=/path/to/python"; exit 1; }
	@test -e $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]' $(if $(PINNED),--constraint $(PINNED))
	@touch $@ $(if $(filter all,$(EXTRA)),$(VENV)/installed)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
