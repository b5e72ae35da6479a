from collections.abc import Callable
from typing import TypeVar

from kongps.core.dispatch.dispatcher import Runner
from kongps.core.runners.watchdog import Visits

_T = TypeVar("_T")

class InlineRunner(Runner):
    def visit(self, what: object, function: Callable[[], _T]) -> _T: ...
    def watched(self) -> Visits: ...
