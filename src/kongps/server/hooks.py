"""A plugin's ``start()`` and ``close()``, called once for each of its instances."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Callable, Optional

from kongps.core.report import report
from kongps.server.placement import CLOSE, START

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.core.dispatch.instance import Instance
    from kongps.server.placement import Placement

CallLater = Callable[[float, Callable[[], object]], Any]


class Hooks:
    """Calls the hooks of instances where the plugin's handlers run.

    :param dispatcher: where the instances live.
    :param placement: where plugin code runs.
    :param call_later: such as ``Loop.call_later``; without it no ``start`` is late.

    :ivar closing: how many instances have yet to close.
    """

    def __init__(
        self, dispatcher: Dispatcher, placement: Placement, call_later: Optional[CallLater]
    ) -> None:
        self.closing = 0
        self._dispatcher = dispatcher
        self._placement = placement
        self._call_later = call_later
        self._close_when_started: set[Instance] = set()

    def start(self, instance: Instance, start: Callable[[], Any]) -> None:
        """Calls the plugin's ``start``; events wait until it has ended, and fail if it fails."""
        name = instance.plugin.name
        ended = False

        def end(failure: str | None, raised: BaseException | None = None) -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            if timer is not None:
                timer.cancel()
            if failure is not None:
                failure = f"plugin {name} did not start for instance {instance.id}: {failure}"
                report(
                    logging.ERROR,
                    "%s; its requests fail",
                    failure,
                    error=raised,
                    config=instance.config,
                )
            self._dispatcher.release_events(instance, failure)
            if instance in self._close_when_started:
                self._close_when_started.remove(instance)
                self.closing -= 1
                self.close(instance)

        def done(_: Any, raised: BaseException | None) -> None:
            if raised is not None:
                end(f"its start() raised {type(raised).__name__}", raised)
            elif ended:  # too late: what it has opened is of no use any more
                self._call_close(instance)
            else:
                end(None)

        instance.hold_events()
        timeout = self._dispatcher.rules.handler_timeout
        timer: Any = None
        if self._call_later is not None and timeout != float("inf"):
            timer = self._call_later(
                timeout, lambda: end(f"its start() has not ended in {timeout:g} s")
            )
        self._placement.call(instance.plugin, START, start, done)

    def close(self, instance: Instance) -> None:
        """Calls the plugin's ``close``, if its object has one and has started."""
        if instance.failure is not None:
            return
        if instance.has_started:
            self._call_close(instance)
        elif instance.close is not None:
            self._close_when_started.add(instance)
            self.closing += 1

    def _call_close(self, instance: Instance) -> None:
        if instance.close is None:
            return

        def done(_: Any, raised: BaseException | None) -> None:
            self.closing -= 1
            if raised is not None:  # a plugin that fails to close harms no other
                report(
                    logging.ERROR,
                    "plugin %s, close of instance %d raised %s",
                    instance.plugin.name,
                    instance.id,
                    type(raised).__name__,
                    error=raised,
                    config=instance.config,
                )

        self.closing += 1
        self._placement.call(instance.plugin, CLOSE, instance.close, done)
