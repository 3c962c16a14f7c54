# Every target sets up what it needs: a virtual environment in .venv, kept until what it is made from changes.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := .venv-bench
NATIVE := $(wildcard native/*.* native/*/*.*)
# A process a core, each with one thread: two with two each would wait for one another.
# Each begins with a part of its own, so that fixtures of a module are made once, and takes of the others' at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
BUILD_TOOLS := "scikit-build-core>=0.11" "nanobind>=2.9" $(if $(shell command -v cmake),,cmake) $(if $(shell command -v ninja),,ninja)

# Where a C++ compiler is, a kernel that does not build is an error, and so is a test that does not find the kernels.
ifneq ($(shell command -v $${CXX:-c++}),)
export SVERTKA_REQUIRE_NATIVE := 1
endif

.PHONY: demo test test-full pytest pytest-full lint docs bench-peers sanitize clean

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/svertka train digits --output runs/demo
	$(BIN)/svertka look runs/demo

# Types are checked beside the first tests: that takes one core for half a minute.
test: $(INSTALLED)
	$(MAKE) --jobs=2 lint pytest

test-full: $(INSTALLED)
	$(MAKE) --jobs=2 lint pytest-full

pytest: $(INSTALLED)
	$(PYTEST)

pytest-full: $(INSTALLED)
	$(PYTEST) --large

lint: $(INSTALLED)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs native bench experiments $(wildcard *.md)
	$(BIN)/python -m pytest --quiet --noconftest tests/test_style.py

# The site, in build/site. It opens from the disk and loads nothing from elsewhere.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m pytest --quiet --large tests/test_site.py

# An environment with what bench/ compares with.
bench-peers: $(PEERS)/installed

$(PEERS)/installed: bench/requirements.txt pyproject.toml constraints.txt $(NATIVE)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt $(BUILD_TOOLS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[onnx,serve]" \
		--requirement bench/requirements.txt
	touch $@

# The kernels' tests and random networks with a build that finds accesses out of bounds and undefined behavior.
NETWORKS := 300
sanitize: $(INSTALLED)
	cmake -S native -B build/sanitize -DSVERTKA_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/sanitize --parallel $(shell nproc)
	LD_PRELOAD="$(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell $${CXX:-c++} -print-file-name=$(name)))" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python native/sanitized.py build/sanitize --networks $(NETWORKS)

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(BUILD_TOOLS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv $(PEERS) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
