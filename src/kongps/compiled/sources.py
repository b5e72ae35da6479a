"""A plugin's compiled file and its source: which belong together, and which one is loaded.

``kongps build`` writes a record into each compiled file, which names the source and its hash.
"""

from __future__ import annotations

import os
import shlex
import struct
import sys
from collections.abc import Iterable
from typing import Any, Optional

from kongps.compiled.elf import ELF
from kongps.compiled.record import SECTION, parse, source_hash
from kongps.errors import SeveralFiles, SourceChanged

__all__ = [
    "SOURCES",
    "check_source",
    "choose",
    "python_command",
    "read_record",
    "remedy_for",
    "source_of",
]

# Where `kongps build` keeps a source that it did not find in the plugins directory.
SOURCES = ".sources"


def python_command(*words: str) -> str:
    """A kongps command line with the interpreter that runs this."""
    return " ".join(map(shlex.quote, [sys.executable, "-m", "kongps", *words]))


def read_record(path: str) -> Optional[dict[str, Any]]:
    """What `kongps build` recorded in a file; None for a file without a record."""
    try:
        return parse(ELF(path).section(SECTION))
    except (OSError, ValueError, struct.error):
        return None


def source_of(path: str, record: Optional[dict[str, Any]]) -> Optional[str]:
    """The source that a compiled file of a plugins directory was made from, if it is there.

    :param path: the compiled file, or one of the package that the plugin is.
    :param record: what is recorded in it; without, the source is looked for by its name.
    """
    directory, entry = os.path.split(os.path.abspath(path))
    name = entry.partition(".")[0]
    if name == "__init__":
        directory, name = os.path.split(directory)
    if record is not None:
        place = os.path.join(directory, str(record.get("source", "")))
        if record.get("package"):  # a module of it may lie deeper
            while not os.path.exists(place) and len(directory) > 1:
                directory = os.path.dirname(directory)
                place = os.path.join(directory, str(record.get("source", "")))
        return place if record.get("source") and os.path.exists(place) else None
    for place in (directory, os.path.join(directory, SOURCES)):
        for suffix in (".pyx", ".py", ".c", ".cpp", ".cc", ".cxx"):
            if os.path.isfile(os.path.join(place, name + suffix)):
                return os.path.join(place, name + suffix)
    kept = os.path.join(directory, SOURCES, name)
    return kept if os.path.isdir(kept) else None


def remedy_for(plugin: str, path: str, record: Optional[dict[str, Any]]) -> str:
    """The command that builds a plugin again, for the interpreter that runs this."""
    directory = os.path.dirname(_whole(os.path.abspath(path)))
    if source_of(path, record) is not None:
        return python_command("rebuild", directory)
    source = os.path.basename(str((record or {}).get("source") or f"{plugin}.py"))
    return f"{python_command('build', source, '-o', directory)} (its source is not beside it)"


def choose(plugin: str, objects: Iterable[str], sources: Iterable[str]) -> str:
    """The file to load a plugin from, out of those that are it.

    A compiled plugin may lie beside the source that it was compiled from.

    :param objects: its compiled files that this interpreter could load.
    :param sources: its ``.py`` files and package directories.
    :raises SeveralFiles: when they are more than one plugin.
    """
    objects, sources = list(objects), list(sources)
    if len(objects) + len(sources) == 1:
        return (objects or sources)[0]
    if len(objects) == 1 and len(sources) == 1:
        record = read_record(objects[0])
        source = source_of(objects[0], record) if record is not None else None
        beside = _whole(sources[0])
        if source is not None and os.path.samefile(source, beside):
            return objects[0]
    entries = " and ".join(sorted(os.path.basename(_whole(each)) for each in [*objects, *sources]))
    raise SeveralFiles(
        plugin,
        f"{entries} are both this plugin",
        "one of them would hide the other",
        "a plugin has one file",
        "removing or renaming one",
    )


def _whole(path: str) -> str:
    """The file itself, or the package directory whose ``__init__`` it is."""
    entry = os.path.basename(path)
    return os.path.dirname(path) if entry.startswith("__init__.") else path


def check_source(plugin: str, path: str) -> None:
    """Compares a compiled file with its source, if that is in the plugins directory too.

    :raises SourceChanged: when it was compiled from another one.
    """
    record = read_record(path)
    source = source_of(path, record) if record is not None else None
    if record is None or source is None:
        return
    there = source_hash(source)
    if record.get("source_hash") != there:
        raise SourceChanged(
            plugin,
            f"{path} was compiled from another {os.path.basename(source)}",
            f"its source had the SHA-256 {str(record.get('source_hash'))[:12]}…",
            f"the one beside it has {there[:12]}…",
            remedy_for(plugin, path, record),
        )
