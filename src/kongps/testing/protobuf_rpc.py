"""ProtoBuf:1 from Kong's side: frames, calls, and events that hold their connection."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from kongps.core.wire.tables import RPCS
from kongps.testing.entities import Event
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Answer, call, has
from kongps.testing.protobuf import FIELDS, decode, encode
from kongps.testing.rpc import Asked, Exchanger, Pending
from kongps.testing.values import BodyPath, Failure, LuaError, lua_value, text, to_bytes
from kongps.testing.wire import RpcError

_LARGEST_FRAME = 1 << 30

# The calls: which field of RpcCall each is, and what stands in that field.
_CALLS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "plugin.GetPluginNames": ("cmd_get_plugin_names", lambda given: {}),
    "plugin.GetPluginInfo": ("cmd_get_plugin_info", lambda given: {"name": given}),
    "plugin.StartInstance": (
        "cmd_start_instance",
        lambda given: {"name": given["Name"], "config": to_bytes(given["Config"])},
    ),
    "plugin.InstanceStatus": ("cmd_get_instance_status", lambda given: {"instance_id": given}),
    "plugin.CloseInstance": ("cmd_close_instance", lambda given: {"instance_id": given}),
}


def frame(message: bytes = b"") -> bytes:
    """A message with its length in front, in the machine's byte order."""
    return struct.pack("=I", len(message)) + message


class FrameReader:
    """Cuts the bytes of a connection into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""
        self._data += data

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if len(self._data) < 4:
            raise StopIteration
        end = 4 + int(struct.unpack_from("=I", self._data)[0])
        if end > _LARGEST_FRAME:
            raise ValueError(f"a frame of {end - 4} bytes")
        if len(self._data) < end:
            raise StopIteration
        found = bytes(self._data[4:end])
        del self._data[:end]
        return found


# --- arguments and results --------------------------------------------------------------------


def _from_value(value: Any) -> Any:
    """A Value as Kong's Lua code reads it: false gets lost, null becomes a text, and an empty list
    is an empty table."""
    if value is None:
        return "NULL_VALUE"
    if value is False:
        return None
    if isinstance(value, dict):
        return {key: item for key, item in _items(value) if item is not None}
    if isinstance(value, list):
        items = [_from_value(item) for item in value]
        # A list ends at its first nil.
        return items[: items.index(None)] if None in items else items or {}
    return value


def _items(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, _from_value(item)) for key, item in entries.items()]


def _shown(value: Any) -> Any:
    """Text as str: a ``bytes`` field does not show whether it was one."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def arguments(function: str, data: bytes) -> tuple[list[Any], list[Any]]:
    """The arguments in a function's argument message: those that are there, and all of them.

    What is not there has its type's default (0, false, an empty text); a message or Value that is
    not there is nil.

    :raises ValueError: they cannot be decoded.
    """
    name = RPCS[function][0]
    message = decode(name, data)
    if name == "Struct":
        args = [dict(_items(message))]
        return args, args
    if name == "ListValue":
        args = [_from_value(item) for item in message]
        return args, args
    there: list[Any] = []
    every: list[Any] = []
    fields = FIELDS.get(name, [])
    for field in fields:
        value = message.get(field.name)
        if field.kind == "Value" and field.name in message:
            value = _from_value(value)
        elif field.kind == "Struct" and value is not None:
            value = dict(_items(value))
        there.append(_shown(value))
        every.append(field.default if value is None else _shown(value))
    while there and fields[len(there) - 1].name not in message:
        there.pop()
    return there, every


def result(function: str, value: Any, defaults: Collection[str]) -> Answer:
    """What Kong sends for what a function returned: no bytes for nil.

    :param defaults: see :func:`kongps.testing.protobuf.encode`.
    :raises LuaError: it does not fit the function's result message.
    """
    name = RPCS[function][1]
    if name == "RawBodyResult":
        message, seen = _body(value)
    else:
        value = None if isinstance(value, Failure) else lua_value(value)
        if name == "Empty" or (value is None and name != "Value"):
            return Answer(name)
        message, seen = _message(name, value)
    try:
        data = encode(name, message, defaults)
    except ValueError as error:
        raise LuaError(str(error)) from None
    if name in FIELDS and seen is message:
        # A plugin sees what arrives: fields that the message has not got are lost.
        seen = decode(name, data)
    return Answer(name, seen is not None, seen, data)


def _message(name: str, value: Any) -> tuple[Any, Any]:
    """What message ``name`` is made of for what a function returned, and what a plugin sees."""
    if name == "Struct":
        # One value stands alone; a flag, which has none, is true.
        message = {
            key: (items[0] if len(items) == 1 else items) if items else True
            for key, items in value.items()
        }
        return message, value
    if name == "UriCapturesResult":
        return _captures(value)
    if name in FIELDS and FIELDS[name][0].name == "v":
        return {"v": value}, value
    return value, value


