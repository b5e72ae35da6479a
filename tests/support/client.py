"""Kong's side of one connection, over MsgPack:1 or ProtoBuf:1.

How bytes travel and become messages is :mod:`kongps.testing`'s; here is what Kong sends in them.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Union

from core_defaults import new_session
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.core.session import Session
from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.tables import RPCS
from kongps.testing.protobuf_rpc import FrameReader, frame
from kongps.testing.values import pack, unpacker
from kongps.testing.wire import Connection, SessionConnection, SocketConnection

if TYPE_CHECKING:
    from server_process import Process

PROTOCOLS = ("msgpack", "protobuf")

EXIT = "kong.response.exit"


class RPCError(Exception):
    """The server answered with an error."""


class DirectConnection(SessionConnection):
    """A connection to a session in this process, which raises what the session raises."""

    def _write(self, data: bytes) -> None:
        self.session.receive_data(data)


class _Client:
    def __init__(self, connection: Any, timeout: float) -> None:
        self.connection: Connection = connection
        self.timeout = timeout
        self.sequence = 0

    @property
    def socket(self) -> socket.socket:
        assert isinstance(self.connection, SocketConnection)
        return self.connection.socket

    @property
    def session(self) -> Session:
        assert isinstance(self.connection, SessionConnection)
        session: Any = self.connection.session
        return session  # type: ignore[no-any-return]

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def receive(self) -> Any:
        """The next message; ConnectionError when there will be none."""
        return self.connection.receive(time.monotonic() + self.timeout)

    def close(self) -> None:
        self.connection.close()


# --- MsgPack:1 ------------------------------------------------------------------------------------


@dataclass
class AskedMsgPack:
    """A PDK function that the server asked for."""

    function: str
    args: list[Any]
    event: int


class MsgPackClient(_Client):
    """A connection that speaks MsgPack:1."""

    def ask(self, method: str, *args: Any) -> None:
        self.sequence += 1
        self.send(pack([0, self.sequence, f"plugin.{method}", list(args)]))

    def read_result(self) -> Any:
        kind, sequence, error, result = self.receive()
        assert (kind, sequence) == (1, self.sequence)
        if error is not None:
            raise RPCError(error)
        return result

    def call(self, method: str, *args: Any) -> Any:
        self.ask(method, *args)
        return self.read_result()

    def start(self, name: str, config: str = "{}") -> int:
        id: int = self.call("StartInstance", {"Name": name, "Config": config})["Id"]
        return id

    def close_instance(self, id: int) -> None:
        self.call("CloseInstance", id)

    def begin(self, instance: int, phase: str = "access") -> None:
        """Starts an event; what the server asks is to be read."""
        self.ask("HandleEvent", {"InstanceId": instance, "EventName": phase})

    def event(self, instance: int, phase: str = "access") -> Any:
        """Starts an event, and reads what the server asks first."""
        self.begin(instance, phase)
        return self.read_result()

    def read_asked(self) -> AskedMsgPack | None:
        """The PDK function asked for, or None when the event has ended."""
        result = self.read_result()
        if result["Data"] == "ret":
            return None
        return AskedMsgPack(
            result["Data"]["Method"], list(result["Data"]["Args"] or []), result["EventId"]
        )

    def answer(self, asked: AskedMsgPack, value: Any = None, method: str = "Step") -> None:
        argument = {"EventId": asked.event}
        if value is not None:
            argument["Data"] = value
        self.ask(method, argument)

    def step(self, asked: Any, value: Any = None, method: str = "Step") -> Any:
        """Answers a call, and reads what the server asks next."""
        self.answer(AskedMsgPack("", [], asked["EventId"]), value, method)
        return self.read_result()

    def failure(self, answer: Any) -> Any:
        """Logs, as Kong does, why a handler failed; gives what the server then asks for."""
        assert answer["Data"]["Method"] == "kong.log.err", answer
        return self.step(answer)


class Direct(MsgPackClient):
    """A connection to a dispatcher, without a socket."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(DirectConnection(new_session(dispatcher), unpacker()), 0.0)

    def exchange(self, data: bytes) -> bytes:
        """Everything that the server sends when it gets some bytes."""
        self.session.receive_data(data)
        return self.session.data_to_send()


