"""From a plugins directory to loaded plugins.

A plugin is a file ``NAME.py``, a compiled module or native library ``NAME.*.so``, or a package
directory ``NAME``. Compiled files are checked before anything of them is loaded.
Names that start with a dot or an underscore are passed over: modules that plugins share can be
called ``_something.py`` and imported with ``from . import _something``. The directory itself is
not put on ``sys.path``, so that a plugin called ``json`` hides no other module: each plugin is a
submodule of a package that stands for its directory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, FileFinder
from typing import Any, NamedTuple, Optional, Union

from kongps.compiled import load as compiled
from kongps.errors import PluginError, PluginNameError, ServerError
from kongps.kong_pdk import shim as kong_pdk_shim
from kongps.plugins.layouts import Source, find
from kongps.plugins.plugin import Plugin
from kongps.plugins.trust import refused_entries

__all__ = [
    "MAX_NAME_LENGTH",
    "Examined",
    "Loaded",
    "check_name",
    "examine",
    "from_object",
    "load_directory",
    "load_plugin",
    "shown_name",
    "valid_name",
]

# A file name has 255 bytes; the longest suffix of a compiled module takes some 40 of them.
MAX_NAME_LENGTH = 200

# Kong writes a plugin's name into a Lua module's name (where a dot is a separator), into a list
# with commas in kong.conf, and into URLs of its Admin API. It checks none of that itself.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# A compiled module's suffix between its name and ".so" that some interpreter could have made.
_ABI_TAG = r"\.(?:cpython-|cp|abi|pypy|graalpy)[A-Za-z0-9_-]*\.so"


class Loaded:
    """What :func:`load_directory` found.

    :ivar plugins: by name, in the order of their names.
    :ivar errors: one for each plugin that could not be loaded.
    """

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}
        self.errors: list[PluginError] = []


# Names


def valid_name(name: object) -> bool:
    """Whether `name` can be a plugin's name: letters, digits, ``_`` and ``-``, no ``_-`` first."""
    return (
        isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None
    )


def shown_name(name: str) -> str:
    """`name` as it is kept and shown: the beginning of one that is too long for a plugin's."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[:40]}…"


def check_name(name: object) -> str:
    """`name`, when it can be a plugin's name. Done before a name gets to the file system.

    :raises PluginNameError: when it cannot.
    """
    if valid_name(name):
        return name  # type: ignore[return-value]
    shown = name if isinstance(name, str) else repr(name)
    if len(shown) > MAX_NAME_LENGTH:
        raise PluginNameError(shown_name(shown), f"a name has at most {MAX_NAME_LENGTH} characters")
    raise PluginNameError(
        shown, "a name consists of letters, digits, _ and -, and starts with a letter or a digit"
    )


# Files


class _File(NamedTuple):
    """A file, or a package directory, that may be a plugin."""

    name: str
    path: str
    package: bool = False  # the `__init__` of a package directory
    compiled: bool = False
    foreign: bool = False  # a module compiled for another interpreter, by its name
    native: bool = False  # a library with a native plugin's table


def _plugin_files(entry: os.DirEntry[str]) -> Iterator[_File]:
    """The plugin that a directory entry is; a package may have its ``__init__`` several times.

    Its name is not checked yet: a package directory with a name that cannot be one is no plugin,
    a file ``a.b.py`` is a mistake to tell of.
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


def _module_file(entry: str, path: str) -> Optional[_File]:
    if entry.endswith(".py"):
        return _File(entry[: -len(".py")], path)
    if not entry.endswith(".so"):
        return None
    # The longest suffix first: ".so" alone is one of them.
    for suffix in sorted(EXTENSION_SUFFIXES, key=len, reverse=True):
        stem = entry[: -len(suffix)]
        plain = valid_name(stem) or stem == "__init__"
        if entry.endswith(suffix) and (suffix != ".so" or plain):
            return _File(stem, path, compiled=True)
    stem = re.sub(_ABI_TAG, "", entry)
    return _File(stem.removesuffix(".so"), path, compiled=True, foreign=stem != entry)


def _scan(directory: str) -> dict[str, list[_File]]:
    """The files of each plugin in a directory, by its name."""
    files: dict[str, list[_File]] = {}
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            for found in _plugin_files(entry):
                files.setdefault(found.name, []).append(found)
    return files


def _only(name: str, files: list[_File]) -> _File:
    """The one file to load a plugin from; a compiled one has been checked.

    :raises CompatError: when there are several, or only ones that do not fit what is running.
    """
    file = files[0]
    if len(files) > 1 or file.compiled:
        file = _checked(name, files)
    if file.package:
        _check_modules(name, os.path.dirname(file.path))
    return file


def _checked(name: str, files: list[_File]) -> _File:
    from kongps.compiled import checks as compat

    usable = [each for each in files if not each.foreign] or files[:1]
    objects = [each.path for each in usable if each.compiled]
    sources = [each.path for each in usable if not each.compiled]
    path = compat.choose(name, objects, sources)
    (file,) = (each for each in usable if each.path == path)
    native = False
    if file.compiled:
        native = compat.check_object(name, path) == "native"
        compat.check_source(name, path)
    return file._replace(native=native)


