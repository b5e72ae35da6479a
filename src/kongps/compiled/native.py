"""Native plugins: shared libraries with the C interface of ``include/kongps/plugin.h``.

A library is opened through cffi in ABI mode, so that no compiler is needed; its table is read and
checked here, once. What runs for each event is :class:`kongps.core.runners.native.NativeHandler`.
"""

from __future__ import annotations

import json
from typing import Any, Optional

import cffi
import msgspec

from kongps import errors
from kongps._version import PLUGIN_API
from kongps.compiled.checks import NATIVE_SYMBOL, OLDEST_PLUGIN_API
from kongps.compiled.load import FileKey, file_key, path_to_open
from kongps.core.runners.native import NativeHandler, use_log_arguments
from kongps.pdk import functions as _functions  # noqa: F401  (registers the table of functions)
from kongps.pdk.log import log_arguments
from kongps.phases import PHASE_NAMES

__all__ = ["CDEF", "NativeInstance", "NativeLibrary"]

# The part of plugin.h that a plugin's table is made of; test_native_plugins compares the two.
CDEF = """
typedef int (*kongps_handler)(void *instance, void *kong);

typedef struct kongps_plugin_table {
    uint32_t api;
    uint32_t size;
    const char *version;
    int32_t priority;
    uint32_t phases;
    const char *schema;
    int (*new_instance)(const char *config, size_t size, void **instance, char *error);
    void (*close_instance)(void *instance);
    kongps_handler certificate;
    kongps_handler rewrite;
    kongps_handler access;
    kongps_handler response;
    kongps_handler preread;
    kongps_handler log;
} kongps_plugin_table;
"""

use_log_arguments(log_arguments)

_OK = 0
_ERROR_SIZE = 512

_ffi = cffi.FFI()
_ffi.cdef(CDEF + f"extern kongps_plugin_table {NATIVE_SYMBOL};")

# Libraries stay open: code of theirs may be on a handler's stack, and dlclose would take it away.
_open: dict[FileKey, Any] = {}


class NativeLibrary:
    """The table of a native plugin, whose file has been checked.

    :ivar version: the plugin's version; empty when its table has none.
    :ivar priority: the plugin's priority.
    :ivar phases: the phases that it has handlers for.
    :ivar schema: its schema as it is written in the table, decoded.

    :param name: the plugin's name.
    :param path: the library.
    :raises errors.PluginError: when it cannot be opened or its table is not a plugin's.
    """

    def __init__(self, name: str, path: str) -> None:
        self._table = _table(name, path)
        self.version = _text(self._table.version)
        self.priority: int = self._table.priority
        self.phases = _phases(name, path, self._table)
        self.schema = _schema(name, path, self._table)

    def new_instance(self, config: dict[str, Any]) -> NativeInstance:
        """Makes an instance for one configuration.

        :raises errors.ConfigError: for text in it that is not UTF-8.
        :raises errors.NativeError: when the plugin's own function fails.
        """
        return NativeInstance(self._table, self.phases, config)


def _table(name: str, path: str) -> Any:
    key = file_key(path)
    library = _open.get(key)
    try:
        if library is None:
            place = path_to_open(path, _open)
            library = _open[key] = _ffi.dlopen(place, _ffi.RTLD_NOW | _ffi.RTLD_LOCAL)
        table = _ffi.addressof(library, NATIVE_SYMBOL)
    except (OSError, AttributeError) as error:
        raise errors.PluginError(name, f"{path}: it cannot be loaded: {error}") from None
    if table.api > PLUGIN_API or table.api < OLDEST_PLUGIN_API:
        kind = errors.PluginAPITooNew if table.api > PLUGIN_API else errors.PluginAPITooOld
        raise kind(
            name,
            f"{path} uses another plugin API",
            f"plugin API {table.api}",
            f"plugin API {PLUGIN_API}",
            "building it again with this kongps/plugin.h",
        )
    if table.size < _ffi.sizeof("kongps_plugin_table"):
        raise errors.PluginError(
            name,
            f"{path}: its table has {table.size} bytes, fewer than the "
            f"{_ffi.sizeof('kongps_plugin_table')} of plugin API {PLUGIN_API}; set .size to "
            "sizeof(kongps_plugin_table)",
        )
    return table


def _text(pointer: Any) -> str:
    return "" if pointer == _ffi.NULL else _ffi.string(pointer).decode("utf-8", "replace")


def _phases(name: str, path: str, table: Any) -> list[str]:
    """The phases of its handlers; the bits and the handlers must agree."""
    phases = []
    for number, phase in enumerate(PHASE_NAMES):
        named = bool(table.phases & (1 << number))
        there = getattr(table, phase) != _ffi.NULL
        if named and not there:
            raise errors.PluginError(
                name, f"{path}: its phases name {phase}, but its handler for {phase} is NULL"
            )
        if there and not named:
            raise errors.PluginError(
                name,
                f"{path}: it has a handler for {phase}, but its phases do not name it; add "
                f"KONGPS_PHASE_BIT(KONGPS_{phase.upper()})",
            )
        if there:
            phases.append(phase)
    if table.phases >> len(PHASE_NAMES):
        raise errors.PluginError(
            name, f"{path}: its phases {table.phases:#x} name some that Kong does not have"
        )
    if not phases:
        raise errors.PluginError(name, f"{path}: it has no handler")
    return phases


def _schema(name: str, path: str, table: Any) -> Any:
    if table.schema == _ffi.NULL:
        raise errors.PluginError(
            name, f'{path}: its schema is NULL; for no configuration, write "[]"'
        )
    try:
        return json.loads(_ffi.string(table.schema))
    except (ValueError, RecursionError) as error:
        raise errors.PluginError(name, f"{path}: its schema is not JSON: {error}") from None


class NativeInstance:
    """An instance of a native plugin, with a handler for each of its phases as attribute."""

    def __init__(self, table: Any, phases: list[str], config: dict[str, Any]) -> None:
        self._table = table
        self._pointer: Optional[Any] = _ffi.NULL
        if table.new_instance != _ffi.NULL:
            self._pointer = self._made(config)
        address = int(_ffi.cast("uintptr_t", self._pointer))
        for phase in phases:
            function = int(_ffi.cast("uintptr_t", getattr(table, phase)))
            setattr(self, phase, NativeHandler(function, address, self))

    def _made(self, config: dict[str, Any]) -> Any:
        try:
            text = msgspec.json.encode(config)
        except (UnicodeEncodeError, TypeError):
            raise errors.ConfigError("config", "expected text that is UTF-8") from None
        instance = _ffi.new("void **")
        error = _ffi.new("char[]", _ERROR_SIZE)
        code = self._table.new_instance(_ffi.from_buffer(text), len(text), instance, error)
        if code != _OK:
            reason = _ffi.string(error, _ERROR_SIZE).decode("utf-8", "replace")
            raise errors.NativeError(reason or f"new_instance returned {code}")
        return instance[0]

    def close(self) -> None:
        """Calls the plugin's ``close_instance``, once."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._table.close_instance != _ffi.NULL:
            self._table.close_instance(pointer)
