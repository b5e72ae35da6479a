"""What a compiled file was built with, written into the file and read without loading it.

The record is JSON text in a section of its own, which linker and ``strip`` leave alone. Like
``interpreter.py`` this file imports nothing of kongps: ``setup.py`` uses it for the core.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Optional

__all__ = ["SECTION", "c_source", "parse", "source_hash"]

SECTION = "kongps_build"

# The form of the record itself; a reader passes over records of a form it does not know.
FORMAT = 1

# What belongs to the sources of a plugin that is a package.
SOURCE_SUFFIXES = (".py", ".pyx", ".pxd", ".pxi", ".c", ".cc", ".cpp", ".cxx", ".h", ".hpp", ".rs")


def c_source(record: dict[str, Any], *, also: str = "") -> str:
    """A C file that puts `record` into what it is linked into.

    :param also: further C text.
    """
    text = json.dumps({"format": FORMAT, **record}, sort_keys=True)
    lines = "\n".join(
        f'    "{"".join(map(_escaped, text[at : at + 60].encode()))}"'
        for at in range(0, len(text), 60)
    )
    return (
        "/* What this was built with; written by kongps. */\n"
        f'__attribute__((used, section("{SECTION}")))\n'
        f"static const char kongps_build_record[] =\n{lines};\n{also}"
    )


def _escaped(byte: int) -> str:
    """A byte in a C string; an octal escape ends after three digits, whatever follows."""
    return chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"


def parse(section: Optional[bytes]) -> Optional[dict[str, Any]]:
    """The record in a section; None when there is none, or one of an unknown form."""
    if section is None:
        return None
    try:
        record = json.loads(section.rstrip(b"\0"))
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    return record


def source_hash(path: str) -> str:
    """The SHA-256 of a source file, or of all sources of a package directory and their names."""
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    whole = hashlib.sha256()
    for directory, directories, files in os.walk(path):
        directories[:] = sorted(each for each in directories if each != "__pycache__")
        for name in sorted(files):
            if name.endswith(SOURCE_SUFFIXES):
                place = os.path.join(directory, name)
                whole.update(os.fsencode(os.path.relpath(place, path)) + b"\0")
                whole.update(source_hash(place).encode())
    return whole.hexdigest()
