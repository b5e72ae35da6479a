"""Where the handlers of each plugin run: on the loop's thread, in threads, or under asyncio.

A plain handler runs inline, the fast path, unless its plugin says ``blocking = True``. One that
holds the loop's thread for too long is found out by a watchdog and runs in threads from then on,
unless its plugin says ``blocking = False``. Until a handler has shown that it is quick, only a few
of its events run inline at a time, and others in threads: what blocks would otherwise block once
for each of them. Plugins of kong-python-pdk's layout, which ran in threads there, begin with all
events in threads. An ``async def`` handler runs under asyncio.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from kongps.core.dispatch.dispatcher import Event, Runner
from kongps.core.report import report
from kongps.core.runners.inline import InlineRunner
from kongps.core.runners.threads import ThreadRunner, TrialRunner
from kongps.core.runners.watchdog import Watchdog, phase_of
from kongps.settings import BLOCK_THRESHOLD, HANDLER_THREADS, HANDLER_TIMEOUT

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.core.io.loop_lock import LoopLock
    from kongps.core.runners.asyncio import AsyncRunner
    from kongps.plugins.plugin import Plugin

__all__ = ["Handlers"]

# What is called without a phase: where it runs is chosen as for a handler.
START, CLOSE = "start", "close"
CONSTRUCTOR = "the constructor"

# Events that have to be handled quickly until all run inline; the seconds between two PDK calls
# that are not quick, in a thread; and how many run inline meanwhile.
TRIAL_EVENTS = 64
TRIAL_THRESHOLD = 0.001
TRIAL_INLINE = 4

Done = Callable[[Any, Optional[BaseException]], object]


class LoopLike(Protocol):
    """What of a :class:`kongps.core.loop.Loop` is needed."""

    @property
    def turn(self) -> LoopLock: ...
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None: ...


class Handlers:
    """Chooses where plugin code runs.

    :param loop: the loop on whose thread inline handlers run; without one, everything runs inline.
    :param mode: one of ``kongps.settings.HANDLERS``.
    :param threads: most threads that may have work at a time.
    :param block_threshold: seconds for which a handler may hold the loop's thread.
    :param handler_timeout: seconds after which a handler is interrupted.

    :ivar inline: the runner of inline handlers, which the dispatcher has by default.
    """

    def __init__(
        self,
        loop: LoopLike | None = None,
        *,
        mode: str = "auto",
        threads: int = HANDLER_THREADS,
        block_threshold: float = BLOCK_THRESHOLD,
        handler_timeout: float = HANDLER_TIMEOUT,
    ) -> None:
        self.inline = InlineRunner()
        self.mode = mode
        self.watchdog = Watchdog(
            self.inline.watched(), block_threshold, handler_timeout, self._blocked
        )
        self.dispatcher: Dispatcher | None = None
        self._loop = loop
        self._timeout = handler_timeout
        self._most_threads = threads
        self._threads: ThreadRunner | None = None
        self._asyncio: AsyncRunner | None = None
        # Plugin and phase, or START or CLOSE: where it runs although the plugin does not say so,
        # and of what the log has been told.
        self._moved: dict[tuple[str, str], Runner] = {}
        self._told: set[tuple[str, str]] = set()

    @property
    def threads(self) -> ThreadRunner:
        """The pool of threads, made when it is first needed."""
        if self._threads is None:
            assert self._loop is not None
            self._threads = ThreadRunner(
                self._loop.call_soon_threadsafe, self._loop.turn, self._most_threads
            )
        return self._threads

    @property
    def asyncio(self) -> AsyncRunner:
        """The asyncio loop, started when it is first needed."""
        if self._asyncio is None:
            from kongps.core.runners.asyncio import AsyncRunner

            assert self._loop is not None
            self._asyncio = AsyncRunner(self._loop.call_soon_threadsafe, self._loop.turn)
        return self._asyncio

    def runner(self, plugin: Plugin, what: str) -> Runner:
        """Where something of a plugin runs now.

        :param what: a phase, or START or CLOSE.
        """
        if what in plugin.coroutines or (
            what in (START, CLOSE) and plugin.coroutines.issuperset(plugin.phases)
        ):
            return self.asyncio
        if self._loop is None or plugin.blocking is False:
            return self.inline
        if plugin.blocking or self.mode == "thread":
            return self.threads
        if what in (START, CLOSE) and (
            (plugin.made_for_threads and self.mode == "auto")
            or any(
                self._moved.get((plugin.name, phase)) is self._threads for phase in plugin.phases
            )
        ):
            return self.threads
        return self._moved.get((plugin.name, what), self.inline)

    def runners(self, plugin: Plugin) -> dict[str, Runner]:
        """Where the handlers of a plugin run, by phase; those that are not inline."""
        if plugin.blocking is None and self.mode == "auto" and self._loop is not None:
            for phase in plugin.phases:
                if phase not in plugin.coroutines and (plugin.name, phase) not in self._moved:
                    self._moved[plugin.name, phase] = self._trial(plugin, phase)
        found = {phase: self.runner(plugin, phase) for phase in plugin.phases}
        return {phase: runner for phase, runner in found.items() if runner is not self.inline}

    def _trial(self, plugin: Plugin, phase: str) -> Runner:
        return TrialRunner(
            plugin.name, phase, self.inline, self.threads,
            0 if plugin.made_for_threads else TRIAL_INLINE, TRIAL_EVENTS, TRIAL_THRESHOLD,
            self._passed,
        )  # fmt: skip

    def call(self, plugin: Plugin, what: str, function: Callable[[], Any], done: Done) -> None:
        """Calls a plugin's ``start`` or ``close`` where its handlers run.

        :param what: START or CLOSE.
        :param function: called without arguments.
        :param done: called on the loop's thread, at once or later, with what it returned and what
            it raised, one of which is None.
        """
        runner = self.runner(plugin, what)
        if runner is not self.inline:
            name = f"{what} of plugin {plugin.name}"
            try:
                runner.submit(function, done, name, plugin.path)  # type: ignore[attr-defined]
            except Exception as error:  # such as what a plugin made of asyncio's policy
                done(None, error)
            return
        try:
            value = self.inline.visit((plugin, what), function)
        except BaseException as error:
            done(None, error)
        else:
            done(value, None)

    def construct(self, plugin: Plugin, config: dict[str, Any]) -> dict[str, Callable[..., Any]]:
        """Makes a plugin's object for one configuration, as ``Plugin.new`` does."""
        return self.inline.visit((plugin, CONSTRUCTOR), lambda: plugin.new(config))

    def end_late(self) -> None:
        """Lets go of what takes too long and is no event's handler that Kong waits for."""
        if self._threads is not None:
            self._threads.end_late(self._timeout)
        if self._asyncio is not None:
            self._asyncio.end_late(self._timeout)

    def after_fork(self) -> None:
        """In a child process that a handler has forked: no handler is to answer from there."""
        for runner in (self._threads, self._asyncio):
            if runner is not None:
                runner.after_fork()

    def stop(self) -> None:
        """Ends what runs beside the loop; threads that are stuck are not waited for."""
        self.watchdog.stop()
        if self._threads is not None:
            self._threads.stop()
        if self._asyncio is not None:
            self._asyncio.stop()

    def _blocked(
        self,
        event: Event | None,
        hook: tuple[Plugin, str] | None,
        seconds: float,
        where: str | None,
    ) -> None:
        """The watchdog has found plugin code that holds the loop's thread."""
        if event is not None:
            plugin, what = event.instance.plugin, phase_of(event)
        elif hook is not None:
            plugin, what = hook
        else:
            return
        if (plugin.name, what) in self._told:
            return
        self._told.add((plugin.name, what))
        moves = self.mode == "auto" and plugin.blocking is None and self._loop is not None
        if what == CONSTRUCTOR:
            advice = "what takes time belongs into start()"
        elif moves:
            advice = "it runs in threads from now on, with blocking = True in the plugin at once"
        else:
            advice = "it stays inline, as it was told to"
        report(
            logging.WARNING,
            "plugin %s: %s has held the server for %.0f ms%s%s; every request waits meanwhile; %s",
            plugin.name, what if event is None else f"the {what} handler", seconds * 1000,
            " without a PDK call" if event is not None else "", f", at {where}" if where else "",
            advice,
        )  # fmt: skip
        if moves and what != CONSTRUCTOR:
            self._move(plugin.name, what, self.threads)  # before this handler has ended

    def _passed(self, plugin: str, phase: str) -> None:
        """A plugin's handlers of a phase are quick."""
        if (plugin, phase) not in self._told:
            self._move(plugin, phase, self.inline)

    def _move(self, plugin: str, phase: str, runner: Runner) -> None:
        """Has a plugin's handlers of a phase run elsewhere. From any thread."""
        self._moved[plugin, phase] = runner
        self.threads.end_trial(plugin, phase)
        if self.dispatcher is not None:
            for instance in self.dispatcher.all_instances():
                if instance.plugin.name == plugin and phase not in (START, CLOSE):
                    instance.run_in(phase, runner)
