from collections.abc import Callable
from typing import TypeVar

from kongps.core.dispatch import Runner
from kongps.core.watchdog import Visits

_T = TypeVar("_T")

class InlineRunner(Runner):
    def visit(self, what: object, function: Callable[[], _T]) -> _T: ...
    def watched(self) -> Visits: ...
