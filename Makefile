# Every target sets up what it needs in .venv. You need CPython 3.9 or newer with its headers and
# venv, and a C compiler. On Debian and Ubuntu:
#     apt-get install build-essential python3-dev python3-venv

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed

# Parallel test processes: two per core, since many tests wait for something.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 2)

CORE = $(wildcard src/pyx/kongps/core/*.p[xy][dx] src/pyx/kongps/core/*/*.p[xy][dx])

.PHONY: all demo test lint types check wheel-check wheels docs bench bench-check bench-memory soak \
    fuzz sanitize faults clean help

all: $(INSTALLED)

help:
	@echo "make              build kongps in .venv"
	@echo "make demo         serve the example plugins to a simulated Kong, and show every call"
	@echo "make test         run the tests"
	@echo "make lint         ruff: lint and format"
	@echo "make types        mypy"
	@echo "make check        test, lint, types and wheel-check: what CI runs"
	@echo "make wheel-check  build sdist and wheel, install the wheel in a new environment, run the demo"
	@echo "make wheels       build a wheel for every CPython on this machine, and run the demo from each"
	@echo "make docs         update what is generated: the README's flags, docs/versions.md, pdk/aio.pyi"
	@echo "make bench        compare with other plugin servers (downloads them); takes 50 minutes"
	@echo "make bench-check  check that an event costs no more instructions than before (needs valgrind)"
	@echo "make bench-memory check that memory does not grow over 200,000 events"
	@echo "make soak         the long runs that make test leaves out: a million events, and more"
	@echo "make fuzz         fuzz the core with ten million inputs, with sanitizers (needs clang)"
	@echo "make sanitize     run the tests of the core with sanitizers (needs clang)"
	@echo "make faults       compare how other plugin servers handle faults"
	@echo "make clean        remove everything that was built"

$(INSTALLED): pyproject.toml setup.py src/kongps/_version.py $(CORE)
	@command -v cc >/dev/null || { echo "no C compiler: apt-get install build-essential" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "no venv: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || { echo "no Python.h: apt-get install python3-dev" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/kongps demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

check: test lint types wheel-check

# The wheel is built from the sdist, and tried outside of the checkout.
wheel-check: $(INSTALLED)
	rm -rf dist .wheel-check
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'build>=1,<2'
	$(BIN)/python -m build --outdir dist . > build.log 2>&1 || { cat build.log; exit 1; }
	@! grep -nE "\.(c|h|pyx|pxd):[0-9]+.*warning" build.log
	$(PYTHON) -m venv .wheel-check
	.wheel-check/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd / && $(CURDIR)/.wheel-check/bin/kongps demo
	rm -rf .wheel-check build.log

# For every CPython on this machine; each wheel is tried outside of the checkout.
wheels: $(INSTALLED)
	$(BIN)/python tools/wheels.py

# The README's table of flags is generated from the settings, docs/versions.md from the exception
# classes, the types of the async PDK from the PDK. Tests check that they are up to date.
docs: $(INSTALLED)
	$(BIN)/python tools/settings_table.py
	$(BIN)/python tools/versions_page.py
	$(BIN)/python tools/async_pdk.py

# The page is written even if a target is missed or another server had errors; it then says so.
bench: $(INSTALLED)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/run.py; status=$$?; \
	$(BIN)/python benchmarks/page.py && exit $$status

bench-check: $(INSTALLED)
	$(BIN)/python benchmarks/profile.py --check

bench-memory: $(INSTALLED)
	$(BIN)/python benchmarks/memory.py

SOAK_EVENTS ?= 1000000
soak: $(INSTALLED)
	PYTHONPATH=tests/support $(BIN)/python tests/soak/soak.py --events $(SOAK_EVENTS)
	$(BIN)/python -m pytest -m soak

# Building the core with sanitizers needs Cython in the environment; otherwise pip installs it only
# while it builds the package.
FUZZ_INPUTS ?= 10000000
CYTHON = $(BIN)/python -c 'import Cython, setuptools' 2>/dev/null || \
    $(BIN)/python -m pip install --quiet --disable-pip-version-check 'cython>=3.1,<4' 'setuptools>=77'

fuzz: $(INSTALLED)
	@$(CYTHON)
	$(BIN)/python fuzz/run.py --inputs $(FUZZ_INPUTS)

sanitize: $(INSTALLED)
	@$(CYTHON)
	$(BIN)/python fuzz/sanitize.py

faults: $(INSTALLED)
	$(BIN)/python benchmarks/faults.py

clean:
	rm -rf $(VENV) .wheel-check .fuzz build dist build.log src/kongps.egg-info
	find src -name '*.so' -delete
