"""From a plugins directory to loaded plugins; see :mod:`kongps.plugins.files` for its files."""

from __future__ import annotations

import os
import sys
import types
from typing import Any, Optional, Union

from kongps.errors import PluginError, PluginNameError, ServerError
from kongps.kong_pdk import shim as kong_pdk_shim
from kongps.plugin_names import check_name
from kongps.plugins.attributes import Source
from kongps.plugins.files import PluginFile, chosen_file, entry_of, scan
from kongps.plugins.importing import describe_error, import_plugin
from kongps.plugins.layouts import find, native_plugin
from kongps.plugins.plugin import Plugin
from kongps.plugins.trust import refused_entries

__all__ = ["Loaded", "from_object", "load_directory", "load_plugin"]


class Loaded:
    """What :func:`load_directory` found.

    :ivar plugins: by name, in the order of their names.
    :ivar errors: one for each plugin that could not be loaded.
    """

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}
        self.errors: list[PluginError] = []


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
    :param checked: refuse what anyone but root and this user can write.
    :raises ServerError: when the whole directory is refused.
    :raises PluginNameError: when `name` cannot be a plugin's.
    :raises PluginError: when there is no such plugin, or it cannot be loaded.
    """
    check_name(name)
    directory = os.path.abspath(directory)
    try:
        files = scan(directory).get(name)
    except ServerError as error:
        raise PluginError(name, str(error)) from error
    if not files:
        raise PluginError(name, f"there is no {name}.py, {name}.*.so or {name}/ in {directory}")
    unsafe = _unsafe(directory) if checked else {}
    return _load(directory, chosen_file(name, files), lua_style=lua_style, unsafe=unsafe)


def load_directory(
    directory: Union[str, os.PathLike[str]], *, lua_style: bool = True, checked: bool = False
) -> Loaded:
    """Loads all plugins of a directory; one that fails does not keep the others from loading.

    :param directory: the plugins directory.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :param checked: refuse what anyone but root and this user can write.
    :raises ServerError: when the directory cannot be read, or is refused.
    """
    directory = os.path.abspath(directory)
    unsafe = _unsafe(directory) if checked else {}
    loaded = Loaded()
    for name, candidates in scan(directory).items():
        try:
            check_name(name)
            file = chosen_file(name, candidates)
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
    own = {entry_of(directory, each) for files in scan(directory).values() for each in files}
    try:
        for entry, reason in refused_entries(directory):
            if entry not in own:
                raise ServerError(f"no plugin is loaded: {reason}")
            unsafe.setdefault(entry, reason)
    except OSError as error:
        raise ServerError(f"the plugins directory cannot be read: {error}") from error
    return unsafe


def _load(directory: str, file: PluginFile, *, lua_style: bool, unsafe: dict[str, str]) -> Plugin:
    if entry_of(directory, file) in unsafe:
        raise PluginError(file.name, unsafe[entry_of(directory, file)])
    if file.native:
        return native_plugin(_source(file.name, None, file.path))
    kong_pdk_shim.install()
    module = import_plugin(directory, file)
    return find(_source(file.name, module, file.path), lua_style=lua_style)


def _source(name: str, module: Optional[types.ModuleType], path: str) -> Source:
    try:
        modified = os.stat(path).st_mtime if path else 0.0
    except OSError:
        modified = 0.0
    return Source(name, module, path, modified, lambda error: describe_error(error, path))
