"""Small shared libraries, compiled for a test: what plugins look like from outside."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from kongps.compiled.record import c_source

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

PLUGIN_SOURCE = """\
from dataclasses import dataclass

version = "1.0.0"


@dataclass
class Plugin:
    message: str = "hello"

    def access(self, kong):
        kong.response.set_header("x-greeting", self.message)
"""


def compile_c(
    path: Path,
    text: str = "void *PyInit_hello(void) { return 0; }",
    record: Optional[dict[str, Any]] = None,
    flags: Sequence[str] = (),
) -> Path:
    """Compiles C text to a shared library, with a build record in it if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".test.c")
    source.write_text(c_source(record, also=text) if record is not None else text)
    subprocess.run(
        ["cc", "-shared", "-fPIC", str(source), "-o", str(path), *flags],
        check=True, capture_output=True,
    )  # fmt: skip
    source.unlink()
    return path


def dumped(output: bytes) -> list[str]:
    """The names of the plugins in what `kongps dump` printed."""
    return [each["Name"] for each in json.loads(output)["Plugins"]]
