"""The facts of a Python interpreter that a compiled module must match, or is compiled with.

This file imports nothing of kongps: it is also run as a program by other interpreters, which need
not have kongps, and by ``setup.py``, before there is a core.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import shlex
import sys
import sysconfig
from typing import Any

__all__ = ["BUILT_FOR", "facts", "libc", "readable"]

# What a module is built for; the other facts are how to compile one.
BUILT_FOR = (
    "python",
    "implementation",
    "abi_tag",
    "debug",
    "free_threaded",
    "machine",
    "libc",
)


def libc() -> str:
    """The C library of this process, with its version if it has one: ``glibc 2.36``, ``musl``."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        name = None
    if name:
        return name
    return "musl" if glob.glob("/lib/ld-musl-*.so.1") else "unknown libc"


def facts() -> dict[str, Any]:
    """The facts of the interpreter that runs this."""
    config = sysconfig.get_config_var
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "abi_tag": config("SOABI") or sys.implementation.cache_tag or "",
        "debug": hasattr(sys, "gettotalrefcount"),
        "free_threaded": bool(config("Py_GIL_DISABLED")),
        "machine": platform.machine(),
        "libc": libc(),
        "executable": sys.executable,
        "suffix": config("EXT_SUFFIX") or ".so",
        "include": sorted(
            {path for path in map(sysconfig.get_path, ("include", "platinclude")) if path}
        ),
        "compiler": shlex.split(os.environ.get("CC") or config("CC") or "cc"),
        "compile_flags": shlex.split(config("CFLAGS") or "")
        + shlex.split(config("CCSHARED") or ""),
        "link": shlex.split(config("LDSHARED") or "cc -shared")[1:],
    }


def readable(built: dict[str, Any]) -> str:
    """An interpreter in words: ``CPython 3.11.7 (cpython-311-x86_64-linux-gnu)``.

    :param built: facts of an interpreter, or the record of what was built for one.
    """
    implementation = str(built.get("implementation"))
    name = {"cpython": "CPython", "pypy": "PyPy"}.get(implementation, implementation)
    words = {"debug": "debug build", "free_threaded": "free-threaded"}
    kinds = [word for fact, word in words.items() if built.get(fact)]
    return f"{name} {built.get('python')} ({', '.join([str(built.get('abi_tag')), *kinds])})"


if __name__ == "__main__":
    print(json.dumps(facts()))
