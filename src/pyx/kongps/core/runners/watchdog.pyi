from collections.abc import Callable
from signal import Signals
from typing import Any

from kongps.core.dispatch.event import Event

INTERRUPT: Signals

class Visits: ...

class Watchdog:
    def __init__(
        self,
        visits: Visits,
        threshold: float,
        timeout: float,
        blocked: Callable[[Event | None, Any, float, str | None], object],
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def beat(self) -> None: ...
    def interrupted(self) -> None: ...
