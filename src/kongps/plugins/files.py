"""The files of a plugins directory: which of them are plugins, and which one to load.

A plugin is a file ``NAME.py``, a compiled module or native library ``NAME.*.so``, or a package
directory ``NAME``. Compiled files are checked before anything of them is loaded. Names that start
with a dot or an underscore are left out: modules that plugins share can be called
``_something.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from typing import NamedTuple, Optional, Union

from kongps.errors import PluginError, ServerError
from kongps.plugin_names import check_name, valid_name

__all__ = ["Examined", "PluginFile", "chosen_file", "entry_of", "examine", "scan"]

# A compiled module's suffix between its name and ".so" that some interpreter could have made.
_ABI_TAG = r"\.(?:cpython-|cp|abi|pypy|graalpy)[A-Za-z0-9_-]*\.so"


class PluginFile(NamedTuple):
    """A file, or a package directory, that may be a plugin."""

    name: str
    path: str
    package: bool = False  # the `__init__` of a package directory
    compiled: bool = False
    foreign: bool = False  # a module compiled for another interpreter, by its name
    native: bool = False  # a library with a native plugin's table


def _plugin_files(entry: os.DirEntry[str]) -> Iterator[PluginFile]:
    """The plugin that a directory entry is; a package may have its ``__init__`` several times.

    Its name is not checked yet: a package directory whose name cannot be a plugin's is no plugin,
    but a file ``a.b.py`` is a mistake that is reported.
    """
    if entry.name.startswith((".", "_")):
        return
    if entry.is_dir():
        if valid_name(entry.name):
            for init in sorted(os.listdir(entry.path)):
                found = _module_file(init, os.path.join(entry.path, init))
                if found is not None and found.name == "__init__":
                    yield found._replace(name=entry.name, package=True)
        return
    found = _module_file(entry.name, entry.path)
    if found is not None:
        yield found


def _module_file(entry: str, path: str) -> Optional[PluginFile]:
    if entry.endswith(".py"):
        return PluginFile(entry[: -len(".py")], path)
    if not entry.endswith(".so"):
        return None
    # The longest suffix first: ".so" alone is one of them.
    for suffix in sorted(EXTENSION_SUFFIXES, key=len, reverse=True):
        stem = entry[: -len(suffix)]
        plain = valid_name(stem) or stem == "__init__"
        if entry.endswith(suffix) and (suffix != ".so" or plain):
            return PluginFile(stem, path, compiled=True)
    stem = re.sub(_ABI_TAG, "", entry)
    return PluginFile(stem.removesuffix(".so"), path, compiled=True, foreign=stem != entry)


def scan(directory: str) -> dict[str, list[PluginFile]]:
    """The files of each plugin in a directory, by its name.

    :raises ServerError: when the directory cannot be read.
    """
    files: dict[str, list[PluginFile]] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                for found in _plugin_files(entry):
                    files.setdefault(found.name, []).append(found)
    except OSError as error:
        raise ServerError(f"the plugins directory cannot be read: {error}") from error
    return files


def chosen_file(name: str, files: list[PluginFile]) -> PluginFile:
    """The one file to load a plugin from; a compiled one has been checked.

    :raises CompatError: when there are several, or only ones that do not fit what is running.
    """
    file = files[0]
    if len(files) > 1 or file.compiled:
        file = _checked(name, files)
    if file.package:
        _check_modules(name, os.path.dirname(file.path))
    return file


def _checked(name: str, files: list[PluginFile]) -> PluginFile:
    from kongps.compiled.checks import check_object
    from kongps.compiled.sources import check_source, choose

    usable = [each for each in files if not each.foreign] or files[:1]
    objects = [each.path for each in usable if each.compiled]
    sources = [each.path for each in usable if not each.compiled]
    path = choose(name, objects, sources)
    (file,) = (each for each in usable if each.path == path)
    native = False
    if file.compiled:
        native = check_object(name, path) == "native"
        check_source(name, path)
    return file._replace(native=native)


def _check_modules(name: str, directory: str) -> None:
    """Checks the compiled modules of a package, where Python would not find another file."""
    for parent, _, entries in os.walk(directory):
        modules: dict[str, list[PluginFile]] = {}
        for entry in sorted(entries):
            found = _module_file(entry, os.path.join(parent, entry))
            if found is not None:
                modules.setdefault(found.name, []).append(found)
        for files in modules.values():
            usable = [each for each in files if not each.foreign] or files[:1]
            for each in usable:
                if each.compiled:
                    from kongps.compiled.checks import check_object

                    check_object(name, each.path)


class Examined(NamedTuple):
    """What a plugin's files show, without loading the plugin.

    :ivar path: the file that would be loaded; the first one when there is an error.
    :ivar compiled: the first of its files that is compiled.
    :ivar used: whether the file that would be loaded is compiled.
    :ivar error: why it cannot be loaded, as far as the files show it.
    """

    name: str
    path: str
    compiled: Optional[str]
    used: bool
    error: Optional[PluginError]


def examine(directory: Union[str, os.PathLike[str]]) -> list[Examined]:
    """Examines the files of a plugins directory; nothing is loaded.

    :raises ServerError: when the directory cannot be read.
    """
    examined = []
    for name, files in scan(os.path.abspath(directory)).items():
        compiled = next((each.path for each in files if each.compiled), None)
        chosen = next((each for each in files if each.compiled), files[0])
        error: Optional[PluginError] = None
        try:
            check_name(name)
            chosen = chosen_file(name, files)
        except PluginError as caught:
            error = caught
        used = chosen.compiled and error is None
        examined.append(Examined(name, chosen.path, compiled, used, error))
    return examined


def entry_of(directory: str, file: PluginFile) -> str:
    """The entry of a plugins directory that a file is, or is in."""
    return os.path.relpath(file.path, directory).partition(os.sep)[0]
