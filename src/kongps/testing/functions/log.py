"""``kong.ctx``, ``kong.ip`` and ``kong.log``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.serialize import serialized
from kongps.testing.functions.table import as_key, pdk, put
from kongps.testing.values import LuaError, json_text, lua_tostring, lua_value

_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")


def _logger(level: str) -> Callable[..., None]:
    def log(x: Exchange, *args: Any) -> None:
        x.log(level, "".join(lua_tostring(item) for item in args), "plugin")

    return log


for _level in _LEVELS:
    pdk(f"kong.log.{_level}")(_logger(_level))
pdk("kong.log")(_logger("notice"))
pdk("kong.log.deprecation", since="2.6")(_logger("warn"))


pdk("kong.log.serialize", "log")(lambda x, options=None: json_text(serialized(x)))

pdk("kong.ctx.shared.get", since="2.3")(lambda x, key: x.shared.get(as_key(key)))
pdk("kong.ctx.shared.set", since="2.3")(lambda x, key, value=None: put(x.shared, key, value))
pdk("kong.ip.is_trusted")(lambda x, address: x.kong.is_trusted(check.string(address, "address")))


@pdk("kong.log.inspect")
def _inspect(x: Exchange, *args: Any) -> None:
    x.log("debug", " ".join(json_text(lua_value(item)) for item in args), "plugin")


@pdk("kong.log.set_serialize_value", since="2.3")
def _set_serialize_value(x: Exchange, key: Any, value: Any = None, options: Any = None) -> None:
    name = check.string(key, "key")
    mode = options.get("mode", "set") if isinstance(options, Mapping) else "set"
    if mode not in ("set", "add", "replace"):
        raise LuaError("mode must be 'set', 'add' or 'replace'")
    there = name in x.serialized
    if mode == "set" or (mode == "add" and not there) or (mode == "replace" and there):
        x.serialized[name] = value
