"""Checks of what PDK functions are called with: Kong's refusals, in Kong's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.values import LuaError, lua_tostring, lua_type, text


def in_request(exchange: Exchange) -> None:
    if exchange.phase == "log":
        raise LuaError("API disabled in the current context")


def string(value: Any, what: str) -> str:
    if not isinstance(value, (str, bytes)):
        raise LuaError(f"{what} must be a string")
    return text(value)


def integer(value: Any, what: str, low: int, high: int) -> int:
    if lua_type(value) != "number" or value != int(value):
        raise LuaError(f"{what} must be an integer")
    if not low <= value <= high:
        raise LuaError(
            f"{what} must be an integer between {low} and {high}: given {lua_tostring(value)}"
        )
    return int(value)


def limit(value: Any, what: str) -> int:
    if value is None:
        return 100
    if lua_type(value) != "number":
        raise LuaError(f"{what} must be a number")
    if value < 1:
        raise LuaError(f"{what} must be >= 1")
    if value > 1000:
        raise LuaError(f"{what} must be <= 1000")
    return int(value)


def table(value: Any, what: str) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value, 1))
    raise LuaError(f"{what} must be a table")


def header(name: Any, value: Any) -> tuple[str, Any]:
    found = string(name, "header name")
    if value is None:
        raise LuaError(
            f'invalid header value for "{found}": got nil, '
            "expected array of string, string, number or boolean"
        )
    return found, list(value.values()) if isinstance(value, Mapping) else value


def headers(value: Any) -> dict[str, Any]:
    found = table(value, "headers")
    for name in found:
        if not isinstance(name, (str, bytes)):
            raise LuaError(
                f'invalid header name "{lua_tostring(name)}": got {lua_type(name)}, expected string'
            )
    return {text(name): item for name, item in found.items()}