class Socket(MsgPackClient):
    """A connection to a server's socket."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        super().__init__(SocketConnection(os.fspath(path), unpacker(), timeout), timeout)


# --- ProtoBuf:1 -----------------------------------------------------------------------------------


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The frames at the beginning of some bytes, and the bytes that make no whole one."""
    reader = FrameReader()
    reader.feed(data)
    frames = list(reader)
    return frames, data[sum(4 + len(each) for each in frames) :]


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


class ProtobufClient(_Client):
    """A connection that speaks ProtoBuf:1."""

    def ask(self, command: str, **fields: Any) -> None:
        """Sends a command, such as ``cmd_start_instance``."""
        self.sequence += 1
        call = {"sequence": self.sequence, command: fields}
        self.send(frame(encode_message("RpcCall", call)))

    def read_return(self) -> dict[str, Any]:
        result: dict[str, Any] = decode_message("RpcReturn", self.receive())
        assert result.pop("sequence") == self.sequence
        return result

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        self.ask(command, **fields)
        return self.read_return()

    def start(self, name: str, config: str = "{}") -> int:
        result = self.call("cmd_start_instance", name=name, config=config.encode())
        id: int = result["instance_status"]["instance_id"]
        return id

    def close_instance(self, id: int) -> None:
        self.call("cmd_close_instance", instance_id=id)

    def begin(self, instance: int, phase: str = "access") -> None:
        """Starts an event; what the server asks is to be read."""
        self.ask("cmd_handle_event", instance_id=instance, event_name=phase)

    def read_asked(self) -> Asked | None:
        """The PDK function asked for, or None when the event has ended."""
        name = self.receive()
        if name:
            return Asked(name.decode(), self.receive())
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


class DirectProtobuf(ProtobufClient):
    """A ProtoBuf:1 connection to a dispatcher, without a socket.

    :ivar frames: what the server has sent, and was not read yet.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(DirectConnection(new_session(dispatcher), FrameReader()), 0.0)
        self.frames: list[bytes] = []

    def send(self, data: bytes) -> None:
        super().send(data)
        frames, rest = split_frames(self.session.data_to_send())
        assert rest == b""
        self.frames += frames

    def receive(self) -> bytes:
        if not self.frames:
            raise ConnectionError("the server closes" if self.session.closing else "it waits")
        return self.frames.pop(0)

    def waiting(self) -> list[Asked | None]:
        """Everything that the server has sent of an event."""
        trail = []
        while self.frames:
            trail.append(self.read_asked())
        return trail


class ProtobufSocket(ProtobufClient):
    """A ProtoBuf:1 connection to a server's socket."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        timeout: float = 10.0,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        reader = FrameReader()
        super().__init__(SocketConnection(os.fspath(path), reader, timeout, kind=kind), timeout)


# --- connections to a handler ---------------------------------------------------------------------


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


# --- either protocol ------------------------------------------------------------------------------

# What was asked for: functions and their arguments, the latter as text.
Trail = list[tuple[str, str]]
Answers = Callable[[str], Any]


class Client:
    """Kong's side of one connection, over the protocol that a test is for.

    :param server: the server to connect to.
    :param protocol: one of ``PROTOCOLS``.
    """

    def __init__(self, server: Process, protocol: str = "msgpack", timeout: float = 15.0) -> None:
        self.server = server
        self.protocol = protocol
        self.timeout = timeout
        self._connect()

    def _connect(self) -> None:
        connect = Socket if self.protocol == "msgpack" else ProtobufSocket
        self.wire: Union[Socket, ProtobufSocket] = connect(self.server.socket_path, self.timeout)

    def start(self, name: str, config: str = "{}") -> int:
        return self.wire.start(name, config)

    def close_instance(self, id: int) -> None:
        self.wire.close_instance(id)

    def begin(self, instance: int, phase: str = "access") -> None:
        """Sends an event; what it asks for first is not read."""
        self.wire.begin(instance, phase)

    def finish(self, answers: Answers = lambda function: None) -> Trail:
        """Answers what an event that was begun asks for, to its end."""
        wire: Any = self.wire
        trail: Trail = []
        while True:
            asked = wire.read_asked()
            if asked is None:
                return trail
            trail.append((asked.function, str(asked.args)))
            if asked.function == EXIT:
                if self.protocol == "protobuf":
                    self.close()
                    self._connect()
                return trail
            wire.answer(asked, answers(asked.function))

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
    """What an event wrote to Kong's log."""
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
