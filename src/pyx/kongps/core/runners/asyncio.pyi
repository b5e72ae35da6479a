from collections.abc import Callable
from typing import Any, TypeVar

from kongps.core.runners.off_loop import OffLoopRunner

_T = TypeVar("_T")

async def awaited(function: Callable[..., _T], *args: Any, **named: Any) -> _T: ...

class AsyncRunner(OffLoopRunner):
    def submit(
        self,
        function: Callable[[], Any],
        done: Callable[[Any, BaseException | None], object],
        what: str,
        path: str,
    ) -> None: ...
    def end_late(self, limit: float) -> None: ...
    def stop(self) -> None: ...
