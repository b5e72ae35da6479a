"""The floor: a C program that answers each workload with prepared bytes."""

from __future__ import annotations

from pathlib import Path

from peers.base import Launch, Peer


class Floor(Peer):
    """``benchmarks/floor.c``, built with the driver."""

    def __init__(self, executable: Path, protocol: str) -> None:
        self.name = "floor" if protocol == "msgpack" else f"floor-{protocol}"
        self.protocol = protocol
        self._executable = executable

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        socket = run / "floor.sock"
        argv = [str(self._executable), str(socket), self.protocol, workload]
        return Launch(argv, socket, workload)
