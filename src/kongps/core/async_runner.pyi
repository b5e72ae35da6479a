from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kongps.core.away_runner import AwayRunner

_T = TypeVar("_T")

async def awaited(function: Callable[..., _T], *args: Any, **named: Any) -> _T: ...

class AsyncRunner(AwayRunner):
    def submit(
        self,
        function: Callable[[], Awaitable[Any]],
        done: Callable[[Any, BaseException | None], object],
    ) -> None: ...
    def stop(self) -> None: ...
