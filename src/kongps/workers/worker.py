"""A worker process: a server without a socket of its own; the supervisor passes it connections."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from kongps.core.dispatch.dispatcher import DeferredResult
from kongps.core.wire.msgpack import packb, unpackb
from kongps.core.workers.handover import SupervisorChannel, signal_at_end_of_parent
from kongps.core.workers.journal import Journal
from kongps.core.workers.relay import Routes
from kongps.errors import KongpsError, ServerError
from kongps.server.server import (
    DRAIN_INTERVAL,
    NUMBERS,
    SUCCESSOR_TIME,
    Server,
)
from kongps.stdio import print_at_once, stdout_kept_clean

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Seconds that other workers get to tell their part of the server's status.
STATUS_PATIENCE = 2.0

# What is summed when several workers tell what they hold.
SUMMED = ("Events", "EventsHandled", "Instances", "Connections", "Memory")


@dataclass
class Assignment:
    """What a supervisor gives a worker.

    :ivar number: the worker's, which is part of the ids of its events.
    :ivar journal: where it notes what it owes to Kong.
    :ivar desk: which desk of the journal it has.
    :ivar channel: file descriptor of the line to the supervisor.
    :ivar supervisor: the supervisor's process id.
    """

    number: int
    journal: Journal
    desk: int
    channel: int
    supervisor: int


class Worker(Server):
    """A worker.

    :param settings: what the server is told.
    :param assignment: what the supervisor gives it.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :raises ServerError: when the plugins directory cannot be read, or is refused.
    """

    def __init__(
        self, settings: Settings, assignment: Assignment, plugins: dict[str, Plugin] | None = None
    ) -> None:
        super().__init__(replace(settings, parent_watch=False), plugins)
        self.assignment = assignment
        self.dispatcher.be_worker(assignment.number)
        self.routes = Routes(assignment.number, self.loop, self.dispatcher.lets_lost_pass)
        self.intake = SupervisorChannel(
            assignment.journal,
            assignment.desk,
            self.dispatcher,
            self._unfinished,
            self.routes,
            self._told,
            self._supervisor_gone,
        )
        self._drained_peers: set[int] = set()
        self._drained = False
        self._retiring = False
        self._links = 0
        self.methods.connections = self._connections
        self.dispatcher.on_command("plugin.GetStatus", self._get_status)
        self.dispatcher.on_command("plugin.CloseInstance", self._close_instance)
        self.dispatcher.on_command("kongps.Status", self.methods.get_status)
        self.dispatcher.on_command("kongps.CloseInstance", self.methods.drop_instance)
        self.dispatcher.on_command("kongps.Abandon", self.dispatcher.abandon_event)
        self.dispatcher.on_command("kongps.Drained", self._drained_peers.add)

    def run(self) -> None:
        """Serves until the supervisor says that it is enough, or is gone."""
        signal_at_end_of_parent(signal.SIGTERM)
        self._call_regularly()
        restore = self._take_signals()
        self.intake.start(self.loop, self.assignment.channel)
        self.handlers.watchdog.start()
        self._tell("ready", sorted(self.errors.values()), sorted(self.plugins))
        if os.getppid() != self.assignment.supervisor:  # it was gone before the kernel was asked
            self._signalled()
        try:
            self.loop.run()
            if self.loop.failed is not None:
                # Other workers can answer for its connections, and it cannot.
                logger.error("worker %d ends: %s", os.getpid(), self.loop.failed)
                os._exit(1)
        finally:
            self.intake.hang_up()
            restore()
            self._close()

    # --- what the supervisor says ----------------------------------------------------------------

    def _tell(self, *words: object) -> None:
        self.intake.tell(packb(list(words)))

    def _told(self, data: bytes, fds: list[int]) -> None:
        word, *rest = unpackb(data)
        orders: dict[str, Callable[..., None]] = {
            "store": self._use_store,
            "link": self._link,
            "stop": self._begin_stop,
            "retire": self._retire,
            "end": self.loop.stop,
            "numbers": self._tell_supervisor_numbers,
        }
        orders[word](*rest, *([fds] if word == "link" else []))

    def _use_store(self, path: str) -> None:
        from kongps.server.store import InstanceStore

        self.methods.store = InstanceStore(path, shared=True)

    def _link(self, worker: int, fds: list[int]) -> None:
        calls, answers = fds
        self.routes.add(worker, calls, answers, self.dispatcher)
        self._tell("linked", worker)

    def _tell_supervisor_numbers(self, request: int) -> None:
        self._tell("numbers", request, self.methods.numbers())

    def _supervisor_gone(self) -> None:
        if self._stop_at is None:
            logger.error("the supervisor is gone: worker %d ends", os.getpid())
            self._end_if_held_up(self.settings.shutdown_timeout)
            self._begin_stop()

    # --- ends ------------------------------------------------------------------------------------

    def _signalled(self) -> None:
        """Asks the supervisor what this is about: it may be told to stop too, or be gone."""
        self._signals += 1
        if self._signals > 1:
            return
        self._end_if_held_up(self.settings.shutdown_timeout + SUCCESSOR_TIME)
        self.loop.call_soon_threadsafe(lambda: self._tell("signalled"))

    def _hung_up(self) -> None:
        pass  # meant for the supervisor, which shares the terminal

    def _begin_stop(self, gone: float = 0.0) -> None:
        """Ends when the events under way have, or time is over.

        :param gone: seconds of that time that are over already.
        """
        if self._stop_at is not None:
            return
        self._stop_at = time.monotonic() + self.settings.shutdown_timeout - gone
        # Those who had just connected get that long to say what they want.
        self.loop.call_later(DRAIN_INTERVAL, self._drain)

    def _drain(self) -> None:
        """Ends when no worker has an event: steps for theirs come here too."""
        assert self._stop_at is not None
        left = self._stop_at - time.monotonic()
        # Kong goes on using the connections in its pool, until there is another server.
        replaced = os.path.exists(self.settings.socket)
        self.loop.draining = replaced or left < self.settings.shutdown_timeout / 2
        if self.loop.draining and not self.dispatcher.live_events:
            self.loop.close_idle_streams()
        if not self._drained and not self.dispatcher.live_events and not self.routes.outstanding:
            self._drained = True
            for peer in self.routes.others():
                peer.ask("kongps.Drained", self.assignment.number, lambda _: None)
        waited_for = {peer.worker for peer in self.routes.others()} - self._drained_peers
        busy = not self._drained or waited_for or self.routes.outstanding
        if busy and left > 0:
            self.loop.call_later(DRAIN_INTERVAL, self._drain)
        else:
            self._end()

    def _retire(self) -> None:
        """Hands over its connections, each when it is idle, finishes its events, and ends."""
        if self._retiring or self._stop_at is not None:
            return
        self._retiring = True
        self.intake.retire()
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if self._stop_at is not None:
            return
        if self._connections() or self.dispatcher.live_events or self.routes.outstanding:
            self.loop.call_later(DRAIN_INTERVAL, self._leave_when_done)
        else:
            self._end()

    # --- the whole server ------------------------------------------------------------------------

    def _connections(self) -> int:
        """Those of Kong: a link with another worker has two."""
        return max(0, self.loop.streams - 2 * len(self.routes.others()))

    def _close_instance(self, id: Any) -> dict[str, Any]:
        closed = self.methods.close_instance(id)
        for peer in self.routes.others():
            peer.ask("kongps.CloseInstance", closed["Id"], lambda _: None)
        return closed

    def _get_status(self, argument: Any) -> DeferredResult:
        later = DeferredResult()
        self._gather(later.resolve)
        return later

    def _tell_numbers(self) -> None:
        self._gather(lambda status: logger.info(NUMBERS, status))

    def _gather(self, told: Callable[[dict[str, Any]], object]) -> None:
        """Has `told` called with the status of all workers together, once."""
        own = self.methods.get_status(None)
        parts: list[dict[str, Any]] = [own]
        waiting = {peer.worker for peer in self.routes.others()}
        done = False

        def finish() -> None:
            nonlocal done
            if not done:
                done = True
                timer.cancel()
                told(merged(parts, self.assignment.supervisor))

        timer = self.loop.call_later(STATUS_PATIENCE, finish)

        def came(worker: int, part: Any) -> None:
            waiting.discard(worker)
            if part is not None:
                parts.append(part)
            if not waiting:
                finish()

        for peer in self.routes.others():
            peer.ask("kongps.Status", 0, partial(came, peer.worker))
        if not waiting:
            finish()


def merged(parts: list[dict[str, Any]], pid: int) -> dict[str, Any]:
    """The status of a server, from that of its workers.

    :param parts: what ``Methods.get_status`` gave in each.
    :param pid: the process id of the server.
    """
    whole: dict[str, Any] = {"Pid": pid, **add_up(parts)}
    whole["Workers"] = [{name: part[name] for name in ("Pid", *SUMMED)} for part in parts]
    plugins: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, plugin in part["Plugins"].items():
            known = plugins.setdefault(name, {**plugin, "Instances": []})
            ids = {row["Id"] for row in known["Instances"]}
            known["Instances"] += [row for row in plugin["Instances"] if row["Id"] not in ids]
            for field in ("LoadTime", "Modtime", "LastStartInstance", "LastCloseInstance"):
                known[field] = max(known[field], plugin[field])
    whole["Plugins"] = plugins
    return whole


def add_up(parts: list[dict[str, Any]]) -> dict[str, int]:
    """The sums of what several workers hold."""
    return {name: sum(part[name] for part in parts) for name in SUMMED}


def work(
    settings: Settings, assignment: Assignment, plugins: dict[str, Plugin] | None = None
) -> int:
    """Is a worker; in a process that the supervisor has forked.

    :param settings: what the server is told.
    :param assignment: what the supervisor gives the worker.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :returns: the exit code.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # until it has handlers for them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal_at_end_of_parent(signal.SIGTERM)
    try:
        with stdout_kept_clean():
            worker = Worker(settings, assignment, plugins)
    except (ServerError, KongpsError) as error:
        _say_last(assignment.channel, str(error))
        return 1
    print_at_once()
    worker.run()
    return 0


def _say_last(channel: int, reason: str) -> None:
    import socket
    import struct

    with socket.socket(fileno=channel) as line, contextlib.suppress(OSError):
        line.send(struct.pack("=II", 0, 0) + packb(["failed", reason]))
