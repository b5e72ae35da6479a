from collections.abc import Callable
from typing import Any

from kongps.core.io.loop_lock import LoopLock
from kongps.core.runners.off_loop import OffLoopRunner

class ThreadRunner(OffLoopRunner):
    @property
    def most(self) -> int: ...
    @property
    def stuck(self) -> int: ...
    @property
    def threads(self) -> int: ...
    def __init__(
        self, call_soon: Callable[[Callable[[], object]], object], lock: LoopLock, most: int
    ) -> None: ...
    def submit(
        self,
        function: Callable[[], Any],
        done: Callable[[Any, BaseException | None], object],
        what: str,
        path: str,
    ) -> None: ...
    def end_late(self, limit: float) -> None: ...
    def stop(self) -> None: ...
