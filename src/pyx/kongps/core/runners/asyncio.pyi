from collections.abc import Callable
from typing import Any, TypeVar

from kongps.core.io.loop_lock import LoopLock
from kongps.core.runners.off_loop import OffLoopRunner

_T = TypeVar("_T")

async def awaited(function: Callable[..., _T], *args: Any, **named: Any) -> _T: ...

class AsyncRunner(OffLoopRunner):
    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object],
        lock: LoopLock,
        submit: Callable[..., object],
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
