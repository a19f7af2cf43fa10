# Three commands set everything up on a machine with Python (3.11 or newer), pip and make:
#   make demo    an environment, the package, a small study; prints the path of its report
#   make test    an environment, the package, all tests
#   make docs    an environment, the documentation as a site; prints the path of its front page
# and one looks for what no test has found yet, as long as an hour:
#   make fuzz    properties with examples at random (make fuzz SEED=N repeats a run), then all of tests/fuzz
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

ifndef SEED
SEED := $(shell date +%s)
endif
FUZZ_RUNS = $(shell grep -l __main__ tests/fuzz/*.py)

.PHONY: demo test docs check fuzz clean

# what few need of the packages is not compiled beforehand, which takes as long as their installation: Python
# keeps the bytecode of what is imported, here also where the machine's setting is against it
export PYTHONDONTWRITEBYTECODE :=

demo: $(VENV)/.installed
	$(BIN)/prunekit compare digits-quick --out runs/digits-quick

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadgroup

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . docs/_build/html
	@echo docs/_build/html/index.html

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.installed-dev
	@echo "properties from the seed $(SEED)"
	$(BIN)/python -m pytest -n auto -m hypothesis --hypothesis-profile=fuzz --hypothesis-seed=$(SEED)
	@failed=0; for run in $(FUZZ_RUNS); do $(BIN)/python $$run || failed=1; done; exit $$failed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[study]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf docs/_build docs/api docs/auto_gallery
	rm -rf $(VENV) runs build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
