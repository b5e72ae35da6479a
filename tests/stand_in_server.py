"""A plugin server of a few lines, which does exactly what a test tells it to."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any, Callable

import msgpack


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
