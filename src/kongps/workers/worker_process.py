"""Worker processes as the supervisor sees them: starting, linking and losing them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

from kongps.core.workers.broker import ConnectionBroker, WorkerChannel
from kongps.core.workers.journal import Journal
from kongps.workers.messages import packed
from kongps.workers.worker import Assignment

if TYPE_CHECKING:
    from kongps.core.io.loop import Loop
    from kongps.settings import Settings

# Numbers of workers, which are part of the ids of events. A number is used again after so many.
MOST_NUMBERS = 4096


@dataclass(eq=False)
class WorkerProcess:
    """A worker.

    :ivar number: part of the ids of its events.
    :ivar generation: how often the plugins had been reloaded when it was started.
    :ivar ready: whether it has loaded the plugins.
    :ivar serving: whether it gets connections, or did before it was `leaving`.
    :ivar failure: why it ended, as far as it could report that.
    :ivar linked: numbers of the workers that it has links with.
    :ivar unlinked: numbers of those that have yet to confirm it; until then they would not know
        what to do with a step for an event of this worker.
    """

    number: int
    pid: int
    generation: int
    started: float
    channel: WorkerChannel
    ready: bool = False
    serving: bool = False
    leaving: bool = False
    failure: str | None = None
    linked: set[int] = field(default_factory=set)
    unlinked: set[int] = field(default_factory=set)

    def send(self, name: str, *args: object, fds: Iterable[int] = ()) -> None:
        """Sends it a message; see ``Worker`` for those that there are."""
        self.channel.send(packed(name, *args), list(fds))

    def kill(self) -> None:
        """Kills the process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self, name: str = "end", *args: object) -> None:
        """Sends a message that ends it; one that has yet to load its plugins is killed."""
        if self.ready:
            self.send(name, *args)
        else:
            self.kill()


class WorkerProcesses:
    """All workers of a supervisor.

    :param loop: the supervisor's.
    :param settings: its settings.

    :ivar broker: gives connections to those that serve.
    """

    def __init__(self, loop: Loop, settings: Settings) -> None:
        self._loop = loop
        self._count = settings.workers
        self._number = int.from_bytes(os.urandom(2), "big") % MOST_NUMBERS
        self._by_pid: dict[int, WorkerProcess] = {}
        # Slots of connections that are over are free once their workers have noticed.
        self._journal = Journal(2 * settings.max_connections + 1024, max(32, 4 * settings.workers))
        self.broker = ConnectionBroker(self._journal)

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._by_pid.values()))

    def __len__(self) -> int:
        return len(self._by_pid)

    @property
    def room(self) -> int:
        """How many more there may be."""
        return self._journal.areas - len(self)

    def of(self, generation: int | None) -> list[WorkerProcess]:
        """Those of a generation."""
        return [worker for worker in self if worker.generation == generation]

    def all_ready(self, generation: int | None) -> bool:
        """Whether a generation is whole and has loaded its plugins."""
        found = self.of(generation)
        return len(found) == self._count and all(worker.ready for worker in found)

    def fork(
        self, generation: int, receive: Callable[[WorkerProcess, bytes], object]
    ) -> Assignment | None:
        """Starts a worker.

        :param receive: called with the worker and each message that it sends.
        :returns: in the worker's process, what it is to do.
        """
        used = {worker.channel.area for worker in self}
        area = next(area for area in range(self._journal.areas) if area not in used)
        alive = {worker.number for worker in self}
        self._number = (self._number + 1) % MOST_NUMBERS
        while self._number in alive:
            self._number = (self._number + 1) % MOST_NUMBERS
        supervisor = os.getpid()
        pid, end = fork_with_channel(self._loop)
        if pid == 0:
            return Assignment(self._number, self._journal, area, end, supervisor)
        channel = WorkerChannel(self.broker, area, lambda data, fds: receive(worker, data), None)
        worker = WorkerProcess(self._number, pid, generation, time.monotonic(), channel)
        self._by_pid[pid] = worker
        channel.start(self._loop, end)
        return None

    def reap(self) -> Iterator[tuple[WorkerProcess, str, int]]:
        """Those that have ended, how, and how many connections of theirs go to others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._by_pid.pop(pid, None)
            if worker is None:
                continue
            connections = self.broker.worker_died(worker.channel)
            worker.channel.hang_up()
            self.confirm(worker.number)
            yield worker, _how_it_ended(status), connections

    def link(self, worker: WorkerProcess) -> None:
        """Connects a worker with all others; it serves when they have confirmed it."""
        for other in self:
            if other is worker or other.number in worker.linked:
                continue
            if not other.serving and not (other.ready and other.generation == worker.generation):
                continue
            one, two = socket.socketpair(), socket.socketpair()
            for end in (*one, *two):
                end.setblocking(False)
            worker.linked.add(other.number)
            other.linked.add(worker.number)
            worker.unlinked.add(other.number)
            if not other.serving:
                other.unlinked.add(worker.number)
            worker.send("link", other.number, fds=[one[0].detach(), two[0].detach()])
            other.send("link", worker.number, fds=[two[1].detach(), one[1].detach()])

    def confirm(self, number: int, of: int | None = None) -> None:
        """Notes that the worker with a number has a link, or needs none any more.

        :param of: the number of the worker that it has the link with; all when None.
        """
        for worker in self:
            if of is None or worker.number == of:
                worker.unlinked.discard(number)

    def serve(self, workers: Iterable[WorkerProcess]) -> None:
        """Gives connections to workers from now on."""
        fresh = list(workers)
        for worker in fresh:
            worker.serving = True
        self.broker.open([worker.channel for worker in fresh])

    def retire(self, worker: WorkerProcess) -> None:
        """Gives a worker no more connections; it passes back those it has, and ends."""
        worker.leaving = True
        self.broker.close(worker.channel)
        worker.send("retire")


def fork_with_channel(loop: Loop) -> tuple[int, int]:
    """Forks a process that has a channel to this one, and not this one's loop.

    :returns: its process id, 0 in the process itself, and the file descriptor of the channel's end.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    pid = os.fork()
    if pid == 0:
        near, far = far, near
        loop.forked()
    far.close()
    return pid, near.detach()


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"ended with exit code {os.WEXITSTATUS(status)}"
