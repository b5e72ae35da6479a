from collections.abc import Callable

from kongps.core.dispatch.dispatcher import Runner
from kongps.core.io.turn import Turn

class AwayRunner(Runner):
    def __init__(self, call_soon: Callable[[Callable[[], object]], object], turn: Turn) -> None: ...
    def after_fork(self) -> None: ...
