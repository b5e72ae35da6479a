from collections.abc import Callable

from kongps.core.connection import Unfinished
from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.workers.channel import Channel
from kongps.core.workers.journal import Journal
from kongps.core.workers.relay import Routes

class SupervisorChannel(Channel):
    def __init__(
        self,
        journal: Journal,
        area: int,
        dispatcher: Dispatcher,
        unfinished: Unfinished,
        max_message: int,
        routes: Routes,
        on_message: Callable[[bytes, list[int]], object],
        on_close: Callable[[], object] | None,
    ) -> None: ...
    def retire(self) -> None: ...
