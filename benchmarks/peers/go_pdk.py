"""go-pdk's embedded server: each workload's plugin is a server of its own, over ProtoBuf:1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peers.base import Launch, Peer, is_current, mark_current, run_step, workload_file

MODULE = "github.com/Kong/go-pdk"
VERSION = "v0.11.0"

GO_MOD = """\
module bench

go 1.21

require {module} {version}
"""


class GoPdk(Peer):
    name = "go-pdk"
    version = VERSION[1:]
    protocol = "protobuf"

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}

    def prepare(self, home: Path, workload: str) -> None:
        source = workload_file(workload, "go_pdk", ".go")
        toolchain = run_step(["go", "version"], home).strip()
        module = home / VERSION
        stamp = module / f"{workload}.stamp"
        if not is_current(stamp, VERSION, toolchain, source):
            package = module / workload
            shutil.rmtree(package, ignore_errors=True)
            package.mkdir(parents=True)
            shutil.copy(source, package / "main.go")
            if not (module / "go.sum").exists():
                (module / "go.mod").write_text(GO_MOD.format(module=MODULE, version=VERSION))
                run_step(["go", "mod", "download", f"{MODULE}@{VERSION}"], module)
                run_step(["go", "mod", "tidy"], module)
            run_step(["go", "build", "-o", f"bin/{workload}", f"./{workload}"], module)
            listed = run_step(["go", "list", "-m", "-f", "{{.Path}} {{.Version}}", "all"], module)
            rows = [line.split() for line in listed.splitlines()]
            wanted = (MODULE, "google.golang.org/protobuf")
            modules = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in wanted}
            (module / "modules.json").write_text(json.dumps(modules))
            mark_current(stamp, VERSION, toolchain, source)
        self._modules = json.loads((module / "modules.json").read_text())
        self._modules["go"] = toolchain

    def versions(self) -> dict[str, str]:
        return dict(self._modules)

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        argv = [str(home / VERSION / "bin" / workload), "-kong-prefix", str(run)]
        return Launch(argv, run / f"{workload}.socket", workload)

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str]:
        return [str(home / VERSION / "bin" / workload), "-kong-prefix", str(run), "-dump"]
