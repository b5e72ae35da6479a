"""Where the handlers of each plugin run: on the loop's thread, in threads, or under asyncio.

That is decided when the plugin is loaded (:mod:`kongps.plugins.runs_in`), unless the setting
``handlers`` decides it for plugins that do not say ``blocking``. One thing changes it later: a
phase that runs inline and holds up the loop's thread is found by the watchdog, and runs in threads
from then on.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from kongps.core.dispatch.event import Event, Runner
from kongps.core.report import report
from kongps.core.runners.inline import InlineRunner
from kongps.core.runners.threads import ThreadRunner
from kongps.core.runners.watchdog import Watchdog
from kongps.core.wire.phases import PHASE_NAMES

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.core.io.loop_lock import LoopLock
    from kongps.core.runners.asyncio import AsyncRunner
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

__all__ = ["CLOSE", "START", "Placement"]

# What is called without a phase; it runs where the plugin's handlers do.
START, CLOSE = "start", "close"
CONSTRUCTOR = "the constructor"

# Where handlers run that do not say so themselves, by the setting `handlers`.
FORCED = {"inline": "inline", "thread": "threads"}

Done = Callable[[Any, Optional[BaseException]], object]


class LoopLike(Protocol):
    """What of a :class:`kongps.core.io.loop.Loop` is needed."""

    @property
    def lock(self) -> LoopLock: ...
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None: ...


class Placement:
    """Runs plugin code where it belongs.

    :param loop: the loop on whose thread inline handlers run; without one, everything runs inline.
    :param settings: ``handlers``, ``handler_threads``, ``block_threshold`` and
        ``handler_timeout`` of them.

    :ivar inline: the runner of inline handlers, which the dispatcher has by default.
    :ivar dispatcher: whose instances move when a phase does.
    """

    dispatcher: Dispatcher | None = None

    def __init__(self, loop: LoopLike | None, settings: Settings) -> None:
        forever = float("inf")
        self._loop = loop
        self._mode = settings.handlers
        self._most_threads = settings.handler_threads
        self._timeout = settings.handler_timeout or forever
        self.inline = InlineRunner(None if loop is None else self._submit)
        self.watchdog = Watchdog(
            self.inline.visits, settings.block_threshold or forever, self._timeout, self._blocked
        )
        self._off_loop: list[ThreadRunner | AsyncRunner] = []
        # Plugin and what was called: those that have moved to threads, and those that were logged.
        self._moved: set[tuple[str, str]] = set()
        self._logged: set[tuple[str, str]] = set()

    @cached_property
    def threads(self) -> ThreadRunner:
        """The pool of threads, made when it is first needed."""
        assert self._loop is not None
        runner = ThreadRunner(self._loop.call_soon_threadsafe, self._loop.lock, self._most_threads)
        self._off_loop.append(runner)
        return runner

    @cached_property
    def asyncio(self) -> AsyncRunner:
        """The asyncio loop, started when it is first needed."""
        from kongps.core.runners.asyncio import AsyncRunner

        assert self._loop is not None
        runner = AsyncRunner(self._loop.call_soon_threadsafe, self._loop.lock, self._submit)
        self._off_loop.append(runner)
        return runner

    # --- where something runs --------------------------------------------------------------------

    def where(self, plugin: Plugin, what: str) -> str:
        """Where something of a plugin runs now: ``inline``, ``threads`` or ``asyncio``.

        :param what: a phase, or START or CLOSE.
        """
        decided = plugin.where(what)
        if decided == "asyncio":
            return decided
        if self._loop is None:
            return "inline"
        if plugin.blocking is None:
            decided = FORCED.get(self._mode, decided)
        phases = plugin.phases if what in (START, CLOSE) else (what,)
        if any((plugin.name, phase) in self._moved for phase in phases):
            return "threads"
        return decided

    def describe(self, plugin: Plugin) -> str:
        """Where a plugin's handlers run and why, for the log."""
        text = plugin.describe_where()
        if plugin.blocking is None and plugin.placed.runs_in != "asyncio" and self._mode in FORCED:
            place = {"inline": "inline", "thread": "in threads"}[self._mode]
            text = f"its plain handlers run {place}: --handlers {self._mode}"
        return f"plugin {plugin.name}: {text}"

    def runners(self, plugin: Plugin) -> dict[str, Runner]:
        """Where the handlers of a plugin run, by phase; those that are not inline."""
        found = {phase: self._runner(plugin, phase) for phase in plugin.phases}
        return {phase: runner for phase, runner in found.items() if runner is not self.inline}

    def _runner(self, plugin: Plugin, what: str) -> Runner:
        where = self.where(plugin, what)
        if where == "asyncio":
            return self.asyncio
        return self.threads if where == "threads" else self.inline

    # --- running it ------------------------------------------------------------------------------

    def call(self, plugin: Plugin, what: str, function: Callable[[], Any], done: Done) -> None:
        """Calls a plugin's ``start`` or ``close`` where its handlers run.

        :param what: START or CLOSE.
        :param function: called without arguments.
        :param done: called on the loop's thread, at once or later, with what it returned and what
            it raised, one of which is None.
        """
        runner = self._runner(plugin, what)
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

    def _submit(self, *job: Any) -> None:
        """Runs something of the server's own in a thread, as ``ThreadRunner.submit`` does."""
        self.threads.submit(*job)

    def construct(self, plugin: Plugin, config: dict[str, Any]) -> dict[str, Callable[..., Any]]:
        """Makes a plugin's object for one configuration, as ``Plugin.new`` does."""
        return self.inline.visit((plugin, CONSTRUCTOR), lambda: plugin.new(config))

    def end_late(self) -> None:
        """Gives up what takes too long and is no event's handler that Kong waits for."""
        for runner in self._off_loop:
            runner.end_late(self._timeout)

    def after_fork(self) -> None:
        """In a child process that a handler has forked: no handler is to answer from there."""
        for runner in self._off_loop:
            runner.after_fork()

    def stop(self) -> None:
        """Ends what runs beside the loop; threads that are stuck are not waited for."""
        self.watchdog.stop()
        for runner in self._off_loop:
            runner.stop()

    # --- what blocks -----------------------------------------------------------------------------

    def _blocked(
        self,
        event: Event | None,
        hook: tuple[Plugin, str] | None,
        seconds: float,
        where: str | None,
    ) -> None:
        """The watchdog has found plugin code that holds the loop's thread. On its thread."""
        if event is not None:
            plugin, what = event.instance.plugin, PHASE_NAMES[event.phase]
        elif hook is not None:
            plugin, what = hook
        else:
            return
        if (plugin.name, what) in self._logged:
            return
        self._logged.add((plugin.name, what))
        moves = self._mode == "auto" and plugin.blocking is None and self._loop is not None
        if what == CONSTRUCTOR:
            advice = "move what takes time to start()"
        elif moves:
            advice = (
                "it runs in threads from now on; write blocking = True in the plugin, and it does "
                "from the start"
            )
        else:
            reason = "--handlers inline" if plugin.blocking is None else "blocking = False"
            advice = f"it stays inline, because of {reason}; blocking = True runs it in threads"
        report(
            logging.WARNING,
            "plugin %s: %s has held the server for %.0f ms%s%s; every request waits meanwhile; %s",
            plugin.name,
            what if event is None else f"the {what} handler",
            seconds * 1000,
            " without a PDK call" if event is not None else "",
            f", at {where}" if where else "",
            advice,
        )
        if moves and what != CONSTRUCTOR:
            self._move_to_threads(plugin.name, what)  # before this handler has ended

    def _move_to_threads(self, plugin: str, what: str) -> None:
        """Runs the new events of a plugin's phase in threads. From any thread."""
        self._moved.add((plugin, what))
        if self.dispatcher is None or what in (START, CLOSE):
            return
        for instance in self.dispatcher.all_instances():
            if instance.plugin.name == plugin:
                instance.run_in(what, self.threads)
