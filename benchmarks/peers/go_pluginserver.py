"""go-pluginserver, and the workload's plugin as a Go plugin built against the same modules.

Both are built in one module of ours, so that server and plugin share the very versions of every
package: Go refuses to load the plugin otherwise.

0.6.1 is the version wanted. Where Go cannot fetch it and verify its checksum, the release before
it, 0.6.0, is measured, and the report says so. Checksum verification is never switched off here;
whoever wants to trust a version that it refuses says so in Go's own settings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peers.base import Launch, MissingPeer, Peer, is_current, mark_current, run_step, workload_file

MODULE = "github.com/Kong/go-pluginserver"
VERSIONS = ("v0.6.1", "v0.6.0")

GO_MOD = """\
module bench

go 1.21

require {module} {version}
"""

# Keeps the server, a program that nothing else here imports, among the module's requirements.
TOOLS = """\
//go:build tools

package bench

import _ "{module}"
"""


class GoPluginserver(Peer):
    name = "go-pluginserver"

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}

    def prepare(self, home: Path, workload: str) -> None:
        source = workload_file(workload, "go_pluginserver", ".go")
        toolchain = run_step(["go", "version"], home).strip()
        refused: list[str] = []
        for version in VERSIONS:
            module = home / version
            try:
                self._build(module, version, workload, source, toolchain)
            except MissingPeer as missing:
                refused.append(f"go-pluginserver {version[1:]}: {missing}")
                continue
            self.version = version[1:]
            self._modules = json.loads((module / "modules.json").read_text())
            self._modules["go"] = toolchain
            if refused:
                self.notes = [f"missing: {reason}" for reason in refused]
                self.notes += [f"measured instead: go-pluginserver {self.version}"]
            return
        raise MissingPeer("; ".join(refused))

    def versions(self) -> dict[str, str]:
        return dict(self._modules)

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        return Launch(self._command(home, run), run / "go_pluginserver.sock", workload)

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        return [*self._command(home, run), "-dump-plugin-info", workload]

    def _command(self, home: Path, run: Path) -> list[str]:
        module = home / f"v{self.version}"
        return [
            str(module / "go-pluginserver"),
            "-kong-prefix",
            str(run),
            "-plugins-directory",
            str(module / "plugins"),
        ]

    @staticmethod
    def _build(module: Path, version: str, workload: str, source: Path, toolchain: str) -> None:
        stamp = module / f"{workload}.stamp"
        module.mkdir(parents=True, exist_ok=True)
        if is_current(stamp, version, toolchain, source):
            return
        package = module / workload
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir()
        shutil.copy(source, package / "main.go")
        if not (module / "go.sum").exists():
            (module / "go.mod").write_text(GO_MOD.format(module=MODULE, version=version))
            (module / "tools.go").write_text(TOOLS.format(module=MODULE))
            # The plain download first: its message says what is wrong with the version itself.
            run_step(["go", "mod", "download", f"{MODULE}@{version}"], module)
            run_step(["go", "mod", "tidy"], module)
        run_step(["go", "build", "-o", "go-pluginserver", MODULE], module)
        plugin = f"plugins/{workload}.so"
        run_step(["go", "build", "-buildmode=plugin", "-o", plugin, f"./{workload}"], module)
        listed = run_step(["go", "list", "-m", "-f", "{{.Path}} {{.Version}}", "all"], module)
        wanted = (MODULE, "github.com/Kong/go-pdk", "github.com/ugorji/go/codec")
        rows = [line.split() for line in listed.splitlines()]
        modules = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in wanted}
        (module / "modules.json").write_text(json.dumps(modules))
        mark_current(stamp, version, toolchain, source)
