"""The fuzz targets over the inputs that are kept, and those that once found something."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from paths import TESTS

FUZZ = TESTS.parent / "fuzz"
FOUND = TESTS / "data" / "fuzz"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FUZZ / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


load("codec_targets")
targets = load("targets")
seeds = load("seeds")


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_corpus(target: str) -> None:
    inputs = [path.read_bytes() for path in sorted((FUZZ / "corpus" / target).iterdir())]
    assert inputs
    for data in inputs:
        targets.TARGETS[target](data)


def test_the_recordings_as_inputs() -> None:
    for target, inputs in seeds.inputs().items():
        assert inputs
        for data in inputs[:: max(1, len(inputs) // 100)]:
            targets.TARGETS[target](data)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: path.name)
def test_what_fuzzing_has_found(path: Path) -> None:
    """Named for the target and what it found: ``TARGET/what-it-was``."""
    targets.TARGETS[path.parent.name](path.read_bytes())
