"""The package as it is installed: importing it, with and without a core."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from paths import SRC

import kongps


def test_without_a_core_for_this_interpreter_the_import_says_what_mends_it(
    short_path: Path,
) -> None:
    shutil.copytree(
        SRC / "kongps", short_path / "kongps", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-c", "import kongps"],
        env={"PYTHONPATH": str(short_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kongps.errors.CoreMismatch: kongps ")
    assert "no compiled core for this interpreter" in last
    assert f"{sys.executable} -m pip install" in last
    assert "ModuleNotFoundError" not in done.stderr


def test_importing_the_package_imports_little() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, kongps; print(*sys.modules)"],
        env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    modules = done.stdout.split()
    for heavy in (
        "msgspec",
        "msgpack",
        "greenlet",
        "asyncio",
        "kongps.pdk",
        "kongps.server.server",
    ):
        assert heavy not in modules


def test_public_names_are_there() -> None:
    for name in kongps.__all__:
        assert getattr(kongps, name)
