"""What supervisor and worker send each other: a name and arguments, packed as MessagePack."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Any, Callable

from kongps.core.wire.msgpack import packb, unpackb


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
