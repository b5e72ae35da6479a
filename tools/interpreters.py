"""The CPythons on this machine: on the path, and those that pyenv has.

``python tools/interpreters.py`` prints them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What kongps supports.
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def _candidates(version: str) -> list[str]:
    found = []
    if version == "{}.{}".format(*sys.version_info[:2]):
        found.append(sys.executable)
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        found.append(on_path)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += map(str, sorted(root.glob(f"versions/{version}.*/bin/python{version}")))
    return found


def _works(python: str, version: str) -> bool:
    """Whether it runs, is what it is called, and can be compiled for."""
    program = (
        "import os, sys, sysconfig as s;"
        "print('%d.%d' % sys.version_info[:2], sys.implementation.name,"
        "os.path.exists(os.path.join(s.get_path('include'), 'Python.h')))"
    )
    try:
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True)
    except OSError:
        return False
    return done.stdout.split() == [version, "cpython", "True"]


def installed() -> dict[str, str]:
    """The CPythons with headers that run here, by version, oldest first."""
    found = {}
    for version in VERSIONS:
        for python in _candidates(version):
            if _works(python, version):
                found[version] = python
                break
    return found


if __name__ == "__main__":
    for version, python in installed().items():
        print(version, python)
