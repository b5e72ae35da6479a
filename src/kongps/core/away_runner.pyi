from collections.abc import Callable

from kongps.core.dispatch import Runner
from kongps.core.turn import Turn

class AwayRunner(Runner):
    def __init__(self, call_soon: Callable[[Callable[[], object]], object], turn: Turn) -> None: ...
    def after_fork(self) -> None: ...
