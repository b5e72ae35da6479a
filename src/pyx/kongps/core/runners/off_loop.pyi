from collections.abc import Callable

from kongps.core.dispatch.event import Runner
from kongps.core.io.loop_lock import LoopLock

class OffLoopRunner(Runner):
    def __init__(
        self, call_soon: Callable[[Callable[[], object]], object], lock: LoopLock
    ) -> None: ...
    def after_fork(self) -> None: ...