def _body(value: Any) -> tuple[dict[str, Any], Any]:
    if isinstance(value, Failure):
        return {"error": value.reason}, None
    if isinstance(value, BodyPath):
        with open(value, "rb") as file:
            return {"body_filepath": str(value)}, file.read()
    return {"content": to_bytes(value)}, value


def _captures(value: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Without capture 0, which the message does not have."""
    unnamed, named = dict(value["unnamed"]), dict(value["named"])
    unnamed.pop(0, None)
    message = {
        "unnamed": [to_bytes(unnamed[number]) for number in sorted(unnamed)],
        "named": {key: to_bytes(item) for key, item in named.items()},
    }
    return message, {"unnamed": unnamed, "named": named}


# --- calls ------------------------------------------------------------------------------------


class ProtobufExchanger(Exchanger):
    """Calls of ProtoBuf:1. An event holds its connection; PDK calls are answered in order."""

    name = "ProtoBuf:1"

    def begin(self, method: str, args: list[Any]) -> Pending:
        if method not in _CALLS:
            raise RpcError("answer", f"ProtoBuf:1 has no {method}")
        field, contents = _CALLS[method]
        return self._begin(field, contents(args[0] if args else None), None)

    def _begin(self, field: str, contents: dict[str, Any], event: Event | None) -> Pending:
        self._sequence += 1
        number = self._sequence
        message = {"sequence": number, field: contents}
        data = encode("RpcCall", message, self._version.protobuf_defaults)
        connection = self.pool.take()
        self._send(connection, frame(data))
        return Pending(connection, number, event)

    def plugin_names(self, timeout: float) -> list[str]:
        names = self.end(self.begin("plugin.GetPluginNames", []), timeout)
        return sorted(names or [])

    def begin_event(self, event: Event, instance: int | None) -> Pending:
        contents = {"instance_id": instance, "event_name": event.phase}
        return self._begin("cmd_handle_event", contents, event)

    def run(self, exchange: Exchange, asked: Asked) -> Answer:
        function = asked.function
        if function not in RPCS or not has(exchange, function):
            raise RpcError("method", f'method "{function}" not found')
        try:
            asked.args, args = arguments(function, asked.frame)
        except ValueError as error:
            raise LuaError(str(error)) from None
        if RPCS[function][0] == "ListValue" and not args:
            raise LuaError("bad argument #1 to 'select' (index out of range)")
        value = call(exchange, function, args)
        return result(function, value, self._version.protobuf_defaults)

    def reply(self, asked: Asked, given: Answer) -> Pending:
        self._send(asked.pending.connection, frame(given.frame))
        return asked.pending

    def refused(self, exchange: Exchange, asked: Asked, error: Exception) -> None:
        if isinstance(error, RpcError) and not self._version.lost_again:
            # The request goes on, and the connection ends with it.
            exchange.held.append(asked.pending.connection)
        else:
            asked.pending.connection.close()

    def ended(self, exchange: Exchange, asked: Asked) -> None:
        if self._version.lost_again:
            asked.pending.connection.close()
        else:
            exchange.held.append(asked.pending.connection)

    def starts_again(self, error: RpcError) -> bool:
        return self._version.lost_again and error.kind == "closed"

    def _answer(self, pending: Pending, timeout: float) -> Any:
        connection = pending.connection
        try:
            if pending.event is not None:
                name = self._receive(connection, timeout)
                if name:
                    args = self._receive(connection, timeout)
                    return Asked(text(name), [], pending, frame=args)
            data = self._receive(connection, timeout)
        except RpcError as error:
            if error.kind == "timeout":
                connection.close()
            raise
        self.pool.put(connection)
        try:
            returned = decode("RpcReturn", data)
        except ValueError as error:
            raise LuaError(str(error)) from None
        number = returned.get("sequence", 0)
        if number != pending.number:
            raise LuaError(f"unexpected sequence: expected {pending.number}, got {number}")
        return None if pending.event is not None else _returned(returned)


def _returned(message: Mapping[str, Any]) -> Any:
    """What is in an RpcReturn, in the form that MsgPack:1 has."""
    if "plugin_names" in message:
        return message["plugin_names"].get("names", [])
    if "plugin_info" in message:
        info = message["plugin_info"]
        try:
            schema = json.loads(info.get("schema") or "{}")
        except ValueError:
            raise LuaError("the plugin's schema is no JSON") from None
        return {
            "Name": info.get("name", ""),
            "Phases": info.get("phases", []),
            "Version": info.get("version", ""),
            "Priority": info.get("priority", 0),
            "Schema": schema,
        }
    if "instance_status" in message:
        status = message["instance_status"]
        return {
            "Name": status.get("name", ""),
            "Id": status.get("instance_id", 0),
            "Config": status.get("config"),
            "StartTime": status.get("started_at", 0),
        }
    return None
