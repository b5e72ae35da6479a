from collections.abc import Callable
from typing import Any, TypeVar

from kongps.core.dispatch.event import Runner
from kongps.core.runners.watchdog import Visits

_T = TypeVar("_T")

class InlineRunner(Runner):
    def __init__(self, submit: Callable[..., Any] | None = None) -> None: ...
    def visit(self, what: object, function: Callable[[], _T]) -> _T: ...
    @property
    def visits(self) -> Visits: ...
