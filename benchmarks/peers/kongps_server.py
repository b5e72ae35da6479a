"""kongps itself, as it stands in this checkout or as it is installed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from peers.base import HERE, Launch, Peer, is_current, mark_current, run_step, workload_file

SOURCE = HERE.parent / "src"


class Kongps(Peer):
    """``python -m kongps serve``.

    A ``src`` directory with a built core beside ``benchmarks`` is what is measured, in a virtual
    environment that has nothing but what kongps depends on: an editable install would make each
    start slower. Without one, it is the kongps of the interpreter that runs the benchmarks.
    """

    family = "kongps"

    def __init__(self, protocol: str, *flags: str) -> None:
        self.name = "kongps" if protocol == "msgpack" else f"kongps-{protocol}"
        self.protocol = protocol
        self._flags = flags
        self._python = sys.executable

    def prepare(self, home: Path, workload: str) -> None:
        plugins = home / "plugins" / workload
        plugins.mkdir(parents=True, exist_ok=True)
        shutil.copy(workload_file(workload, "kongps", ".py"), plugins / f"{workload}.py")
        if self._is_built():
            self._python = self._environment_of_its_own(home)
        printed = run_step([self._python, "-m", "kongps", "--version"], home, self.environment())
        words = printed.split()  # kongps 1.2.3 (CPython 3.x.y)
        self.version = words[1] if len(words) > 1 else ""

    def versions(self) -> dict[str, str]:
        script = (
            "import importlib.metadata as m; print(m.version('greenlet'), m.version('msgspec'))"
        )
        greenlet, msgspec = run_step([self._python, "-c", script], HERE).split()[-2:]
        found = {"kongps": self.version, "python": platform.python_version()}
        return {**found, "greenlet": greenlet, "msgspec": msgspec}

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        socket = run / "kongps.sock"
        argv = [self._python, "-m", "kongps", "serve", "--plugins-directory"]
        argv += [str(home / "plugins" / workload), "--socket", str(socket)]
        return Launch([*argv, *self._flags], socket, workload)

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        directory = str(home / "plugins" / workload)
        return [self._python, "-m", "kongps", "dump", "--plugins-directory", directory]

    def environment(self) -> Mapping[str, str]:
        inherited = os.environ.get("PYTHONPATH", "")
        parts = [str(SOURCE) if self._is_built() else "", inherited]
        return {"PYTHONPATH": os.pathsep.join(part for part in parts if part)}

    @staticmethod
    def _is_built() -> bool:
        return any(SOURCE.glob("kongps/core/*.so"))

    @staticmethod
    def _environment_of_its_own(home: Path) -> str:
        """The interpreter of a virtual environment with kongps' dependencies, and no kongps."""
        required = [row for row in metadata.requires("kongps") or [] if "extra ==" not in row]
        # The very versions that the core was built and tested with.
        names = [row.split(";")[0].strip().split("<")[0].split(">")[0] for row in required]
        pinned = [f"{name}=={metadata.version(name)}" for name in names]
        venv, stamp = home / "venv", home / "venv.stamp"
        python = venv / "bin" / "python"
        key = (*pinned, sys.executable, platform.python_version())
        if not is_current(stamp, *key):
            shutil.rmtree(venv, ignore_errors=True)
            run_step([sys.executable, "-m", "venv", str(venv)], home)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            run_step([*pip, *pinned], home)
            mark_current(stamp, *key)
        return str(python)
