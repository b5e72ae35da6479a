"""Requests that are under way at the same time, in one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Optional

from kongps.testing.functions import Hang
from kongps.testing.values import LuaError
from kongps.testing.wire import RpcError

if TYPE_CHECKING:
    from kongps.testing.exchange import Exchange
    from kongps.testing.rpc import Exchanger, Pending

    # What a request does: it yields a function that sends the next message to the plugin server,
    # and gets the answer; or it yields None, to let other requests run first.
    Steps = Generator[Optional[Callable[[], Pending]], Any, Any]


class Task:
    """A request under way: its steps, and the answer that it waits for."""

    def __init__(self, rpc: Exchanger, exchange: Exchange, steps: Steps) -> None:
        self.exchange = exchange
        self.waits: Callable[[], Pending] | None = None
        self.idle = False
        self._rpc = rpc
        self._steps = steps
        self._pending: Pending | None = None
        self._failure: Exception | None = None

    def advance(self, value: Any = None, error: Exception | None = None) -> bool:
        """Run on until the next message; False when the request is done."""
        try:
            self.waits = self._steps.throw(error) if error else self._steps.send(value)
        except StopIteration:
            self.waits = None
            return False
        return True

    def begin(self) -> None:
        """Send the message whose answer it waits for."""
        self._failure = None
        if self.waits is None:
            return
        try:
            self._pending = self.waits()
        except (RpcError, LuaError) as error:
            self._failure = error

    def end(self, timeout: float) -> bool:
        """Wait for the answer and run on; False when the request is done."""
        self.idle = self.waits is None
        if self.idle:
            return self.advance()
        if self._failure is not None:
            return self.advance(error=self._failure)
        if self._pending is None:
            raise AssertionError("nothing was sent")
        try:
            value = self._rpc.end(self._pending, timeout)
        except (RpcError, LuaError) as error:
            return self.advance(error=error)
        return self.advance(value)


def run_all(tasks: list[Task], timeout: float) -> None:
    """Run requests to their ends; each has sent a message before any answer is read."""
    running = [task for task in tasks if task.advance()]
    for task in running:
        task.begin()
    while running:
        left = []
        for task in running:
            if task.end(timeout):
                # At once, as in nginx: no other request takes the connection just put back.
                task.begin()
                left.append(task)
        stuck = all(task.idle for task in running) and all(task.waits is None for task in left)
        running = left
        if stuck:
            for task in running:
                task.advance(error=Hang("the instance never starts, and Kong waits without end"))
            return
