"""The table of PDK functions: how one is found, checked and run, and what Kong sends for it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.values import Failure, LuaError, lua_value, text


class Exit(Exception):
    """A PDK function ended the request: nothing is sent to the plugin server."""


class Hang(Exception):
    """A PDK function in which Kong waits without end."""


@dataclass
class Answer:
    """What Kong sends after a PDK call.

    :ivar method: the Step method; over ProtoBuf:1 the message.
    :ivar data: its Data, if it has one.
    :ivar frame: over ProtoBuf:1, the message as bytes.
    """

    method: str
    has_data: bool = False
    data: Any = None
    frame: bytes = b""


@dataclass(frozen=True)
class _Function:
    run: Callable[..., Any]
    since: str
    phases: str
    step: str
    not_in_log: bool


_TABLE: dict[str, _Function] = {}

# Kong's phase lists, worded as Kong words them in its refusals.
ANY = ""
REQUEST = "rewrite, access, response, header_filter, body_filter, log, error, admin_api"
ROUTED = "access, response, header_filter, body_filter, log"
ACCESS = "access"
BODY = "rewrite, access, response, error, admin_api"
RESPONSE = "response, header_filter, body_filter, log, error, admin_api"
RESPONSE_CHANGE = "rewrite, access, balancer, response, header_filter, error, admin_api"
SERVICE_RESPONSE = "response, header_filter, body_filter, log"
TO_SERVICE = "rewrite, access, balancer"
TO_SERVICE_EARLY = "rewrite, access"
BALANCER = "rewrite, access, balancer, preread"

# What still works in the log event of Kong 2.x, which runs outside of the request.
_LOG_PHASE_2X = re.compile(
    r"kong\.(log(\..*)?|ip\.is_trusted|node\..*|nginx\.get_subsystem|table\..*|vault\..*)$"
)
_LOG_PHASE_28 = re.compile(
    r"kong\.(ctx\.shared\..*|nginx\.(get|set)_ctx|request\.get_headers?"
    r"|response\.get_(status|headers?|source))$"
)


def pdk(
    name: str,
    phases: str = ANY,
    *,
    since: str = "2.0",
    step: str = "Step",
    not_in_log: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        _TABLE[name] = _Function(run, since, phases, step, not_in_log)
        return run

    return register


def has(exchange: Exchange, name: str) -> bool:
    """Whether the exchange's Kong has the PDK function ``name``."""
    function = _TABLE.get(name)
    return function is not None and exchange.version.knows(function.since)


def call(exchange: Exchange, name: str, args: list[Any]) -> Any:
    """Run the PDK function ``name``, which must exist, and return its result.

    :raises LuaError: Kong refuses the call.
    :raises Exit: the function ended the request.
    :raises Hang: Kong waits without end.
    """
    function = _TABLE[name]
    _check_phase(exchange, name, function)
    if function.not_in_log:
        check.in_request(exchange)
    return function.run(exchange, *_fit(function.run, args))


def answer(exchange: Exchange, name: str, args: list[Any]) -> Answer:
    """Run the PDK function ``name`` and return what Kong sends for it over MsgPack:1.

    :raises LuaError: Kong refuses the call and never steps the event again.
    :raises Exit: the function ended the request.
    :raises Hang: Kong waits without end.
    """
    if not has(exchange, name):
        if any(known.startswith(f"{name}.") for known in _TABLE) or name in _VALUES:
            kind = _VALUES.get(name, "table")
            raise LuaError(f"attempt to call local 'method' (a {kind} value)")
        exchange.log("err", f"could not find pdk method: {name}")
        return Answer("plugin.Step")
    value = call(exchange, name, args)
    method = f"plugin.{_TABLE[name].step}"
    if isinstance(value, Failure):
        if exchange.version.step_error:
            return Answer("plugin.StepError", True, value.reason)
        value = None
    value = lua_value(value)
    return Answer(method) if value is None else Answer(method, True, value)


_VALUES = {"kong.version": "string", "kong.version_num": "number", "kong.configuration": "table"}


def _fit(run: Callable[..., Any], args: list[Any]) -> list[Any]:
    # Lua gives nil for arguments left out, and drops those too many.
    code = run.__code__
    if code.co_flags & inspect.CO_VARARGS:
        return args
    most = code.co_argcount - 1
    fewest = most - len(run.__defaults__ or ())
    return (args + [None] * max(fewest - len(args), 0))[:most]


def _check_phase(exchange: Exchange, name: str, function: _Function) -> None:
    phase = exchange.phase
    in_preread = phase == "preread" and function.phases in (ROUTED, RESPONSE_CHANGE)
    if function.phases and phase not in function.phases.split(", ") and not in_preread:
        raise LuaError(f"function cannot be called in {phase} phase (only in: {function.phases})")
    if phase != "log" or exchange.version.number >= (3, 0):
        return
    works = _LOG_PHASE_2X.match(name) or (not exchange.version.oldest and _LOG_PHASE_28.match(name))
    if not works:
        raise LuaError("API disabled in the current context")


def as_key(key: Any) -> Any:
    return text(key) if isinstance(key, bytes) else key


def put(store: dict[Any, Any], key: Any, value: Any) -> None:
    if key is None:
        raise LuaError("table index is nil")
    if value is None:
        store.pop(as_key(key), None)
    else:
        store[as_key(key)] = value
