"""Kong's side of a connection, over MsgPack:1 and ProtoBuf:1: to a socket, or to a Session."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Union

import msgpack
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import Dispatcher, Instance
from kongps.core.session import Session
from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.tables import RPCS

if TYPE_CHECKING:
    from server_process import Process


class RPCError(Exception):
    """The server answered with an error."""


class Wire:
    """Calls in, answers out; a subclass moves the bytes."""

    def __init__(self) -> None:
        self.sequence = 0

    def exchange(self, data: bytes) -> bytes:
        raise NotImplementedError

    def call(self, method: str, *args: Any) -> Any:
        self.sequence += 1
        packed = msgpack.packb([0, self.sequence, f"plugin.{method}", list(args)])
        kind, sequence, error, result = msgpack.unpackb(
            self.exchange(packed), strict_map_key=False, unicode_errors="surrogateescape"
        )
        assert (kind, sequence) == (1, self.sequence)
        if error is not None:
            raise RPCError(error)
        return result

    def start(self, name: str, config: str = "{}") -> int:
        id: int = self.call("StartInstance", {"Name": name, "Config": config})["Id"]
        return id

    def event(self, instance: int, phase: str = "access") -> Any:
        return self.call("HandleEvent", {"InstanceId": instance, "EventName": phase})

    def step(self, asked: Any, value: Any = None, method: str = "Step") -> Any:
        argument = {"EventId": asked["EventId"]}
        if value is not None:
            argument["Data"] = value
        return self.call(method, argument)

    def failure(self, answer: Any) -> Any:
        """Logs, as Kong does, why a handler failed; gives what the server then asks for."""
        assert answer["Data"]["Method"] == "kong.log.err", answer
        return self.step(answer)


class Direct(Wire):
    """A connection to a dispatcher, without a socket."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self.session = Session(dispatcher)

    def exchange(self, data: bytes) -> bytes:
        self.session.receive_data(data)
        return self.session.data_to_send()


class Socket(Wire):
    """A connection to a server's socket."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(os.fspath(path))

    def exchange(self, data: bytes) -> bytes:
        self.socket.sendall(data)
        return self.receive()

    def receive(self) -> bytes:
        data = b""
        while True:
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
            try:
                msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogateescape")
                return data
            except ValueError:
                continue

    def close(self) -> None:
        self.socket.close()


def frame(data: bytes = b"") -> bytes:
    """A frame of ProtoBuf:1."""
    return len(data).to_bytes(4, sys.byteorder) + data


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The frames at the beginning of some bytes, and the bytes that make no whole one."""
    frames = []
    while len(data) >= 4:
        end = 4 + int.from_bytes(data[:4], sys.byteorder)
        if len(data) < end:
            break
        frames.append(data[4:end])
        data = data[end:]
    return frames, data


def result_message(function: str, value: Any = None) -> bytes:
    """The message with which Kong answers a PDK function; bytes are taken to be one."""
    if value is None or isinstance(value, bytes):
        return value or b""
    kind = RPCS[function][1]
    wrapped = kind in ("Bool", "Int", "Number", "String", "ByteString")
    return encode_message(kind, {"v": value} if wrapped else value)


@dataclass
class Asked:
    """A PDK function that the server asked for: its arguments are what the message holds."""

    function: str
    message: bytes

    @property
    def args(self) -> Any:
        return decode_message(RPCS[self.function][0], self.message)


class ProtobufWire:
    """Kong's side of a connection that speaks ProtoBuf:1; a subclass moves the bytes."""

    def __init__(self) -> None:
        self.sequence = 0

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def read(self) -> bytes:
        """The next frame."""
        raise NotImplementedError

    def ask(self, command: str, **fields: Any) -> None:
        """Sends a command, such as ``cmd_start_instance``."""
        self.sequence += 1
        call = {"sequence": self.sequence, command: fields}
        self.send(frame(encode_message("RpcCall", call)))

    def read_return(self) -> dict[str, Any]:
        result: dict[str, Any] = decode_message("RpcReturn", self.read())
        assert result.pop("sequence") == self.sequence
        return result

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        self.ask(command, **fields)
        return self.read_return()

    def start(self, name: str, config: str = "{}") -> int:
        result = self.call("cmd_start_instance", name=name, config=config.encode())
        id: int = result["instance_status"]["instance_id"]
        return id

    def begin(self, instance: int, phase: str = "access") -> None:
        """Starts an event; what the server asks is to be read."""
        self.ask("cmd_handle_event", instance_id=instance, event_name=phase)

    def read_asked(self) -> Asked | None:
        """The PDK function asked for, or None when the event has ended."""
        name = self.read()
        if name:
            return Asked(name.decode(), self.read())
        assert self.read_return() == {}
        return None

    def answer(self, asked: Asked, value: Any = None) -> None:
        self.send(frame(result_message(asked.function, value)))

    def event(
        self,
        instance: int,
        phase: str = "access",
        answers: Callable[[Asked], Any] = lambda asked: None,
    ) -> list[Asked]:
        """Runs an event to its end as Kong does, one function after the other.

        :return: what was asked for.
        """
        self.begin(instance, phase)
        trail = []
        while True:
            asked = self.read_asked()
            if asked is None:
                return trail
            trail.append(asked)
            self.answer(asked, answers(asked))


