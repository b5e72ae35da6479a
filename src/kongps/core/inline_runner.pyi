from collections.abc import Callable
from typing import TypeVar

from kongps.core.dispatch import Runner

_T = TypeVar("_T")

class InlineRunner(Runner):
    def visit(self, what: str, function: Callable[[], _T]) -> _T: ...
