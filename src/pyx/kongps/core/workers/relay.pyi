from collections.abc import Callable
from typing import Any

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.loop import Loop

class Relay:
    @property
    def worker(self) -> int: ...
    def ask(self, method: str, argument: object, answered: Callable[[Any], object]) -> None: ...

class Routes:
    @property
    def worker(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    def __init__(self, worker: int, loop: Loop, lost_events_pass: bool) -> None: ...
    def add(
        self,
        worker: int,
        calls_fd: int,
        answers_fd: int,
        dispatcher: Dispatcher,
        commands: dict[str, Callable[[Any], object]],
    ) -> None: ...
    def others(self) -> list[Relay]: ...