class DirectProtobuf(ProtobufWire):
    """A ProtoBuf:1 connection to a dispatcher, without a socket."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self.session = Session(dispatcher)
        self.frames: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.session.receive_data(data)
        frames, rest = split_frames(self.session.data_to_send())
        assert rest == b""
        self.frames += frames

    def read(self) -> bytes:
        if not self.frames:
            raise ConnectionError("the server closes" if self.session.closing else "it waits")
        return self.frames.pop(0)

    def waiting(self) -> list[Asked | None]:
        """Everything that the server has sent of an event."""
        trail = []
        while self.frames:
            trail.append(self.read_asked())
        return trail


class ProtobufSocket(ProtobufWire):
    """A ProtoBuf:1 connection to a server's socket."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        timeout: float = 10.0,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.settimeout(timeout)
        self.socket.connect(os.fspath(path))
        self.inbox = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> bytes:
        while True:
            frames, _ = split_frames(self.inbox)
            if frames:
                self.inbox = self.inbox[4 + len(frames[0]) :]
                return frames[0]
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise ConnectionError("the server closed the connection")
            self.inbox += piece

    def close(self) -> None:
        self.socket.close()


def dispatcher_with(
    dispatcher: Dispatcher, handler: Callable[[Any], Any], phase: str = "access", id: int = 1
) -> Direct:
    """Gives `dispatcher` an instance with one handler, and a connection to it."""
    dispatcher.add_instance(Instance(id, plugin_of(), {}, 0.0, {phase: handler}))
    return Direct(dispatcher)


def protobuf_with(
    dispatcher: Dispatcher,
    handler: Callable[[Any], Any],
    phase: str = "access",
    id: int = 1,
    pipelined: bool = True,
) -> DirectProtobuf:
    """The same with a connection that speaks ProtoBuf:1."""
    plugin = plugin_of(pipelined=pipelined)
    dispatcher.add_instance(Instance(id, plugin, {}, 0.0, {phase: handler}))
    return DirectProtobuf(dispatcher)


# --- either protocol ---------------------------------------------------------------------------

PROTOCOLS = ("msgpack", "protobuf")

# What was asked for: functions and their arguments, the latter as text.
Trail = list[tuple[str, str]]
Answers = Callable[[str], Any]

EXIT = "kong.response.exit"


class Client:
    """Kong's side of one connection.

    :param server: the server to connect to.
    :param protocol: one of ``PROTOCOLS``.
    """

    def __init__(self, server: Process, protocol: str = "msgpack", timeout: float = 15.0) -> None:
        self.server = server
        self.protocol = protocol
        self.timeout = timeout
        self._connect()

    def _connect(self) -> None:
        self.wire: Union[Socket, ProtobufSocket]
        if self.protocol == "msgpack":
            self.wire = Socket(self.server.socket_path, self.timeout)
        else:
            self.wire = ProtobufSocket(self.server.socket_path, self.timeout)

    def start(self, name: str, config: str = "{}") -> int:
        return self.wire.start(name, config)

    def close_instance(self, id: int) -> None:
        if isinstance(self.wire, Socket):
            self.wire.call("CloseInstance", id)
        else:
            self.wire.call("cmd_close_instance", instance_id=id)

    def begin(self, instance: int, phase: str = "access") -> None:
        """Sends an event; what it asks for first is not read."""
        if isinstance(self.wire, ProtobufSocket):
            self.wire.begin(instance, phase)
            return
        self.wire.sequence += 1
        argument = {"InstanceId": instance, "EventName": phase}
        self.wire.socket.sendall(
            msgpack.packb([0, self.wire.sequence, "plugin.HandleEvent", [argument]])
        )

    def finish(self, answers: Answers = lambda function: None) -> Trail:
        """Answers what an event that was begun asks for, to its end."""
        if isinstance(self.wire, ProtobufSocket):
            return self._finish_protobuf(self.wire, answers)

        def unpacked() -> Any:
            assert isinstance(self.wire, Socket)
            _, _, error, result = msgpack.unpackb(
                self.wire.receive(), strict_map_key=False, unicode_errors="surrogateescape"
            )
            assert error is None, error
            return result

        trail: Trail = []
        asked = unpacked()
        while asked["Data"] != "ret":
            function, args = asked["Data"]["Method"], asked["Data"]["Args"]
            trail.append((function, str(args)))
            if function == EXIT:
                break
            asked = self.wire.step(asked, answers(function))
        return trail

    def _finish_protobuf(self, wire: ProtobufSocket, answers: Answers) -> Trail:
        trail: Trail = []
        while True:
            asked = wire.read_asked()
            if asked is None:
                return trail
            trail.append((asked.function, str(asked.args)))
            if asked.function == EXIT:
                wire.close()
                self._connect()
                return trail
            wire.send(frame(result_message(asked.function, answers(asked.function))))

    def event(
        self, instance: int, phase: str = "access", answers: Answers = lambda function: None
    ) -> Trail:
        """Runs an event to its end as Kong does."""
        self.begin(instance, phase)
        return self.finish(answers)

    def close(self) -> None:
        self.wire.close()


def failed(trail: Trail) -> bool:
    """Whether an event has ended in the 500 of a handler that failed."""
    return bool(trail) and trail[-1][0] == EXIT and "An unexpected error" in trail[-1][1]


def told(trail: Trail) -> str:
    """What Kong's log was told."""
    return " ".join(args for function, args in trail if function.startswith("kong.log"))


@contextmanager
def at_once(
    server: Process, instance: int, count: int, protocol: str = "msgpack", timeout: float = 15.0
) -> Iterator[list[Future[Trail]]]:
    """So many events of an instance, each on a connection of its own, all at once."""
    clients = [Client(server, protocol, timeout) for _ in range(count)]
    ready = threading.Barrier(count)

    def run(client: Client) -> Trail:
        ready.wait(timeout)
        return client.event(instance)

    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(run, client) for client in clients]
    for client in clients:
        client.close()
