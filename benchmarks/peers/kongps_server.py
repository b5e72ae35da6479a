"""kongps itself, as it stands in this checkout or as it is installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from peers.base import HERE, Launch, Peer, run_step, workload_file


class Kongps(Peer):
    """``python -m kongps serve``, with the interpreter that runs the benchmarks.

    A ``src`` directory beside ``benchmarks`` comes first on the import path, so that the checkout
    is what is measured.
    """

    name = "kongps"

    def prepare(self, home: Path, workload: str) -> None:
        plugins = home / "plugins" / workload
        plugins.mkdir(parents=True, exist_ok=True)
        shutil.copy(workload_file(workload, "kongps", ".py"), plugins / f"{workload}.py")
        printed = run_step([sys.executable, "-m", "kongps", "--version"], home, self._env())
        words = printed.split()  # kongps 1.2.3 (CPython 3.x.y)
        self.version = words[1] if len(words) > 1 else ""

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        socket = run / "kongps.sock"
        argv = [
            sys.executable,
            "-m",
            "kongps",
            "serve",
            "--plugins-directory",
            str(home / "plugins" / workload),
            "--socket",
            str(socket),
        ]
        return Launch(argv, socket, workload, self._env())

    @staticmethod
    def _env() -> dict[str, str]:
        parts = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(part for part in parts if part)}
