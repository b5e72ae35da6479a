"""The floor: a C program that answers the hello example with prepared bytes."""

from __future__ import annotations

from pathlib import Path

from peers.base import Launch, MissingPeer, Peer


class Floor(Peer):
    """``benchmarks/floor.c``, built with the driver."""

    name = "floor"

    def __init__(self, executable: Path) -> None:
        self._executable = executable

    def prepare(self, home: Path, workload: str) -> None:
        if workload != "hello":
            raise MissingPeer(f"it has no answers prepared for {workload!r}")

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        socket = run / "floor.sock"
        return Launch([str(self._executable), str(socket)], socket)
