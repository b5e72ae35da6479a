"""Imports a plugin's file, and describes what its code raised while it was imported.

A plugins directory is not put on ``sys.path``, so that a plugin called ``json`` hides no other
module: each plugin is a submodule of a package that stands for its directory, and imports modules
beside it with ``from . import _something``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from importlib.machinery import FileFinder

from kongps.compiled import load as compiled
from kongps.errors import PluginError
from kongps.plugins.files import PluginFile

__all__ = ["describe_error", "import_plugin"]


def _package(directory: str) -> str:
    """The name of the package that stands for a directory; makes the package."""
    real = os.path.realpath(directory)
    name = compiled.PACKAGE + "".join(
        each if each.isascii() and each.isalnum() else f"_{ord(each):x}_" for each in real
    )
    if name not in sys.modules:
        package = types.ModuleType(name, f"The plugins in {real}.")
        package.__path__ = [real]
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = package.__path__
        package.__spec__ = spec
        sys.modules[name] = package
    return name


@contextlib.contextmanager
def _fresh(name: str) -> Iterator[None]:
    """Takes a module and its submodules out of ``sys.modules``; back in when the body raises."""

    def taken() -> dict[str, types.ModuleType]:
        return {
            key: sys.modules.pop(key)
            for key in list(sys.modules)
            if key == name or key.startswith(f"{name}.")
        }

    before = taken()
    try:
        yield
    except BaseException:
        taken()
        sys.modules.update(before)
        raise


def import_plugin(directory: str, file: PluginFile) -> types.ModuleType:
    package = _package(directory)
    name = f"{package}.{file.name}"
    spec = importlib.util.spec_from_file_location(
        name,
        file.path,
        loader=compiled.Loader(name, file.path) if file.compiled else None,
        submodule_search_locations=[os.path.dirname(file.path)] if file.package else None,
    )
    if spec is None or spec.loader is None:
        raise PluginError(file.name, f"{file.path}: Python cannot import such a file")
    compiled.install()
    _forget_listings()
    try:
        with _fresh(name):
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit too: it must not end the server
        raise PluginError(file.name, describe_error(error, file.path)) from error
    setattr(sys.modules[package], file.name, module)
    return module


def _forget_listings() -> None:
    """Makes Python read directories again: it may not know a file that was just written.

    ``importlib.invalidate_caches`` would do; since Python 3.13 it imports importlib.metadata for
    its cache, and much with that.
    """
    for finder in list(sys.path_importer_cache.values()):
        if isinstance(finder, FileFinder):
            finder.invalidate_caches()


def describe_error(error: BaseException, path: str) -> str:
    """What went wrong in plugin code: ``FILE:LINE: Type: message``."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    import traceback

    place = path
    # The last line of the plugin's own, not one of a library's that it called.
    for frame in traceback.extract_tb(error.__traceback__):
        if path and frame.lineno and _is_own(frame.filename, path):
            place = f"{frame.filename}:{frame.lineno}"
    text = " ".join(str(error).split())
    described = type(error).__name__ + (f": {text}" if text else "")
    return f"{place}: {described}" if place else described


def _is_own(filename: str, path: str) -> bool:
    """Whether a line of `filename` belongs to the plugin in `path`."""
    directory, entry = os.path.split(path)
    if entry == "__init__.py":
        return filename.startswith(directory + os.sep)
    if path.endswith(".so"):  # its lines are those of the source it was compiled from
        if entry.startswith("__init__."):
            return os.path.basename(directory) in os.path.dirname(filename).split(os.sep)
        return os.path.basename(filename).partition(".")[0] == entry.partition(".")[0]
    return filename == path
