"""What the processes of a server send each other: names with arguments, and parts of its status."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Callable

from kongps.core.wire.msgpack import packb, unpackb

if TYPE_CHECKING:
    from kongps.core.io.loop import Loop

# Seconds that workers get to send their part of the server's status.
STATUS_PATIENCE = 2.0

# What is added up over the workers of a server.
SUMMED = ("Events", "EventsHandled", "Instances", "Connections", "Memory")

# Fields of a plugin of which the latest of any worker counts.
LATEST = ("LoadTime", "Modtime", "LastStartInstance", "LastCloseInstance")


def packed(name: str, *args: object) -> bytes:
    """A message."""
    return packb([name, *args])


def receive(handlers: Mapping[str, Callable[..., object]], data: bytes, *more: Any) -> None:
    """Calls the handler of a message.

    :param handlers: by name, what takes the arguments of the message.
    :param more: passed before the arguments.
    """
    name, *args = unpackb(data)
    handlers[name](*more, *args)


def send_last(channel: int, data: bytes) -> None:
    """Sends a message without a loop, and closes the channel.

    :param channel: the file descriptor of the channel's end.
    """
    with socket.socket(fileno=channel) as end, contextlib.suppress(OSError):
        end.send(struct.pack("=II", 0, 0) + data)


class Gathering:
    """Collects a part of the status from each of several workers.

    :param loop: the loop of this process.
    :param workers: what tells the workers apart.
    :param done: called once, with the parts that have come when all have, or when time is over.
    :param parts: those that are known already.

    :ivar finished: whether `done` was called.
    """

    def __init__(
        self,
        loop: Loop,
        workers: Iterable[int],
        done: Callable[[list[dict[str, Any]]], object],
        parts: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._waiting = set(workers)
        self._done = done
        self._parts = list(parts)
        self.finished = False
        self._timer = loop.call_later(STATUS_PATIENCE, self._finish)
        if not self._waiting:
            self._finish()

    def receive(self, worker: int, part: dict[str, Any] | None) -> None:
        """Takes the part of a worker, None when it has none to give."""
        self._waiting.discard(worker)
        if part is not None:
            self._parts.append(part)
        if not self._waiting:
            self._finish()

    def _finish(self) -> None:
        if not self.finished:
            self.finished = True
            self._timer.cancel()
            self._done(self._parts)


def merged(parts: list[dict[str, Any]], pid: int) -> dict[str, Any]:
    """The status of a server, from that of its workers.

    :param parts: what ``Commands.get_status`` gave in each.
    :param pid: the process id of the server.
    """
    whole: dict[str, Any] = {"Pid": pid, **added_up(parts)}
    whole["Workers"] = [{name: part[name] for name in ("Pid", *SUMMED)} for part in parts]
    plugins: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, plugin in part["Plugins"].items():
            known = plugins.setdefault(name, {**plugin, "Instances": []})
            ids = {row["Id"] for row in known["Instances"]}
            known["Instances"] += [row for row in plugin["Instances"] if row["Id"] not in ids]
            for field in LATEST:
                known[field] = max(known[field], plugin[field])
    whole["Plugins"] = plugins
    return whole


def added_up(parts: list[dict[str, Any]]) -> dict[str, int]:
    """The sums of what several workers hold."""
    return {name: sum(part[name] for part in parts) for name in SUMMED}
