"""From a plugins directory to loaded plugins.

A plugin is a file ``NAME.py`` or a compiled module ``NAME.*.so``, or a package directory ``NAME``.
Names that start with a dot or an underscore are passed over: modules that plugins share can be
called ``_something.py`` and imported with ``from . import _something``. The directory itself is
not put on ``sys.path``, so that a plugin called ``json`` hides no other module: each plugin is a
submodule of a package that stands for its directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any, Optional, Union

from kongps import kong_pdk_shim
from kongps.errors import PluginError, PluginNameError, ServerError
from kongps.layouts import Source, find
from kongps.plugin import Plugin

__all__ = [
    "MAX_NAME_LENGTH",
    "Loaded",
    "check_name",
    "from_object",
    "load_directory",
    "load_plugin",
    "valid_name",
]

# A file name has 255 bytes; the longest suffix of a compiled module takes some 40 of them.
MAX_NAME_LENGTH = 200

# Kong writes a plugin's name into a Lua module's name (where a dot is a separator), into a list
# with commas in kong.conf, and into URLs of its Admin API. It checks none of that itself.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# A compiled module's suffix between its name and ".so" that some interpreter could have made.
_ABI_TAG = re.compile(r"\.(?:cpython-|cp|abi|pypy|graalpy)[A-Za-z0-9_-]*\.so")


@dataclass
class Loaded:
    """What :func:`load_directory` found.

    :ivar plugins: by name, in the order of their names.
    :ivar errors: one for each plugin that could not be loaded.
    """

    plugins: dict[str, Plugin] = field(default_factory=dict)
    errors: list[PluginError] = field(default_factory=list)


# Names


def valid_name(name: object) -> bool:
    """Whether `name` can be a plugin's name: letters, digits, ``_`` and ``-``, no ``_-`` first."""
    return (
        isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None
    )


def check_name(name: object) -> str:
    """`name`, when it can be a plugin's name. Done before a name gets to the file system.

    :raises PluginNameError: when it cannot.
    """
    if valid_name(name):
        return name  # type: ignore[return-value]
    shown = name if isinstance(name, str) else repr(name)
    if len(shown) > MAX_NAME_LENGTH:
        raise PluginNameError(f"{shown[:40]}…", f"a name has at most {MAX_NAME_LENGTH} characters")
    raise PluginNameError(
        shown, "a name consists of letters, digits, _ and -, and starts with a letter or a digit"
    )


# Files


@dataclass(frozen=True)
class _File:
    """A file, or a package directory, that may be a plugin."""

    name: str
    path: str
    entry: str  # what it is called in its directory
    foreign: bool = False  # a module compiled for another interpreter


def _plugin_file(entry: os.DirEntry[str]) -> Optional[_File]:
    """The plugin that a directory entry is, or None.

    Its name is not checked yet: a package directory with a name that cannot be one is no plugin,
    a file ``a.b.py`` is a mistake to tell of.
    """
    if entry.name.startswith((".", "_")):
        return None
    if entry.is_dir():
        init = os.path.join(entry.path, "__init__.py")
        if valid_name(entry.name) and os.path.isfile(init):
            return _File(entry.name, init, entry.name)
        return None
    if entry.name.endswith(".py"):
        return _File(entry.name[: -len(".py")], entry.path, entry.name)
    if not entry.name.endswith(".so"):
        return None
    # The longest suffix first: ".so" alone is one of them.
    for suffix in sorted(EXTENSION_SUFFIXES, key=len, reverse=True):
        stem = entry.name[: -len(suffix)]
        if entry.name.endswith(suffix) and (suffix != ".so" or valid_name(stem)):
            return _File(stem, entry.path, entry.name)
    stem = _ABI_TAG.sub("", entry.name)
    return _File(stem.removesuffix(".so"), entry.path, entry.name, foreign=stem != entry.name)


def _scan(directory: str) -> dict[str, list[_File]]:
    """The files of each plugin in a directory, by its name."""
    files: dict[str, list[_File]] = {}
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            found = _plugin_file(entry)
            if found is not None:
                files.setdefault(found.name, []).append(found)
    return files


def _only(name: str, files: list[_File]) -> _File:
    """The one file to load a plugin from.

    :raises PluginError: when there are several, or only one for another interpreter.
    """
    usable = [each for each in files if not each.foreign]
    if not usable:
        raise PluginError(
            name,
            f"{files[0].path}: it was compiled for another Python than this one, "
            f"{sys.implementation.cache_tag}; compile it again with {sys.executable}",
        )
    if len(usable) > 1:
        entries = " and ".join(each.entry for each in usable)
        raise PluginError(name, f"{entries} are both this plugin; remove or rename one")
    return usable[0]


