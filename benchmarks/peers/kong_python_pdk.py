"""kong-python-pdk 0.36 in a virtual environment of its own, in each of its three modes."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.base import Launch, Peer, is_current, mark_current, run_step, workload_file

REQUIREMENT = "kong-pdk==0.36"


class KongPythonPdk(Peer):
    """``kong-python-pluginserver``; ``flag`` chooses the mode (none: threads)."""

    family = "kong-python-pdk"
    version = "0.36"

    def __init__(self, mode: str, flag: str | None) -> None:
        self.name = f"kong-python-pdk-{mode}"
        self._flag = flag
        self._installed: dict[str, str] = {}

    def prepare(self, home: Path, workload: str) -> None:
        plugins = home / "plugins" / workload
        plugins.mkdir(parents=True, exist_ok=True)
        source = workload_file(workload, "kong_python_pdk", ".py")
        shutil.copy(source, plugins / f"{workload}.py")
        venv, stamp = home / "venv", home / "venv.stamp"
        key = (REQUIREMENT, sys.executable, platform.python_version())
        if not is_current(stamp, *key):
            shutil.rmtree(venv, ignore_errors=True)
            run_step([sys.executable, "-m", "venv", str(venv)], home)
            pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            run_step([*pip, "install", "--quiet", REQUIREMENT], home)
            listed = run_step([*pip, "list", "--format", "json"], home)
            rows = [line for line in listed.splitlines() if line.startswith("[")]
            (home / "installed.json").write_text(rows[-1] if rows else "[]")
            mark_current(stamp, *key)
        packages = json.loads((home / "installed.json").read_text())
        self._installed = {package["name"]: package["version"] for package in packages}

    def versions(self) -> dict[str, str]:
        wanted = ("kong-pdk", "gevent", "greenlet", "msgpack")
        return {name: self._installed[name] for name in wanted if name in self._installed}

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        argv = self._command(home, run, workload)
        if self._flag:
            argv.append(self._flag)
        return Launch(argv, run / "python_pluginserver.sock", workload)

    def environment(self) -> Mapping[str, str]:
        # Nothing of the caller's import path: a `kong_pdk` there would be measured instead.
        return {"PYTHONPATH": ""}

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        return [*self._command(home, run, workload), "--dump-all-plugins"]

    @staticmethod
    def _command(home: Path, run: Path, workload: str) -> list[str]:
        return [
            str(home / "venv" / "bin" / "kong-python-pluginserver"),
            "--kong-prefix",
            str(run),
            "--plugins-directory",
            str(home / "plugins" / workload),
        ]
