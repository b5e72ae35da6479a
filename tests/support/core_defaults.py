"""Parts of the core with the settings that a server has by default."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.event import Runner
from kongps.core.runners.inline import InlineRunner
from kongps.core.session import Session
from kongps.settings import Settings

MAX_MESSAGE = Settings().max_message


def new_dispatcher(runner: Runner | None = None, **options: Any) -> Dispatcher:
    """A dispatcher with the default settings, but for `options`."""
    defaults = Settings()
    chosen: dict[str, Any] = {
        "event_timeout": defaults.event_timeout,
        "handler_timeout": defaults.handler_timeout,
        "pipelining": not defaults.no_pipelining,
        "on_error": defaults.on_error,
        "max_events": defaults.max_events,
        **options,
    }
    return Dispatcher(runner or InlineRunner(), **chosen)


def new_session(dispatcher: Dispatcher) -> Session:
    """A session that takes messages of the default size."""
    return Session(dispatcher, MAX_MESSAGE)
