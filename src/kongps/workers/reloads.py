"""Reloading the plugins: new workers load them, and replace the old ones when all are ready."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Callable

from kongps.workers.messages import send_last

if TYPE_CHECKING:
    from kongps.settings import Settings
    from kongps.workers.worker_process import WorkerProcess, WorkerProcesses

logger = logging.getLogger("kongps")


class Generations:
    """The generation of workers that serves, and the next one while it loads.

    :param workers: all workers.
    :param settings: the supervisor's.
    :param start: starts so many workers of a generation.

    :ivar current: the one that serves; 0 is the first.
    :ivar loading: the next one; None when none is loading.
    """

    def __init__(
        self, workers: WorkerProcesses, settings: Settings, start: Callable[[int, int], object]
    ) -> None:
        self._workers = workers
        self._count = settings.workers
        self._start = start
        self.current = 0
        self.loading: int | None = None

    @property
    def wanted(self) -> set[int | None]:
        """Those of which workers are still to be started."""
        return {self.current, self.loading}

    def reload(self) -> None:
        """Begins to load the plugins again; a reload that is under way is given up for it."""
        if self.loading is not None:
            self.end(self.loading)
        if self._workers.room < self._count + 1:
            logger.error("the plugins are not reloaded: too many old workers are still busy")
            return
        newest = max((worker.generation for worker in self._workers), default=0)
        self.loading = max(newest, self.current, self.loading or 0) + 1
        logger.info("reloading the plugins")
        self._start(self.loading, 1)

    def end(self, generation: int) -> None:
        """Ends the workers of a generation that does not serve yet."""
        for worker in self._workers.of(generation):
            worker.leaving = True
            worker.failure = "replaced"
            worker.end()

    def give_up(self, reason: str) -> None:
        """Goes on with the workers that serve."""
        generation, self.loading = self.loading, None
        logger.error("the plugins are not reloaded, the old code goes on: %s", reason)
        if generation is not None:
            self.end(generation)

    def on_ready(self, worker: WorkerProcess, errors: list[str]) -> None:
        """A worker of the next generation has loaded the plugins."""
        if errors:
            self.give_up("; ".join(errors))
            return
        generation = worker.generation
        if len(self._workers.of(generation)) == 1 < self._count:
            # The first of them has shown that the plugins load.
            self._start(generation, self._count - 1)
            return
        if self._workers.all_ready(generation):
            for each in self._workers.of(generation):
                self._workers.link(each)

    def switch_if_linked(self) -> bool:
        """Gives the connections to the next generation, when the others know all of its workers.

        :returns: whether it is ready, and only the links may be missing.
        """
        if self.loading is None or not self._workers.all_ready(self.loading):
            return False
        fresh = self._workers.of(self.loading)
        if not any(worker.unlinked for worker in fresh):
            self._switch(fresh)
        return True

    def _switch(self, fresh: list[WorkerProcess]) -> None:
        old = [worker for worker in self._workers if worker.serving]
        self.current, self.loading = fresh[0].generation, None
        self._workers.serve(fresh)
        for worker in old:
            self._workers.retire(worker)
        # Those of the old code that were not ready yet are of no use any more.
        for worker in self._workers:
            if worker.generation < self.current and not worker.serving:
                worker.leaving = True
                worker.kill()
        logger.info("the new code serves; %d old workers finish their events", len(old))


def watch(directory: str, channel: int) -> int:
    """Sends a message when a file in a directory changes, each time, until it is killed.

    :param directory: the directory.
    :param channel: file descriptor of the channel to the supervisor.
    :returns: the exit code of the process that does so.
    """
    import watchfiles

    for _ in watchfiles.watch(directory, raise_interrupt=False):
        send_last(os.dup(channel), b"changed")
    return 0
