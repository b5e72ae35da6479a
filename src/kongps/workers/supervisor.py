"""The process above the workers: it accepts connections and passes them on, and loads no plugin."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from kongps._version import __version__
from kongps.core.io.loop import Loop, Timer
from kongps.core.wire.msgpack import packb, unpackb
from kongps.core.workers.handover import (
    Channel,
    ConnectionBroker,
    WorkerChannel,
    signal_at_end_of_parent,
)
from kongps.core.workers.journal import Journal
from kongps.errors import ServerError, UsageError
from kongps.server.server import (
    DRAIN_INTERVAL,
    HAND_OVER_TIME,
    NUMBERS,
    STOP_GRACE,
    WATCH_INTERVAL,
    HandOver,
    SocketFiles,
)
from kongps.workers.worker import Assignment, add_up, work

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Seconds that a worker has to serve before its death counts as the first again.
STEADY = 10.0

# Seconds until a worker is replaced that died soon after another one did: at first, and at most.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0

# Numbers of workers, which are part of the ids of events. A number is used again after so many.
NUMBERS_OF_WORKERS = 4096

# Seconds that workers get to tell what they hold.
NUMBERS_PATIENCE = 2.0


@dataclass(eq=False)
class WorkerProcess:
    """A worker, as the supervisor sees it.

    :ivar number: part of the ids of its events.
    :ivar generation: how often the plugins had been loaded anew when it was started.
    :ivar linked: numbers of the workers that it has links with.
    :ivar unlinked: numbers of those that are still to confirm it; until then they would not know
        what to do with a step for an event of this worker.
    """

    number: int
    pid: int
    generation: int
    started: float
    line: WorkerChannel
    ready: bool = False
    serving: bool = False
    leaving: bool = False
    failure: str | None = None
    linked: set[int] = field(default_factory=set)
    unlinked: set[int] = field(default_factory=set)


class Supervisor:
    """Starts workers, passes them connections, and replaces those that die.

    :param settings: what the server is told.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    """

    def __init__(self, settings: Settings, plugins: dict[str, Plugin] | None = None) -> None:
        self.settings = settings
        self.plugins = plugins
        if settings.reload and importlib.util.find_spec("watchfiles") is None:
            raise UsageError("--reload needs watchfiles: python -m pip install 'kongps[reload]'")
        self._parent = os.getppid()
        self.loop = Loop(settings.max_connections)
        desks = max(32, 4 * settings.workers)
        # Slots of connections that are over are free once their workers have noticed.
        self.journal = Journal(2 * settings.max_connections + 1024, desks)
        self.board = ConnectionBroker(self.journal)
        self.sockets = SocketFiles()
        self.hands: dict[int, WorkerProcess] = {}  # by process id
        self._number = int.from_bytes(os.urandom(2), "big") % NUMBERS_OF_WORKERS
        self._generation = 0  # the one that serves
        self._next_generation: int | None = None  # the one that is being loaded
        self._wanted: list[int] = []  # generations of the workers to fork
        self._pause = 0.0
        self._store: str | None = None
        self._private: str | None = None
        self._names: list[str] = []
        self._failure: str | None = None
        self._stop_at: float | None = None
        self._hand_over = HandOver(
            self.loop,
            self.sockets,
            lambda: self.board.connections,
            settings.shutdown_timeout,
            lambda: self._stop_at is not None,
            self._begin_stop,
        )
        self._opened = False
        self._finished = False
        self._watcher: Channel | None = None
        self._requests: dict[int, Callable[[WorkerProcess, Any], None]] = {}
        self._request = 0

    def run(self) -> int:
        """Serves until told to stop: by SIGTERM, SIGINT or the parent's end.

        :returns: the exit code; in a worker, that of the worker.
        :raises ServerError: when the socket cannot be opened, or no plugin loaded.
        """
        restore = self._take_signals()
        self.loop.call_every(WATCH_INTERVAL, self._watch)
        if self.settings.reload and self._start_watcher():
            return 0
        self._wanted = [0] * self.settings.workers
        try:
            while not self._finished:
                while self._wanted:
                    assignment = self._fork(self._wanted.pop(0))
                    if assignment is not None:
                        restore()
                        self._become_worker()
                        return work(self.settings, assignment, self.plugins)
                self.loop.run()
        finally:
            if self._is_supervisor():
                self._close()
                restore()
        if self._failure is not None:
            raise ServerError(self._failure)
        logger.info("kongps has stopped")
        return 0

    # --- processes -------------------------------------------------------------------------------

    _pid = 0

    def _is_supervisor(self) -> bool:
        return self._pid == os.getpid()

    def _take_signals(self) -> Callable[[], None]:
        self._pid = os.getpid()
        calls: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._hand_over.signalled,
            signal.SIGINT: self._hand_over.signalled,
            signal.SIGHUP: self.reload,
            signal.SIGUSR1: self._tell_numbers,
            signal.SIGCHLD: self._reap,
        }
        old_fd = signal.set_wakeup_fd(self.loop.wakeup_fd, warn_on_full_buffer=False)
        old = {
            number: signal.signal(
                number, lambda *_, call=call: self.loop.call_soon_threadsafe(call)
            )
            for number, call in calls.items()
        }

        def restore() -> None:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)

        return restore

    def _fork(self, generation: int) -> Assignment | None:
        """Starts a worker; in its process, gives what it is to do."""
        taken = {hand.line.desk for hand in self.hands.values()}
        desk = next(desk for desk in range(self.journal.desks) if desk not in taken)
        alive = {hand.number for hand in self.hands.values()}
        self._number = (self._number + 1) % NUMBERS_OF_WORKERS
        while self._number in alive:
            self._number = (self._number + 1) % NUMBERS_OF_WORKERS
        number, supervisor = self._number, os.getpid()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        far.setblocking(False)
        pid = os.fork()
        if pid == 0:
            near.close()
            return Assignment(number, self.journal, desk, far.detach(), supervisor)
        far.close()
        line = WorkerChannel(self.board, desk, lambda data, fds: self._told(hand, data), None)
        hand = WorkerProcess(number, pid, generation, time.monotonic(), line)
        self.hands[pid] = hand
        line.start(self.loop, near.detach())
        return None

    def _become_worker(self) -> None:
        """Lets go, in a worker, of what belongs to the supervisor."""
        self.loop.forked()

    def _start_watcher(self) -> bool:
        """Starts the process that watches the plugins directory; True in that process."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        if os.fork() == 0:
            near.close()
            self._become_worker()
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            signal_at_end_of_parent(signal.SIGKILL)
            watch(self.settings.plugins_directory, far)
            return True
        far.close()
        self._watcher = Channel(lambda data, fds: self.reload(), None)
        self._watcher.start(self.loop, near.detach())
        logger.info("watching %s for changes", self.settings.plugins_directory)
        return False

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            hand = self.hands.pop(pid, None)
            if hand is not None:
                self._ended(hand, status)

    def _ended(self, hand: WorkerProcess, status: int) -> None:
        """A worker has ended; what is left of it goes to the others."""
        how = (
            f"was killed by signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"ended with exit code {os.WEXITSTATUS(status)}"
        )
        left = self.board.bereave(hand.line)
        hand.line.hang_up()
        for other in self.hands.values():
            other.unlinked.discard(hand.number)
        self._open_linked()
        if self._stop_at is not None:
            if not self.hands:
                self._finish()
            return
        if hand.generation == self._next_generation:
            self._give_up_reload(hand.failure or f"a new worker {how}")
            return
        if self._generation == 0 and not self.sockets.paths:
            self._fail_to_start(hand.failure or f"a worker {how} before it was ready")
            return
        if hand.leaving and status == 0:
            logger.info("worker %d has finished its events and ended", hand.pid)
        elif hand.failure != "replaced":
            logger.error(
                "worker %d %s%s; its events fail, and %d connections go to other workers",
                hand.pid, how, f": {hand.failure}" if hand.failure else "", left,
            )  # fmt: skip
        if hand.generation != self._generation:
            return
        self._replace(time.monotonic() - hand.started)

    def _replace(self, lived: float) -> None:
        if lived >= STEADY:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        if pause:
            logger.warning("the next worker starts in %g s", pause)
        generation = self._generation
        self.loop.call_later(pause, lambda: self._want(generation))

    def _want(self, generation: int) -> None:
        if self._stop_at is None and generation in (self._generation, self._next_generation):
            self._wanted.append(generation)
            self.loop.stop()

    # --- what workers say ------------------------------------------------------------------------

    def _told(self, hand: WorkerProcess, data: bytes) -> None:
        word, *rest = unpackb(data)
        if word == "ready":
            self._ready(hand, *rest)
        elif word == "failed":
            hand.failure = rest[0]
        elif word == "linked":
            for other in self.hands.values():
                if other.number == rest[0]:
                    other.unlinked.discard(hand.number)
            self._open_linked()
        elif word == "numbers":
            came = self._requests.get(rest[0])
            if came is not None:
                came(hand, rest[1])
        elif word == "signalled":
            self._let_go(hand)

    def _ready(self, hand: WorkerProcess, errors: list[str], names: list[str]) -> None:
        hand.ready = True
        if self._stop_at is not None:
            tell(hand, "end")
            return
        if hand.generation == self._next_generation:
            if errors:
                self._give_up_reload("; ".join(errors))
                return
            if sum(one.generation == hand.generation for one in self.hands.values()) == 1:
                # The first of them has shown that the plugins load.
                self._wanted += [hand.generation] * (self.settings.workers - 1)
                self.loop.stop()
                if self.settings.workers > 1:
                    return
            if not self._all_ready(hand.generation):
                return
            for one in self._of(hand.generation):
                self._link(one)
            self._open_linked()
            return
        self._names = names
        if not self.sockets.paths:
            if not self._all_ready(0) or self._wanted:
                return
            try:
                self._open()
            except ServerError as error:
                self._fail_to_start(str(error))
                return
            for one in self._of(0):
                self._link(one)
            self._open_linked()
            return
        self._link(hand)
        self._open_linked()

    def _of(self, generation: int | None) -> list[WorkerProcess]:
        return [hand for hand in self.hands.values() if hand.generation == generation]

    def _all_ready(self, generation: int) -> bool:
        found = self._of(generation)
        return len(found) == self.settings.workers and all(hand.ready for hand in found)

    def _link(self, hand: WorkerProcess) -> None:
        """Connects a worker with all others; it gets connections when they have confirmed it."""
        if self._store is not None:
            tell(hand, "store", self._store)
        for other in self.hands.values():
            if other is hand or other.number in hand.linked:
                continue
            if not other.serving and not (other.ready and other.generation == hand.generation):
                continue
            one, two = socket.socketpair(), socket.socketpair()
            for end in (*one, *two):
                end.setblocking(False)
            hand.linked.add(other.number)
            other.linked.add(hand.number)
            hand.unlinked.add(other.number)
            if not other.serving:
                other.unlinked.add(hand.number)
            tell(hand, "link", other.number, fds=[one[0].detach(), two[0].detach()])
            tell(other, "link", hand.number, fds=[two[1].detach(), one[1].detach()])

    def _open_linked(self) -> None:
        """Gives connections to the workers that all others know."""
        loading = self._next_generation
        if loading is not None and self._all_ready(loading):
            if any(hand.unlinked for hand in self._of(loading)):
                return
            self._switch(loading)
            return
        serving = self._of(self._generation)
        if not self.sockets.paths:
            return
        if not self._opened and not all(hand.ready and not hand.unlinked for hand in serving):
            return  # those that connect first are to be shared by all
        self._opened = True
        self._serve_with(
            hand for hand in serving
            if hand.ready and not (hand.serving or hand.unlinked or hand.leaving)
        )  # fmt: skip

    def _serve_with(self, hands: Iterable[WorkerProcess]) -> None:
        fresh = list(hands)
        for hand in fresh:
            hand.serving = True
        self.board.open([hand.line for hand in fresh])

    # --- the socket ------------------------------------------------------------------------------

    def _open(self) -> None:
        settings = self.settings
        self._listen(settings.socket, HAND_OVER_TIME)
        if settings.second_socket:
            try:
                self._listen(settings.second_socket, 0.0)
            except ServerError as error:
                logger.warning("%s", error)
        self._store = self._choose_store()
        logger.info(
            "kongps %s serves %s on %s with %d workers (pid %d)",
            __version__, ", ".join(self._names) or "no plugin", " and ".join(self.sockets.paths),
            settings.workers, os.getpid(),
        )  # fmt: skip

    def _listen(self, path: str, patience: float) -> None:
        settings = self.settings
        listening = self.sockets.open(
            path, settings.socket_mode, settings.listen_queue_size, patience
        )
        self.board.listen(self.loop, listening)

    def _choose_store(self) -> str | None:
        """The database by which workers know of each other's instances."""
        try:
            from kongps.server.store import InstanceStore, store_path
        except ImportError as error:  # a Python built without SQLite
            logger.error("instances are known only in the worker that started them: %s", error)
            return None
        if not self.settings.no_instance_store:
            path = store_path(self.settings.socket)
            store = InstanceStore(path)
            working = store.working
            store.close()
            if working:
                return path
        self._private = tempfile.mkdtemp(prefix="kongps-")
        return os.path.join(self._private, "instances.sqlite")

    # --- new code --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Loads the plugins anew, in new workers; the old ones go when the new ones serve."""
        if self._ends or not self.sockets.paths:
            return
        if self.plugins is not None:
            logger.warning("the plugin of a program that serves itself is not loaded anew")
            return
        if self._next_generation is not None:
            self._end_generation(self._next_generation)
        room = self.journal.desks - len(self.hands)
        if room < self.settings.workers + 1:
            logger.error("the plugins are not loaded anew: too many old workers are still busy")
            return
        newest = max((hand.generation for hand in self.hands.values()), default=0)
        self._next_generation = max(newest, self._generation, self._next_generation or 0) + 1
        logger.info("loading the plugins anew")
        self._want(self._next_generation)

    def _end_generation(self, generation: int) -> None:
        for hand in self._of(generation):
            hand.leaving = True
            hand.failure = "replaced"
            if hand.ready:
                tell(hand, "end")
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hand.pid, signal.SIGKILL)
        self._wanted = [wanted for wanted in self._wanted if wanted != generation]

    def _give_up_reload(self, reason: str) -> None:
        generation, self._next_generation = self._next_generation, None
        logger.error("the plugins are not loaded anew, the old code goes on: %s", reason)
        if generation is not None:
            self._end_generation(generation)

    def _switch(self, generation: int) -> None:
        old = [hand for hand in self.hands.values() if hand.serving]
        self._generation, self._next_generation = generation, None
        self._serve_with(self._of(generation))
        for hand in old:
            hand.leaving = True
            self.board.close(hand.line)
            tell(hand, "retire")
        # Those of the old code that were not ready yet are of no use any more.
        for hand in list(self.hands.values()):
            if hand.generation < generation and not hand.serving:
                hand.leaving = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hand.pid, signal.SIGKILL)
        logger.info("the new code serves; %d old workers finish their events", len(old))

    def _let_go(self, hand: WorkerProcess) -> None:
        """A worker was told to end by a signal: another one takes its place."""
        if self._stop_at is not None:
            tell(hand, "stop")
        elif not hand.leaving and not self._ends:
            hand.leaving = True
            self.board.close(hand.line)
            tell(hand, "retire")

    # --- ends ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._stop_at is not None:
            return
        self.sockets.look_after()
        if self.settings.parent_watch and os.getppid() != self._parent:
            logger.info("the process that started this server is gone")
            self._begin_stop()

    @property
    def _ends(self) -> bool:
        """Whether it was told to stop, or does so already."""
        return self._hand_over.since is not None or self._stop_at is not None

    def _begin_stop(self) -> None:
        if self._stop_at is not None:
            logger.warning("told to stop again: not waiting for running events")
            for hand in self.hands.values():
                tell(hand, "end")
            self._stop_at = min(self._stop_at, time.monotonic() + STOP_GRACE)
            return
        now = time.monotonic()
        gone = now - (self._hand_over.since or now)
        self._stop_at = now - gone + self.settings.shutdown_timeout + STOP_GRACE
        logger.info("stopping; %d workers end", len(self.hands))
        self.sockets.remove()
        self.loop.close_listeners()
        self._wanted.clear()
        for hand in self.hands.values():
            if hand.ready:
                tell(hand, "stop", gone)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hand.pid, signal.SIGKILL)
        if not self.hands:
            self._finish()
        else:
            self._kill_stragglers()

    def _kill_stragglers(self) -> None:
        assert self._stop_at is not None
        if time.monotonic() < self._stop_at:
            self.loop.call_later(DRAIN_INTERVAL, self._kill_stragglers)
            return
        for hand in self.hands.values():
            logger.error("plugin code keeps worker %d from ending; killing it", hand.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(hand.pid, signal.SIGKILL)

    def _fail_to_start(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._stop_at = time.monotonic()
        self._wanted.clear()
        for hand in self.hands.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(hand.pid, signal.SIGKILL)
        if not self.hands:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        self.loop.stop()

    def _close(self) -> None:
        for hand in self.hands.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(hand.pid, signal.SIGKILL)
        if self._watcher is not None:
            self._watcher.hang_up()
        self.sockets.remove()
        self.loop.close_listeners()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    # --- numbers ---------------------------------------------------------------------------------

    def _tell_numbers(self) -> None:
        """Logs what all workers together hold."""
        self._request += 1
        request, waiting = self._request, {hand.pid for hand in self.hands.values() if hand.ready}
        parts: list[dict[str, Any]] = []

        def finish() -> None:
            if self._requests.pop(request, None) is not None:
                timer.cancel()
                logger.info(NUMBERS, {**add_up(parts), "Pid": os.getpid()})

        def came(hand: WorkerProcess, part: dict[str, Any]) -> None:
            parts.append(part)
            waiting.discard(hand.pid)
            if not waiting:
                finish()

        timer: Timer = self.loop.call_later(NUMBERS_PATIENCE, finish)
        self._requests[request] = came
        for hand in self.hands.values():
            if hand.ready:
                tell(hand, "numbers", request)


def tell(hand: WorkerProcess, *words: object, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Says something to a worker."""
    hand.line.tell(packb(list(words)), fds)


def watch(directory: str, line: socket.socket) -> None:
    """Says on `line` when a file in a directory changes.

    :param directory: the directory.
    :param line: the other end of what the supervisor reads.
    """
    import watchfiles

    header = bytes(8)
    for _ in watchfiles.watch(directory, raise_interrupt=False):
        line.send(header + b"changed")
