from collections.abc import Callable

from kongps.core.dispatch import Runner

class AwayRunner(Runner):
    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None: ...
