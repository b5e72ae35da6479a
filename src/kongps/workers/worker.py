"""A worker process: it serves without a socket of its own; the supervisor passes it connections."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from kongps.core.dispatch.deferred import DeferredResult
from kongps.core.workers.channel import signal_at_end_of_parent
from kongps.core.workers.journal import Journal
from kongps.core.workers.relay import Routes
from kongps.core.workers.worker_connection import SupervisorChannel
from kongps.errors import KongpsError
from kongps.server.commands import log_numbers
from kongps.server.core import ServingCore
from kongps.server.shutdown import DRAIN_INTERVAL, SUCCESSOR_TIME, Handlers, end_process_after
from kongps.stdio import print_at_once, stdout_kept_clean
from kongps.workers.messages import Gathering, merged, packed, receive, send_last

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")


@dataclass
class Assignment:
    """What a supervisor gives a worker.

    :ivar number: the worker's, which is part of the ids of its events.
    :ivar journal: where it notes what it owes to Kong.
    :ivar area: which receive area of the journal it has.
    :ivar channel: file descriptor of the channel to the supervisor.
    :ivar supervisor: the supervisor's process id.
    """

    number: int
    journal: Journal
    area: int
    channel: int
    supervisor: int


class Worker:
    """A worker.

    :param settings: the server's settings.
    :param assignment: what the supervisor gives it.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :raises ServerError: when the plugins directory cannot be read, or is refused.
    """

    def __init__(
        self, settings: Settings, assignment: Assignment, plugins: dict[str, Plugin] | None = None
    ) -> None:
        self.settings = settings
        self.assignment = assignment
        self.core = core = ServingCore(settings, plugins)
        core.dispatcher.tag_event_ids(assignment.number)
        core.commands.connections = self._connections
        self.routes = Routes(assignment.number, core.loop, core.dispatcher.lost_events_pass)
        self._messages: dict[str, Callable[..., object]] = {
            "store": self._use_store,
            "numbers": self._send_numbers,
            "retire": self._retire,
            "stop": self._stop,
            "end": core.loop.stop,
        }
        self.channel = SupervisorChannel(
            assignment.journal,
            assignment.area,
            core.dispatcher,
            core.unfinished,
            settings.max_message,
            self.routes,
            self._receive,
            self._supervisor_gone,
        )
        self._stop_at: float | None = None
        self._signals = 0
        self._drained = False
        self._drained_peers: set[int] = set()
        self._retiring = False
        on_command = core.dispatcher.on_command
        on_command("plugin.GetStatus", self._get_status)
        on_command("plugin.CloseInstance", self._close_instance)
        self._peer_commands: dict[str, Callable[[Any], object]] = {
            "kongps.Status": core.commands.get_status,
            "kongps.CloseInstance": core.instances.drop,
            "kongps.Abandon": core.dispatcher.abandon_event,
            "kongps.Drained": self._drained_peers.add,
        }

    def run(self) -> None:
        """Serves until the supervisor ends it, or is gone."""
        signal_at_end_of_parent(signal.SIGTERM)
        core = self.core
        handlers: Handlers = {
            signal.SIGTERM: self._on_stop_signal,
            signal.SIGINT: self._on_stop_signal,
            signal.SIGUSR1: partial(core.loop.call_soon_threadsafe, self._on_sigusr1),
            signal.SIGHUP: int,  # meant for the supervisor, which shares the terminal
        }
        with core.running(handlers):
            self.channel.start(core.loop, self.assignment.channel)
            self._send(
                "ready", sorted(core.errors.values()), sorted(core.plugins), core.placements()
            )
            if os.getppid() != self.assignment.supervisor:  # it ended before the kernel was asked
                self._on_stop_signal()
            try:
                core.loop.run()
                if core.loop.failed is not None:
                    # Other workers can answer for its connections, and it cannot.
                    logger.error("worker %d ends: %s", os.getpid(), core.loop.failed)
                    os._exit(1)
            finally:
                self._stop_at = time.monotonic()
                self.channel.hang_up()

    # --- messages of the supervisor --------------------------------------------------------------

    def _send(self, name: str, *args: object) -> None:
        self.channel.send(packed(name, *args))

    def _receive(self, data: bytes, fds: list[int]) -> None:
        receive({**self._messages, "link": partial(self._link, fds)}, data)

    def _use_store(self, path: str) -> None:
        """The store by which workers know of each other's instances."""
        from kongps.server.store import InstanceStore

        self.core.instances.store = InstanceStore(path, shared=True)

    def _link(self, fds: list[int], worker: int) -> None:
        """A link with another worker: two sockets."""
        calls, answers = fds
        self.routes.add(worker, calls, answers, self.core.dispatcher, self._peer_commands)
        self._send("linked", worker)

    def _send_numbers(self) -> None:
        """The supervisor asks what this worker holds."""
        self._send("numbers", self.core.commands.numbers())

    def _retire(self) -> None:
        """Passes back its connections, each when it is idle, finishes its events, and ends."""
        if self._retiring or self._stop_at is not None:
            return
        self._retiring = True
        self.channel.retire()
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if self._stop_at is not None:
            return
        if self._connections() or self.core.dispatcher.live_events or self.routes.outstanding:
            self.core.loop.call_later(DRAIN_INTERVAL, self._leave_when_done)
        else:
            self._stop_at = time.monotonic()
            self.core.end(self._stop_at)

    # --- stopping --------------------------------------------------------------------------------

    def _on_stop_signal(self) -> None:
        """Reports it to the supervisor, which may have to stop too, or be gone."""
        self._signals += 1
        if self._signals > 1:
            return
        end_process_after(self.settings.shutdown_timeout + SUCCESSOR_TIME)
        self.core.loop.call_soon_threadsafe(lambda: self._send("signalled"))

    def _supervisor_gone(self) -> None:
        if self._stop_at is None:
            logger.error("the supervisor is gone: worker %d ends", os.getpid())
            end_process_after(self.settings.shutdown_timeout)
            self._stop(0.0)

    def _stop(self, gone: float) -> None:
        """Ends when the events under way have, or time is over.

        :param gone: seconds of that time that are over already.
        """
        if self._stop_at is not None:
            return
        self._stop_at = time.monotonic() + self.settings.shutdown_timeout - gone
        # Who has just connected gets that long to send a request.
        self.core.loop.call_later(DRAIN_INTERVAL, lambda: self._drain(self._stop_at or 0.0))

    def _drain(self, deadline: float) -> None:
        """Ends when no worker has an event: steps for theirs come here too."""
        loop, dispatcher, routes = self.core.loop, self.core.dispatcher, self.routes
        left = deadline - time.monotonic()
        # Kong goes on using the connections in its pool, until there is another server.
        replaced = os.path.exists(self.settings.socket)
        loop.draining = replaced or left < self.settings.shutdown_timeout / 2
        if loop.draining and not dispatcher.live_events:
            loop.close_idle_streams()
        if not self._drained and not dispatcher.live_events and not routes.outstanding:
            self._drained = True
            for peer in routes.others():
                peer.ask("kongps.Drained", self.assignment.number, lambda _: None)
        waited_for = {peer.worker for peer in routes.others()} - self._drained_peers
        busy = not self._drained or waited_for or routes.outstanding
        if busy and left > 0:
            loop.call_later(DRAIN_INTERVAL, lambda: self._drain(deadline))
        else:
            self.core.end(deadline)

    # --- the whole server ------------------------------------------------------------------------

    def _connections(self) -> int:
        """Those of Kong: a link with another worker has two."""
        return max(0, self.core.loop.streams - 2 * len(self.routes.others()))

    def _close_instance(self, id: Any) -> dict[str, Any]:
        closed = self.core.commands.close_instance(id)
        for peer in self.routes.others():
            peer.ask("kongps.CloseInstance", closed["Id"], lambda _: None)
        return closed

    def _get_status(self, argument: Any) -> DeferredResult:
        result = DeferredResult()
        self._gather(result.resolve)
        return result

    def _on_sigusr1(self) -> None:
        self._gather(log_numbers)

    def _gather(self, done: Callable[[dict[str, Any]], object]) -> None:
        """Calls `done` with the status of all workers together, once."""
        peers = self.routes.others()
        gathering = Gathering(
            self.core.loop,
            [peer.worker for peer in peers],
            lambda parts: done(merged(parts, self.assignment.supervisor)),
            [self.core.commands.get_status(0)],
        )
        for peer in peers:
            peer.ask("kongps.Status", 0, partial(gathering.receive, peer.worker))


def work(
    settings: Settings, assignment: Assignment, plugins: dict[str, Plugin] | None = None
) -> int:
    """Runs a worker, in a process that the supervisor has forked.

    :param settings: the server's settings.
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
    except KongpsError as error:
        send_last(assignment.channel, packed("failed", str(error)))
        return 1
    print_at_once()
    worker.run()
    return 0
