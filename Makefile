# Every target sets up what it needs: a virtual environment in .venv, kept until pyproject.toml or constraints.txt change.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-full lint clean

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/svertka train digits --output runs/demo

test: $(INSTALLED) lint
	$(BIN)/python -m pytest

test-full: $(INSTALLED) lint
	$(BIN)/python -m pytest --large

lint: $(INSTALLED)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "scikit-build-core>=0.11"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