# Loading


def load_plugin(
    directory: Union[str, os.PathLike[str]], name: str, *, lua_style: bool = True
) -> Plugin:
    """Loads one plugin.

    :param directory: the plugins directory.
    :param name: the plugin's name.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :raises PluginNameError: when `name` cannot be a plugin's.
    :raises PluginError: when there is no such plugin, or it cannot be loaded.
    """
    check_name(name)
    directory = os.path.abspath(directory)
    try:
        files = _scan(directory).get(name)
    except OSError as error:
        raise PluginError(name, f"the plugins directory cannot be read: {error}") from error
    if not files:
        raise PluginError(name, f"there is no {name}.py, {name}.*.so or {name}/ in {directory}")
    return _load(directory, _only(name, files), lua_style=lua_style)


def load_directory(directory: Union[str, os.PathLike[str]], *, lua_style: bool = True) -> Loaded:
    """Loads all plugins of a directory; one that fails does not keep the others from loading.

    :param directory: the plugins directory.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :raises ServerError: when the directory cannot be read.
    """
    directory = os.path.abspath(directory)
    try:
        files = _scan(directory)
    except OSError as error:
        raise ServerError(f"the plugins directory cannot be read: {error}") from error
    loaded = Loaded()
    for name, candidates in files.items():
        try:
            check_name(name)
            file = _only(name, candidates)
            loaded.plugins[name] = _load(directory, file, lua_style=lua_style)
        except PluginNameError as error:
            reason = f"{candidates[0].path}: {error.reason}"
            loaded.errors.append(PluginNameError(error.plugin, reason))
        except PluginError as error:
            loaded.errors.append(error)
    return loaded


def from_object(obj: Any, *, name: Optional[str] = None, lua_style: bool = True) -> Plugin:
    """Makes a plugin of a class or a module that is there already, for tests and embedding.

    :param obj: a module, as a file in a plugins directory would be; or a class alone, whose own
        attributes then give version, priority and schema.
    :param name: the plugin's name; without it, the last part of the module's name, or the
        class's name in lower case.
    :raises PluginError: when it is no plugin.
    """
    cls = obj if isinstance(obj, type) else None
    module = obj if isinstance(obj, types.ModuleType) else None
    if cls is None and module is None:
        raise PluginError(str(name), f"expected a class or a module, got {type(obj).__name__}")
    if name is None:
        name = cls.__name__.lower() if cls else obj.__name__.rpartition(".")[2].strip("_")
    check_name(name)
    path = getattr(sys.modules.get(obj.__module__) if cls else obj, "__file__", None) or ""
    return find(_source(name, module, path), cls, lua_style=lua_style)


def _load(directory: str, file: _File, *, lua_style: bool) -> Plugin:
    kong_pdk_shim.install()
    module = _import(directory, file)
    return find(_source(file.name, module, file.path), lua_style=lua_style)


def _source(name: str, module: Optional[types.ModuleType], path: str) -> Source:
    try:
        modified = os.stat(path).st_mtime if path else 0.0
    except OSError:
        modified = 0.0
    return Source(name, module, path, modified, lambda error: _describe(error, path))


# Importing


def _package(directory: str) -> str:
    """The name of the package that stands for a directory; makes the package."""
    real = os.path.realpath(directory)
    name = f"kongps_plugins_{hashlib.sha256(os.fsencode(real)).hexdigest()[:12]}"
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
    ours = (name, f"{name}.")

    def taken() -> dict[str, types.ModuleType]:
        return {
            key: sys.modules.pop(key)
            for key in list(sys.modules)
            if key == name or key.startswith(ours[1])
        }

    before = taken()
    try:
        yield
    except BaseException:
        taken()
        sys.modules.update(before)
        raise


def _import(directory: str, file: _File) -> types.ModuleType:
    package = _package(directory)
    name = f"{package}.{file.name}"
    inside = file.entry == file.name  # a package directory
    spec = importlib.util.spec_from_file_location(
        name,
        file.path,
        submodule_search_locations=[os.path.dirname(file.path)] if inside else None,
    )
    if spec is None or spec.loader is None:
        raise PluginError(file.name, f"{file.path}: Python cannot import such a file")
    importlib.invalidate_caches()
    try:
        with _fresh(name):
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit too: it must not end the server
        raise PluginError(file.name, _describe(error, file.path)) from error
    setattr(sys.modules[package], file.name, module)
    return module


def _describe(error: BaseException, path: str) -> str:
    """What went wrong in plugin code: ``FILE:LINE: Type: message``."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
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
        return os.path.basename(filename).partition(".")[0] == entry.partition(".")[0]
    return filename == path
