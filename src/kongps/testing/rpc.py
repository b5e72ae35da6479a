"""The calls between the gateway and a plugin server, whatever the protocol.

:class:`Exchanger` is the interface; the two protocols are in :mod:`kongps.testing.msgpack_rpc` and
:mod:`kongps.testing.protobuf_rpc`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kongps.testing.entities import Event
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Answer
from kongps.testing.values import LuaError
from kongps.testing.versions import Version
from kongps.testing.wire import Connection, Pool, RpcError


@dataclass
class Pending:
    """A message that was sent and not yet answered.

    :ivar number: of the call that it is or belongs to.
    :ivar event: the event that it is part of; None for other calls.
    """

    connection: Connection
    number: int
    event: Event | None = None


@dataclass
class Asked:
    """A PDK function that a handler asks Kong for.

    :ivar args: its arguments, as a plugin author would write them.
    :ivar pending: what it was the answer to.
    :ivar event_id: the event's number, over MsgPack:1.
    :ivar frame: its arguments as they came, over ProtoBuf:1.
    """

    function: str
    args: list[Any]
    pending: Pending
    event_id: Any = None
    frame: bytes = b""


class Exchanger:
    """Calls over a pool: numbers them, sends them, reads their answers.

    :param notify: called for each notification, with its label and value.
    """

    name = ""

    def __init__(self, pool: Pool, notify: Callable[[str, Any], None], version: Version) -> None:
        self.pool = pool
        self._notify = notify
        self._version = version
        self._sequence = 0

    def begin(self, method: str, args: list[Any]) -> Pending:
        """Send a call such as ``plugin.StartInstance``; RpcError when it cannot be sent."""
        raise NotImplementedError

    def begin_event(self, event: Event, instance: int | None) -> Pending:
        """Send an event to an instance; RpcError when it cannot be sent."""
        raise NotImplementedError

    def plugin_names(self, timeout: float) -> list[str]:
        """The plugins that the plugin server has."""
        raise NotImplementedError

    def run(self, exchange: Exchange, asked: Asked) -> Answer:
        """Run the PDK function that was asked for.

        :raises LuaError: Kong's code raised.
        :raises RpcError: there is no such function.
        """
        raise NotImplementedError

    def reply(self, asked: Asked, given: Answer) -> Pending:
        """Send what the PDK function gave; RpcError when it cannot be sent."""
        raise NotImplementedError

    def refused(self, exchange: Exchange, asked: Asked, error: Exception) -> None:
        """Treat the connection as Kong does when a PDK call failed."""
        raise NotImplementedError

    def ended(self, exchange: Exchange, asked: Asked) -> None:
        """Treat the connection as Kong does when a PDK call ended the request."""
        raise NotImplementedError

    def starts_again(self, error: RpcError) -> bool:
        """Whether Kong starts the instance and the event again after an error."""
        raise NotImplementedError

    def end(self, pending: Pending, timeout: float) -> Any:
        """The answer to what was sent: a call's result; for an event the next :class:`Asked`, or
        None when the handler has returned.

        :raises RpcError: there is none.
        :raises LuaError: what came is not the answer to this call.
        """
        connection = pending.connection
        before = connection.waits
        try:
            return self._answer(pending, timeout)
        finally:
            if pending.event is not None:
                pending.event.round_trips += connection.waits - before

    def _answer(self, pending: Pending, timeout: float) -> Any:
        raise NotImplementedError

    def _receive(self, connection: Connection, timeout: float) -> Any:
        """The next message; RpcError of kind ``"timeout"`` leaves the connection open."""
        try:
            return connection.receive(time.monotonic() + timeout)
        except TimeoutError:
            raise RpcError("timeout", "timeout") from None
        except OSError:
            connection.close()
            raise RpcError("closed", "closed") from None
        except ValueError as error:
            connection.close()
            raise LuaError(f"the plugin server sent no {self.name} message: {error}") from None

    def _send(self, connection: Connection, data: bytes) -> None:
        try:
            connection.send(data)
        except OSError as error:
            # Kong reads on a connection that it could not write to, and finds it closed.
            connection.close()
            raise RpcError("closed", f"closed: {error}") from None
