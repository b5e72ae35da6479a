"""Signal handlers of a process with a loop, and what its forked children must not keep."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from kongps.core.io.loop import Loop

Handlers = Mapping[signal.Signals, Callable[[], object]]

# What a child process that a handler forks calls first; a running server adds its own.
_in_child: list[Callable[[], None]] = []


@contextlib.contextmanager
def signal_handlers(
    loop: Loop, handlers: Handlers, in_child: Callable[[], object] | None = None
) -> Iterator[None]:
    """Handles signals during a block, on the main thread; on another one, none are handled.

    :param loop: the loop that a signal wakes.
    :param handlers: by signal, what is called in the signal handler itself.
    :param in_child: called in a child process that is forked during the block, without the
        handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_fd = signal.set_wakeup_fd(loop.wakeup_fd, warn_on_full_buffer=False)
    old = {
        number: signal.signal(number, lambda *_, call=call: call())
        for number, call in handlers.items()
    }

    def restore() -> None:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)

    def forked() -> None:
        restore()
        _in_child.remove(forked)
        if in_child is not None:
            in_child()

    if in_child is not None:
        _in_child.append(forked)
    try:
        yield
    finally:
        if forked in _in_child:
            _in_child.remove(forked)
        restore()


def _after_fork() -> None:
    for call in list(_in_child):
        call()


os.register_at_fork(after_in_child=_after_fork)
