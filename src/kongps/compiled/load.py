"""Imports compiled modules of plugins so that they behave as their Python source would.

A module compiled by ``kongps build`` has a name of its own built in, ``kongps_plugins.NAME``,
whichever directory it is loaded from; its classes have that name as their module.
While it is loaded it is in ``sys.modules`` under that name, for code that looks there (dataclasses,
type hints); afterwards its classes and functions get the name of the module that it is here.

An extension module cannot be loaded twice into one process: loading it again gives the same
module, unless the file is another one by then.
"""

from __future__ import annotations

import keyword
import os
import sys
import types
from collections.abc import Iterable, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from typing import Any, Optional

__all__ = ["PACKAGE", "Loader", "compiled_name", "file_key", "install", "path_to_open"]

# What the names of packages that stand for plugins directories begin with.
PACKAGE = "kongps_plugins"

FileKey = tuple[Any, ...]

_loaded: dict[FileKey, types.ModuleType] = {}


def file_key(path: str) -> FileKey:
    """What tells a file from another one that later has its path."""
    stat = os.stat(path)
    return (os.path.realpath(path), stat.st_dev, stat.st_ino, stat.st_mtime_ns)


def path_to_open(path: str, loaded: Iterable[FileKey]) -> str:
    """The path by which the dynamic linker opens this file.

    It gives the old library for a path that it knows, whatever is there by now. Then the file gets
    a path that the linker does not know; it stays open to keep it so.

    :param loaded: the files that are loaded already.
    """
    if any(known[0] == os.path.realpath(path) for known in loaded):
        return f"/proc/self/fd/{os.open(path, os.O_RDONLY | os.O_CLOEXEC)}"
    return path


def compiled_name(name: str) -> str:
    """The name that is built into a compiled module.

    :param name: the module's, in its plugins directory: ``key-gate``, ``shop.rules``.
    """
    parts = [part.replace("-", "_") for part in name.split(".")]
    valid = (
        each if each.isidentifier() and not keyword.iskeyword(each) else f"plugin_{each}"
        for each in parts
    )
    return ".".join([PACKAGE, *valid])


class Loader(ExtensionFileLoader):
    """Loads a compiled module of a plugin."""

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """The module; the one there is already when this file has been loaded before."""
        key = file_key(self.path)
        if key in _loaded:
            return _loaded[key]
        origin = spec.origin
        spec.origin = path_to_open(self.path, _loaded)
        try:
            return super().create_module(spec)
        finally:
            spec.origin = origin

    def exec_module(self, module: types.ModuleType) -> None:
        """Runs the module's code, once."""
        key = file_key(self.path)
        if key in _loaded:
            return
        name = compiled_name(module.__name__.partition(".")[2])
        before = sys.modules.get(name)
        sys.modules[name] = module
        try:
            super().exec_module(module)
        finally:
            if before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before
        for value in list(vars(module).values()):
            _rename(value, name, module.__name__)
        _loaded[key] = module


def _rename(value: Any, old: str, new: str) -> None:
    if getattr(value, "__module__", None) != old:
        return
    try:
        value.__module__ = new
    except (AttributeError, TypeError):
        return  # an extension type; its name is fixed
    if isinstance(value, type):
        for inner in list(vars(value).values()):
            _rename(inner, old, new)


class _Finder:
    """Finds the modules of plugins directories; compiled ones get the loader above."""

    @staticmethod
    def find_spec(
        name: str, path: Optional[Sequence[str]] = None, target: Optional[types.ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if not name.startswith(f"{PACKAGE}_"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            spec.loader = Loader(name, spec.loader.path)
        return spec


def install() -> None:
    """Makes Python import the modules of plugins directories in this way."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
