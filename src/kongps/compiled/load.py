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
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from typing import Any, Optional

__all__ = ["PACKAGE", "Loader", "compiled_name", "install"]

# What the names of packages that stand for plugins directories begin with.
PACKAGE = "kongps_plugins"

_loaded: dict[tuple[Any, ...], types.ModuleType] = {}


def compiled_name(name: str) -> str:
    """The name that is built into a compiled module.

    :param name: the module's, in its plugins directory: ``key-gate``, ``shop.rules``.
    """
    parts = [part.replace("-", "_") for part in name.split(".")]
    return ".".join(
        [
            PACKAGE,
            *(
                part if part.isidentifier() and not keyword.iskeyword(part) else f"plugin_{part}"
                for part in parts
            ),
        ]
    )


class Loader(ExtensionFileLoader):
    """Loads a compiled module of a plugin."""

    def _key(self) -> tuple[Any, ...]:
        stat = os.stat(self.path)
        return (os.path.realpath(self.path), stat.st_dev, stat.st_ino, stat.st_mtime_ns)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """The module; the one there is already when this file has been loaded before."""
        key = self._key()
        if key in _loaded:
            return _loaded[key]
        if not any(each[0] == key[0] for each in _loaded):
            return super().create_module(spec)
        # The dynamic linker gives the old library for a name that it knows, whatever is there by
        # now. So it gets a name that it does not know; the file stays open to keep it so.
        origin = spec.origin
        spec.origin = f"/proc/self/fd/{os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)}"
        try:
            return super().create_module(spec)
        finally:
            spec.origin = origin

    def exec_module(self, module: types.ModuleType) -> None:
        """Runs the module's code, once."""
        key = self._key()
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
