"""Kong's side of a connection in either protocol, for tests of where handlers run."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Union

from wire import Process, ProtobufSocket, Socket, frame, result_message

PROTOCOLS = ("msgpack", "protobuf")

# What was asked for: functions and their arguments, the latter as text.
Trail = list[tuple[str, str]]
Answers = Callable[[str], Any]

EXIT = "kong.response.exit"


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


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
        import msgpack

        self.wire.sequence += 1
        argument = {"InstanceId": instance, "EventName": phase}
        self.wire.socket.sendall(
            msgpack.packb([0, self.wire.sequence, "plugin.HandleEvent", [argument]])
        )

    def finish(self, answers: Answers = lambda function: None) -> Trail:
        """Answers what an event that was begun asks for, to its end."""
        if isinstance(self.wire, ProtobufSocket):
            return self._finish_protobuf(self.wire, answers)
        import msgpack

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


def status(server: Process) -> Any:
    """What the server says of itself."""
    wire = server.connect()
    try:
        return wire.call("GetStatus", 0)
    finally:
        wire.close()


def is_quiet(server: Process) -> bool:
    """Whether no event is under way."""
    return bool(status(server)["Events"] == 0)
