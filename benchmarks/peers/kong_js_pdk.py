"""The JavaScript kong-pdk of npm, installed in a directory of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peers.base import Launch, Peer, is_current, mark_current, run_step, workload_file

PACKAGE = "kong-pdk"
VERSION = "0.6.0"


class KongJsPdk(Peer):
    name = "kong-js-pdk"
    version = VERSION

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}

    def prepare(self, home: Path, workload: str) -> None:
        plugins = home / "plugins" / workload
        plugins.mkdir(parents=True, exist_ok=True)
        shutil.copy(workload_file(workload, "kong_js_pdk", ".js"), plugins / f"{workload}.js")
        node = run_step(["node", "--version"], home).strip()
        stamp = home / "installed.stamp"
        if not is_current(stamp, PACKAGE, VERSION, node):
            shutil.rmtree(home / "node_modules", ignore_errors=True)
            (home / "package.json").write_text('{"private": true}\n')
            npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error"]
            run_step([*npm, f"{PACKAGE}@{VERSION}"], home)
            mark_current(stamp, PACKAGE, VERSION, node)
        self._versions = {"node": node}
        for package in (PACKAGE, "@msgpack/msgpack"):
            described = json.loads((home / "node_modules" / package / "package.json").read_text())
            self._versions[package] = described["version"]

    def versions(self) -> dict[str, str]:
        return dict(self._versions)

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        argv = [*self._command(home, run, workload), "--sock-name", "js.sock"]
        return Launch(argv, run / "js.sock", workload)

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        return [*self._command(home, run, workload), "--dump-all-plugins"]

    @staticmethod
    def _command(home: Path, run: Path, workload: str) -> list[str]:
        return [
            "node",
            str(home / "node_modules" / ".bin" / "kong-js-pluginserver"),
            "--kong-prefix",
            str(run),
            "--plugins-directory",
            str(home / "plugins" / workload),
        ]
