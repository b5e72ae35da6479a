"""``kongps rebuild``: builds the compiled plugins of a directory again that do not match."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Optional

from kongps.compiled.build import Progress, build
from kongps.compiled.sources import SOURCES, read_record, source_of
from kongps.errors import BuildError, SeveralFiles
from kongps.plugins.files import examine

__all__ = ["Rebuilt", "rebuild"]


@dataclass
class Rebuilt:
    """What became of a compiled plugin.

    :ivar name: the plugin's name.
    :ivar path: its compiled file.
    :ivar problem: why it did not match; None when it did.
    :ivar failure: why it was not built again; None when it was, or did not need to be.
    """

    name: str
    path: str
    problem: Optional[str]
    failure: Optional[str] = None


def rebuild(directory: str, *, check: bool = False, progress: Progress = print) -> list[Rebuilt]:
    """Builds the compiled plugins of a directory again that do not match what is running.

    :param directory: the plugins directory.
    :param check: only look.
    :param progress: gets a line for each step.
    :returns: what became of each compiled plugin.
    :raises ServerError: when the directory cannot be read.
    """
    results = []
    for plugin in examine(directory):
        if plugin.compiled is None:
            continue
        problem = plugin.error.reason if plugin.error is not None else None
        path = plugin.path
        if problem is None and not plugin.used:
            problem = "it runs from its source: none of its compiled files is for this interpreter"
            path = plugin.compiled
        result = Rebuilt(plugin.name, path, problem)
        results.append(result)
        if problem is None:
            progress(f"{plugin.name}: {path} matches")
            continue
        progress(f"{plugin.name}: {problem}")
        if check:
            continue
        if isinstance(plugin.error, SeveralFiles):
            result.failure = "it is not clear which file is the plugin"
            continue
        result.failure = _rebuild_one(directory, path, progress)
        if result.failure is not None:
            progress(f"{plugin.name}: not rebuilt: {result.failure}")
    return results


def _rebuild_one(directory: str, path: str, progress: Progress) -> Optional[str]:
    record = read_record(path)
    source = source_of(path, record)
    if source is None:
        return f"its source is not in {directory} nor in {os.path.join(directory, SOURCES)}"
    try:
        build(source, output=directory, progress=progress)
    except BuildError as error:
        return str(error)
    return None