def _check_modules(name: str, directory: str) -> None:
    """Checks the compiled modules of a package, where Python would not find another file."""
    for parent, _, entries in os.walk(directory):
        modules: dict[str, list[_File]] = {}
        for entry in sorted(entries):
            found = _module_file(entry, os.path.join(parent, entry))
            if found is not None:
                modules.setdefault(found.name, []).append(found)
        for files in modules.values():
            usable = [each for each in files if not each.foreign] or files[:1]
            for each in usable:
                if each.compiled:
                    from kongps.compiled import checks as compat

                    compat.check_object(name, each.path)


class Examined(NamedTuple):
    """A plugin's files, looked at without loading the plugin.

    :ivar path: the file that would be loaded; the first one when there is an error.
    :ivar compiled: whether one of its files is compiled.
    :ivar used: whether the file that would be loaded is compiled.
    :ivar error: why it cannot be loaded, as far as the files tell.
    """

    name: str
    path: str
    compiled: bool
    used: bool
    error: Optional[PluginError]


def examine(directory: Union[str, os.PathLike[str]]) -> list[Examined]:
    """Looks at the files of a plugins directory; nothing is loaded.

    :raises ServerError: when the directory cannot be read.
    """
    examined = []
    for name, files in _scanned(os.path.abspath(directory)).items():
        compiled = any(each.compiled for each in files)
        chosen = next((each for each in files if each.compiled), files[0])
        error: Optional[PluginError] = None
        try:
            check_name(name)
            chosen = _only(name, files)
        except PluginError as caught:
            error = caught
        used = chosen.compiled and error is None
        examined.append(Examined(name, chosen.path, compiled, used, error))
    return examined


def _scanned(directory: str) -> dict[str, list[_File]]:
    try:
        return _scan(directory)
    except OSError as error:
        raise ServerError(f"the plugins directory cannot be read: {error}") from error


# Loading


def load_plugin(
    directory: Union[str, os.PathLike[str]],
    name: str,
    *,
    lua_style: bool = True,
    checked: bool = False,
) -> Plugin:
    """Loads one plugin.

    :param directory: the plugins directory.
    :param name: the plugin's name.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :param checked: whether to refuse what others than root and this user may write.
    :raises ServerError: when that is the whole directory.
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
    unsafe = _unsafe(directory) if checked else {}
    return _load(directory, _only(name, files), lua_style=lua_style, unsafe=unsafe)


def load_directory(
    directory: Union[str, os.PathLike[str]], *, lua_style: bool = True, checked: bool = False
) -> Loaded:
    """Loads all plugins of a directory; one that fails does not keep the others from loading.

    :param directory: the plugins directory.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :param checked: whether to refuse what others than root and this user may write.
    :raises ServerError: when the directory cannot be read, or is refused.
    """
    directory = os.path.abspath(directory)
    unsafe = _unsafe(directory) if checked else {}
    loaded = Loaded()
    for name, candidates in _scanned(directory).items():
        try:
            check_name(name)
            file = _only(name, candidates)
            loaded.plugins[name] = _load(directory, file, lua_style=lua_style, unsafe=unsafe)
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


def _unsafe(directory: str) -> dict[str, str]:
    """Why plugins of a directory are refused, by their entries in it.

    :raises ServerError: when it is the directory, or something that any plugin may import; or it
        cannot be read.
    """
    unsafe: dict[str, str] = {}
    own = {_entry(directory, each) for files in _scanned(directory).values() for each in files}
    try:
        for entry, reason in refused_entries(directory):
            if entry not in own:
                raise ServerError(f"no plugin is loaded: {reason}")
            unsafe.setdefault(entry, reason)
    except OSError as error:
        raise ServerError(f"the plugins directory cannot be read: {error}") from error
    return unsafe


def _entry(directory: str, file: _File) -> str:
    """What a plugin is called in its directory: a file, or a package directory."""
    return os.path.relpath(file.path, directory).partition(os.sep)[0]


def _load(directory: str, file: _File, *, lua_style: bool, unsafe: dict[str, str]) -> Plugin:
    if _entry(directory, file) in unsafe:
        raise PluginError(file.name, unsafe[_entry(directory, file)])
    if file.native:
        from kongps.compiled import native

        return native.load(file.name, file.path)
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
        raise PluginError(file.name, _describe(error, file.path)) from error
    setattr(sys.modules[package], file.name, module)
    return module


def _forget_listings() -> None:
    """Has directories looked at anew: a file that was just written may not be known yet.

    ``importlib.invalidate_caches`` would do; since Python 3.13 it imports importlib.metadata for
    its cache, and much with that.
    """
    for finder in list(sys.path_importer_cache.values()):
        if isinstance(finder, FileFinder):
            finder.invalidate_caches()


def _describe(error: BaseException, path: str) -> str:
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
