"""The process above the workers: it accepts connections and passes them on, and loads no plugin."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from kongps.core.io.loop import Loop
from kongps.core.workers.channel import Channel, signal_at_end_of_parent
from kongps.errors import ServerError, UsageError
from kongps.server.commands import log_numbers
from kongps.server.shutdown import (
    DRAIN_INTERVAL,
    STOP_GRACE,
    WATCH_INTERVAL,
    Handlers,
    ListeningServer,
    signal_handlers,
)
from kongps.workers.messages import Gathering, added_up, receive
from kongps.workers.reloads import Generations, watch
from kongps.workers.worker import work
from kongps.workers.worker_process import WorkerProcess, WorkerProcesses, fork_with_channel

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Seconds that a worker has to live before its end counts as the first again.
STEADY = 10.0

# Seconds until a worker is replaced that ended soon after another one did: at first, and at most.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0

# What a forked process does in the supervisor's place; it returns the exit code.
Job = Callable[[], int]


class Supervisor(ListeningServer):
    """Starts workers, passes them connections, and replaces those that die.

    :param settings: the server's settings.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    """

    def __init__(self, settings: Settings, plugins: dict[str, Plugin] | None = None) -> None:
        super().__init__(settings)
        self.plugins = plugins
        if settings.reload and importlib.util.find_spec("watchfiles") is None:
            raise UsageError("--reload needs watchfiles: python -m pip install 'kongps[reload]'")
        self.loop = Loop(settings.max_connections)
        self.workers = WorkerProcesses(self.loop, settings)
        self.generations = Generations(self.workers, settings, self._start)
        self._pid = os.getpid()
        self._kill_at = 0.0
        self._to_fork: list[int] = []  # generations of the workers to fork
        self._pause = 0.0
        self._store: str | None = None
        self._private: str | None = None
        self._placements: tuple[list[str], list[str]] = ([], [])
        self._failure: str | None = None
        self._opened = False
        self._finished = False
        self._watcher: Channel | None = None
        self._gathering: Gathering | None = None
        self._messages: dict[str, Callable[..., object]] = {
            "ready": self._on_ready,
            "failed": self._on_failed,
            "linked": self._on_linked,
            "numbers": self._on_numbers,
            "signalled": self._on_signalled,
        }

    def run(self) -> int:
        """Serves until it is stopped: by SIGTERM, SIGINT or the parent's end.

        :returns: the exit code; in a worker, that of the worker.
        :raises ServerError: when the socket cannot be opened, or no plugin loaded.
        """
        calls = {
            signal.SIGTERM: self.stop_on_signal,
            signal.SIGINT: self.stop_on_signal,
            signal.SIGHUP: self.reload,
            signal.SIGUSR1: self._on_sigusr1,
            signal.SIGCHLD: self._on_sigchld,
        }
        soon = self.loop.call_soon_threadsafe
        handlers: Handlers = {number: partial(soon, call) for number, call in calls.items()}
        with signal_handlers(self.loop, handlers):
            job = self._supervise()
        if job is not None:
            return job()
        if self._failure is not None:
            raise ServerError(self._failure)
        logger.info("kongps has stopped")
        return 0

    def _supervise(self) -> Job | None:
        """Runs the loop; in each process that is forked meanwhile, returns what it is to do."""
        self.loop.call_every(WATCH_INTERVAL, self.watch)
        try:
            if self.settings.reload:
                job = self._fork_watcher()
                if job is not None:
                    return job
            self._to_fork = [0] * self.settings.workers
            while not self._finished:
                while self._to_fork:
                    generation = self._to_fork.pop(0)
                    if generation not in self.generations.wanted:
                        continue
                    assignment = self.workers.fork(generation, self._receive)
                    if assignment is not None:
                        return partial(work, self.settings, assignment, self.plugins)
                self.loop.run()
                if self.loop.failed is not None:
                    self._failure = self.loop.failed
                    break
            return None
        finally:
            if os.getpid() == self._pid:
                self._close()

    def _fork_watcher(self) -> Job | None:
        """Starts the process that watches the plugins directory."""
        pid, end = fork_with_channel(self.loop)
        if pid == 0:
            return partial(self._watch_directory, end)
        self._watcher = Channel(lambda data, fds: self.reload(), None)
        self._watcher.start(self.loop, end)
        logger.info("watching %s for changes", self.settings.plugins_directory)
        return None

    def _watch_directory(self, channel: int) -> int:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal_at_end_of_parent(signal.SIGKILL)
        return watch(self.settings.plugins_directory, channel)

    # --- starting and ending workers -------------------------------------------------------------

    def _start(self, generation: int, count: int) -> None:
        """Starts workers of a generation, once the loop has returned."""
        if not self._ending:
            self._to_fork += [generation] * count
            self.loop.stop()

    def _on_sigchld(self) -> None:
        for worker, how, connections in self.workers.reap():
            self._serve_linked()
            self._on_end(worker, how, connections)

    def _on_end(self, worker: WorkerProcess, how: str, connections: int) -> None:
        """A worker has ended, and its connections have gone to others."""
        if self._ending:
            if not self.workers:
                self._finish()
            return
        if worker.generation == self.generations.loading:
            self.generations.give_up(worker.failure or f"a new worker {how}")
            return
        if self.generations.current == 0 and not self.sockets.paths:
            self._fail_to_start(worker.failure or f"a worker {how} before it was ready")
            return
        if worker.leaving and how == "ended with exit code 0":
            logger.info("worker %d has finished its events and ended", worker.pid)
        elif worker.failure != "replaced":
            logger.error(
                "worker %d %s%s; its events fail, and %d connections go to other workers",
                worker.pid,
                how,
                f": {worker.failure}" if worker.failure else "",
                connections,
            )
        if worker.generation == self.generations.current:
            self._replace(time.monotonic() - worker.started)

    def _replace(self, lived: float) -> None:
        if lived >= STEADY:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        if pause:
            logger.warning("the next worker starts in %g s", pause)
        generation = self.generations.current
        self.loop.call_later(pause, lambda: self._start(generation, 1))

    # --- messages of workers ---------------------------------------------------------------------

    def _receive(self, worker: WorkerProcess, data: bytes) -> None:
        receive(self._messages, data, worker)

    def _on_ready(
        self, worker: WorkerProcess, errors: list[str], names: list[str], placements: list[str]
    ) -> None:
        """A worker has loaded the plugins."""
        worker.ready = True
        if self._ending:
            worker.send("end")
            return
        self._send_store(worker)
        if worker.generation == self.generations.loading:
            if not errors:
                for line in placements:
                    if line not in self._placements[1]:
                        logger.info("%s", line)
                self._placements = names, placements
            self.generations.on_ready(worker, errors)
        elif self.sockets.paths:
            self.workers.link(worker)
        else:
            self._placements = names, placements
            if not self.workers.all_ready(0) or self._to_fork or not self._open():
                return
            for each in self.workers.of(0):
                self._send_store(each)
                self.workers.link(each)
        self._serve_linked()

    def _on_failed(self, worker: WorkerProcess, reason: str) -> None:
        """A worker could not load the plugins directory, and ends."""
        worker.failure = reason

    def _on_linked(self, worker: WorkerProcess, number: int) -> None:
        """A worker has its link with the one that has a number."""
        self.workers.confirm(worker.number, of=number)
        self._serve_linked()

    def _on_signalled(self, worker: WorkerProcess) -> None:
        """A worker has got a signal to stop: it stops with the server, or another replaces it."""
        if self.stopping:
            worker.send("stop", 0.0)
        elif not worker.leaving and not self.stop_requested:
            self.workers.retire(worker)

    def _serve_linked(self) -> None:
        """Gives connections to the workers that all others know."""
        if self.generations.switch_if_linked() or not self.sockets.paths:
            return
        current = self.workers.of(self.generations.current)
        if not self._opened and not all(one.ready and not one.unlinked for one in current):
            return  # those that connect first are to be shared by all
        self._opened = True
        self.workers.serve(
            one for one in current if one.ready and not (one.serving or one.unlinked or one.leaving)
        )

    # --- the socket and the store ----------------------------------------------------------------

    def _open(self) -> bool:
        """Opens the sockets and chooses the store, when the first workers are ready."""
        try:
            self.sockets.open_all(self.settings, partial(self.workers.broker.listen, self.loop))
        except ServerError as error:
            self._fail_to_start(str(error))
            return False
        self._store = self._choose_store()
        self.log_start(*self._placements, f" with {self.settings.workers} workers")
        return True

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

    def _send_store(self, worker: WorkerProcess) -> None:
        if self._store is not None:
            worker.send("store", self._store)

    # --- reloading -------------------------------------------------------------------------------

    def reload(self) -> None:
        """Loads the plugins again, in new workers; the old ones go when the new ones serve."""
        if self.stop_requested or not self.sockets.paths:
            return
        if self.plugins is not None:
            logger.warning("the plugin of a program that serves itself cannot be reloaded")
            return
        self.generations.reload()

    # --- stopping --------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        """Whether workers end, and are not replaced."""
        return self.stopping or self._failure is not None

    def connections(self) -> int:
        """The number of Kong's connections."""
        return self.workers.broker.connections

    def begin_stop(self) -> None:
        """Ends the workers, and when they have ended, the loop."""
        self._kill_at = self.deadline + STOP_GRACE
        gone = self.settings.shutdown_timeout - self.left
        logger.info("stopping; %d workers end", len(self.workers))
        self._to_fork.clear()
        for worker in self.workers:
            worker.end("stop", gone)
        if self.workers:
            self._kill_stragglers()
        else:
            self._finish()

    def stop_at_once(self) -> None:
        """Ends the workers without waiting for their events any more."""
        for worker in self.workers:
            worker.send("end")
        self._kill_at = min(self._kill_at, time.monotonic() + STOP_GRACE)

    def _kill_stragglers(self) -> None:
        if time.monotonic() < self._kill_at:
            self.loop.call_later(DRAIN_INTERVAL, self._kill_stragglers)
            return
        for worker in self.workers:
            logger.error("plugin code keeps worker %d from ending; killing it", worker.pid)
            worker.kill()

    def _fail_to_start(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._to_fork.clear()
        for worker in self.workers:
            worker.kill()
        if not self.workers:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        self.loop.stop()

    def _close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self._watcher is not None:
            self._watcher.hang_up()
        self.close_sockets()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    # --- numbers ---------------------------------------------------------------------------------

    def _on_sigusr1(self) -> None:
        """Logs what all workers together hold."""
        if self._gathering is not None and not self._gathering.finished:
            return  # what is logged soon answers this signal too
        ready = [worker for worker in self.workers if worker.ready]
        self._gathering = Gathering(
            self.loop,
            [worker.pid for worker in ready],
            lambda parts: log_numbers({**added_up(parts), "Pid": os.getpid()}),
        )
        for worker in ready:
            worker.send("numbers")

    def _on_numbers(self, worker: WorkerProcess, numbers: dict[str, Any]) -> None:
        """A worker has sent what it holds."""
        if self._gathering is not None:
            self._gathering.receive(worker.pid, numbers)
