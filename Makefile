# The commands for newcomers: `make demo`, `make test`, and `make quick` while writing code. Each installs what it needs
# into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Workers take groups of tests in the order of tests/conftest.py, the longest first. The long ones mostly wait, so more
# workers than cores pay off; numpy and torch get one thread in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder --numprocesses

.PHONY: demo test quick check audit bench docs clean

demo: .venv/demo ## search, rerank and cut the documentation that Python ships
	$(BIN)/python -m milvus_pipeline.demo configs/python_docs.yaml

test: .venv/test ## every test
	$(PYTEST) 4

quick: .venv/test ## the tests that need no server, no other process and no browser: for the inner loop
	$(PYTEST) 3 --quick

check: .venv/test ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/test ## dependencies: declared as imported, fitting together, without known vulnerabilities
	$(BIN)/python .ci/audit.py

bench: .venv/test ## quality on Cranfield, stage by stage; a hosted reranker with many queries under way
	$(BIN)/python benchmarks/cranfield.py
	$(BIN)/python benchmarks/hosted_concurrency.py

docs: .venv/test ## write docs/stages.md and docs/api.md from the code
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv data

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# The files .venv/demo and .venv/test mark a finished installation. When what they depend on changes it is newer than
# they are, and make installs again.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the demo's packages into .venv (a minute or two) ..."
	$(INSTALL) --editable '.[demo]'
	@touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the tests' packages into .venv (a few minutes) ..."
	$(INSTALL) --editable '.[test]'
	@touch $@ .venv/demo
