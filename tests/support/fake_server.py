"""Plugin servers of a few lines, which do exactly what a test asks for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from typing import Any, Callable

import msgpack

from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.tables import MESSAGES, RPCS
from kongps.testing.protobuf_rpc import frame


class RpcFailure(Exception):
    """Raised by a behaviour: the RPC error that Kong gets."""


class NoAnswer(Exception):
    """Raised by a behaviour: Kong gets no answer."""


class Close(Exception):
    """Raised by a behaviour: the connection is closed."""


def call(function: str, *args: Any) -> dict[str, Any]:
    return {"Method": function, "Args": list(args)}


class FakeServer:
    """Serves plugins given as ``{name: {phase: [PDK calls, …]}}`` on a unix socket.

    :ivar seen: (connection number, method, argument) of every call, in order.
    :ivar behaviours: by method, a function of the argument that is asked first: it may return a
        result, raise one of the exceptions above, or return None for what is usual.
    :ivar answers: what the PDK calls of events were answered with, in order.
    """

    def __init__(
        self,
        path: str,
        plugins: dict[str, dict[str, list[dict[str, Any]]]],
        *,
        priorities: dict[str, int] | None = None,
        schemas: dict[str, dict[str, Any]] | None = None,
        pid: int | None = None,
    ) -> None:
        self.path = path
        self.plugins = plugins
        self.priorities = priorities or {}
        self.schemas = schemas or {}
        self.pid = pid
        self.seen: list[tuple[int, str, Any]] = []
        self.answers: list[Any] = []
        self.behaviours: dict[str, Callable[[Any], Any]] = {}
        self._instances: dict[int, str] = {}
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._next_instance = 0
        self._next_event = 0
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listening: socket.socket | None = None
        self.start()

    def start(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(64)
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def stop(self) -> None:
        """Go away as a killed server does: connections end, instances are forgotten."""
        assert self._listening is not None
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        os.unlink(self.path)
        self._instances.clear()
        self._events.clear()

    def methods(self, *, without: tuple[str, ...] = ("GetPluginInfo", "GetStatus")) -> list[str]:
        found = [method.partition(".")[2] for _, method, _ in self.seen]
        return [method for method in found if method not in without]

    def of(self, method: str) -> list[Any]:
        return [argument for _, name, argument in self.seen if name == f"plugin.{method}"]

    def _accept(self, listening: socket.socket) -> None:
        number = 0
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            number += 1
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
        if self.pid is not None:
            connection.sendall(msgpack.packb([2, "serverPid", self.pid]))
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                return
            if not data:
                return
            unpacker.feed(data)
            for _, sequence, method, args in unpacker:
                argument = args[0] if args else None
                self.seen.append((number, method, argument))
                try:
                    with self._lock:
                        result = self._result(method, argument)
                    answer = [1, sequence, None, result]
                except RpcFailure as error:
                    answer = [1, sequence, str(error), None]
                except NoAnswer:
                    continue
                except Close:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(msgpack.packb(answer, use_bin_type=True))

    def _result(self, method: str, argument: Any) -> Any:
        name = method.partition(".")[2]
        behaviour = self.behaviours.get(name)
        if behaviour is not None:
            special = behaviour(argument)
            if special is not None:
                return special
        if name == "GetStatus":
            return {"Pid": os.getpid(), "Plugins": {plugin: {} for plugin in self.plugins}}
        if name == "GetPluginInfo":
            if argument not in self.plugins:
                raise RpcFailure(f"no plugin {argument}")
            return {
                "Name": argument,
                "Phases": list(self.plugins[argument]),
                "Version": "1",
                "Priority": self.priorities.get(argument, 0),
                "Schema": self.schemas.get(argument, {}),
            }
        if name == "StartInstance":
            number = self._next_instance
            self._next_instance += 1
            self._instances[number] = argument["Name"]
            return {"Name": argument["Name"], "Id": number, "Config": {}, "StartTime": 0}
        if name == "CloseInstance":
            self._instances.pop(argument, None)
            return {"Id": argument}
        if name == "HandleEvent":
            instance = argument.get("InstanceId")
            if instance not in self._instances:
                raise RpcFailure(f"No plugin instance {instance}")
            event = self._next_event
            self._next_event += 1
            calls = self.plugins[self._instances[instance]][argument["EventName"]]
            self._events[event] = list(calls)
            return self._next(event)
        self.answers.append(argument.get("Data"))
        return self._next(argument["EventId"])

    def _next(self, event: int) -> dict[str, Any]:
        calls = self._events[event]
        return {"EventId": event, "Data": calls.pop(0) if calls else "ret"}


class ProtobufServer(FakeServer):
    """The same over ProtoBuf:1. A failure closes the connection: the protocol has no errors.

    An answer to a PDK call, in ``answers``, is the frame that came. A call may hold ``Raw``, the
    bytes to send for its arguments.

    :param burst: whether all calls of an event, and its end, are sent in one write.
    """

    burst = False

    def _serve(self, connection: socket.socket, number: int) -> None:
        stream = connection.makefile("rb")

        def read() -> bytes:
            head = stream.read(4)
            if len(head) < 4:
                raise EOFError
            data: bytes = stream.read(struct.unpack("=I", head)[0])
            return data

        try:
            while True:
                message = decode_message("RpcCall", read())
                sequence = message.pop("sequence")
                ((command, argument),) = message.items()
                try:
                    self._handle(connection, read, number, sequence, command, argument)
                except NoAnswer:
                    continue
        except (EOFError, OSError, RpcFailure, Close):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _handle(
        self,
        connection: socket.socket,
        read: Callable[[], bytes],
        number: int,
        sequence: int,
        command: str,
        argument: dict[str, Any],
    ) -> None:
        method, given = _METHODS[command](argument)
        self.seen.append((number, f"plugin.{method}", given))
        result: dict[str, Any] = {"sequence": sequence}
        out = b""
        if method == "GetPluginNames":
            result["plugin_names"] = {"names": list(self.plugins)}
        elif method != "HandleEvent":
            with self._lock:
                found = self._result(f"plugin.{method}", given)
            result.update(_returned(method, found))
        else:
            with self._lock:
                data = self._result("plugin.HandleEvent", given)
            waiting = 0
            while data["Data"] != "ret":
                out += frame(data["Data"]["Method"].encode()) + frame(_arguments(data["Data"]))
                waiting += 1
                if not self.burst:
                    connection.sendall(out)
                    self._answered(read(), data)
                    out, waiting = b"", 0
                data = self._next(data["EventId"])
            out += frame(b"")
            connection.sendall(out + frame(encode_message("RpcReturn", result)))
            for _ in range(waiting):
                self._answered(read(), data)
            return
        connection.sendall(frame(encode_message("RpcReturn", result)))

    def _answered(self, message: bytes, data: dict[str, Any]) -> None:
        self.answers.append(message)
        behaviour = self.behaviours.get("Step")
        if behaviour is not None:
            behaviour(data)


_METHODS: dict[str, Callable[[dict[str, Any]], tuple[str, Any]]] = {
    "cmd_get_plugin_names": lambda given: ("GetPluginNames", None),
    "cmd_get_plugin_info": lambda given: ("GetPluginInfo", given["name"]),
    "cmd_start_instance": lambda given: (
        "StartInstance",
        {"Name": given["name"], "Config": given["config"].decode()},
    ),
    "cmd_close_instance": lambda given: ("CloseInstance", given.get("instance_id", 0)),
    "cmd_handle_event": lambda given: (
        "HandleEvent",
        {"InstanceId": given.get("instance_id", 0), "EventName": given["event_name"]},
    ),
}


def _returned(method: str, found: dict[str, Any]) -> dict[str, Any]:
    if method == "GetPluginInfo":
        info = {
            "name": found["Name"],
            "phases": found["Phases"],
            "version": found["Version"],
            "priority": found["Priority"],
            "schema": json.dumps(found["Schema"]),
        }
        return {"plugin_info": info}
    return {"instance_status": {"name": found.get("Name", ""), "instance_id": found["Id"]}}


def _arguments(data: dict[str, Any]) -> bytes:
    if "Raw" in data:
        raw: bytes = data["Raw"]
        return raw
    message = RPCS[data["Method"]][0]
    args = data["Args"]
    if message in ("Struct", "ListValue"):
        return encode_message(message, args[0] if message == "Struct" else args)
    names = [field.partition("=")[0] for field in MESSAGES.get(message, "").split(", ")]
    return encode_message(message, {k: v for k, v in zip(names, args) if v is not None})
