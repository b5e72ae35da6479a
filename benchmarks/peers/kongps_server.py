"""kongps itself, as it stands in this checkout or as it is installed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.base import HERE, Launch, Peer, run_step, workload_file


class Kongps(Peer):
    """``kongps serve``, with the interpreter that runs the benchmarks.

    A ``src`` directory beside ``benchmarks`` comes first on the import path, so that the checkout
    is what is measured.
    """

    family = "kongps"

    def __init__(self, protocol: str) -> None:
        self.name = "kongps" if protocol == "msgpack" else f"kongps-{protocol}"
        self.protocol = protocol

    def prepare(self, home: Path, workload: str) -> None:
        plugins = home / "plugins" / workload
        plugins.mkdir(parents=True, exist_ok=True)
        shutil.copy(workload_file(workload, "kongps", ".py"), plugins / f"{workload}.py")
        printed = run_step([*self._command(), "--version"], home, self.environment())
        words = printed.split()  # kongps 1.2.3 (CPython 3.x.y)
        self.version = words[1] if len(words) > 1 else ""

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        socket = run / "kongps.sock"
        argv = [*self._command(), "serve", "--plugins-directory"]
        argv += [str(home / "plugins" / workload), "--socket", str(socket)]
        return Launch(argv, socket, workload)

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        directory = str(home / "plugins" / workload)
        return [*self._command(), "dump", "--plugins-directory", directory]

    def environment(self) -> Mapping[str, str]:
        parts = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(part for part in parts if part)}

    @staticmethod
    def _command() -> list[str]:
        """The script that pip made, as a user has it; without one, the module."""
        script = Path(sys.executable).with_name("kongps")
        return [str(script)] if script.exists() else [sys.executable, "-m", "kongps"]
