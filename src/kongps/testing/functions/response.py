"""``kong.response``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.testing.exchange import Exchange, set_headers
from kongps.testing.functions import check
from kongps.testing.functions.table import RESPONSE, RESPONSE_CHANGE, Exit, pdk
from kongps.testing.values import LuaError, MultiMap, lua_type, text

pdk("kong.response.get_status", RESPONSE)(lambda x: x.status)
pdk("kong.response.get_source", RESPONSE)(lambda x: x.result.source)
pdk("kong.response.get_header", RESPONSE)(
    lambda x, name: x.headers.get(check.string(name, "header name"))
)


@pdk("kong.response.get_headers", RESPONSE, step="StepMultiMap")
def _response_headers(x: Exchange, max_headers: Any = None) -> MultiMap:
    if x.phase == "log":
        return MultiMap(x.headers.multi())
    limit = check.limit(max_headers, "max_headers")
    # nginx keeps some headers apart from its list, and the limit is on the list.
    apart = {"content-type", "connection"}
    every = x.headers.multi()
    found = MultiMap({name: every[name] for name in every if name in apart})
    found.setdefault("connection", ["keep-alive"])
    left = limit if max_headers is None else limit - 1
    for name, value in x.headers.lines():
        if name.lower() not in apart and left > 0:
            found.setdefault(name.lower(), []).append(value)
            left -= 1
    return found


def status_code(value: Any, low: int = 100) -> int:
    if lua_type(value) != "number":
        raise LuaError("code must be a number")
    if not low <= value <= 599:
        raise LuaError(f"code must be a number between {low} and 599")
    return int(value)


@pdk("kong.response.set_status", RESPONSE_CHANGE)
def _set_status(x: Exchange, code: Any) -> None:
    x.status = status_code(code)


@pdk("kong.response.set_header", RESPONSE_CHANGE)
def _set_header(x: Exchange, name: Any, value: Any = None) -> None:
    x.headers.set(*check.header(name, value))


@pdk("kong.response.add_header", RESPONSE_CHANGE)
def _add_header(x: Exchange, name: Any, value: Any = None) -> None:
    x.headers.add(*check.header(name, value))


@pdk("kong.response.clear_header", RESPONSE_CHANGE)
def _clear_header(x: Exchange, name: Any) -> None:
    x.headers.remove(check.string(name, "header name"))


@pdk("kong.response.set_headers", RESPONSE_CHANGE)
def _set_headers(x: Exchange, headers: Any) -> None:
    set_headers(x.headers, check.headers(headers))


def _exit_headers(headers: Any) -> Any:
    if headers is not None and not isinstance(headers, (Mapping, list)):
        raise LuaError("headers must be a nil or table")
    return headers or None


@pdk("kong.response.exit", RESPONSE_CHANGE)
def _exit(x: Exchange, status: Any, body: Any = None, headers: Any = None) -> None:
    code = status_code(status)
    if body is not None and not isinstance(body, (str, bytes, Mapping, list)):
        raise LuaError("body must be a nil, string or table")
    x.exit(code, body, _exit_headers(headers))
    raise Exit


@pdk("kong.response.error", RESPONSE_CHANGE, since="2.1")
def _error(x: Exchange, status: Any, message: Any = None, headers: Any = None) -> None:
    code = status_code(status, 400)
    if message is not None and not isinstance(message, (str, bytes)):
        raise LuaError("message must be a nil or a string")
    x.error(code, None if message is None else text(message), _exit_headers(headers))
    raise Exit
