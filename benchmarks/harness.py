"""Builds the C tools, starts a server, puts load on it, stops it. Used by each script here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import MissingPeer, Peer, home_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent / ".bench"
"""Where everything that is generated or fetched goes; git ignores it."""

TOOLS = ROOT / "bin"
START_SECONDS = 30.0
"""A server that does not listen after this long is broken."""

STOP_SECONDS = 10.0
HEADERS = ("msgpack.h", "protobuf.h", "pdk.h", "histogram.h", "process.h")


def build_tools() -> None:
    """Compile the driver and the floor, if their sources are newer. Exits when that fails."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    newest_header = max((HERE / name).stat().st_mtime for name in HEADERS)
    compiler = os.environ.get("CC", "cc")
    for name in ("load", "floor"):
        source, target = HERE / f"{name}.c", TOOLS / name
        newest = max(source.stat().st_mtime, newest_header)
        if target.exists() and target.stat().st_mtime > newest:
            continue
        command = [compiler, "-O2", "-std=gnu11", "-o", str(target), str(source)]
        if shutil.which(compiler) is None:
            raise SystemExit(f"{compiler}: no C compiler; the benchmarks need one")
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{source.name} does not compile")


@dataclass
class Server:
    """A running server: its process and how to reach it."""

    pid: int
    socket: Path
    plugin: str
    protocol: str
    phase: str
    started: float
    """When its process was made, by ``time.monotonic``."""


@contextlib.contextmanager
def running(
    peer: Peer, workload: str, wait: bool = True, run: Path | None = None
) -> Iterator[Server]:
    """Start a prepared peer, by default wait until it listens; stop it at the end.

    `run` is the directory for its socket and what else it writes, that of a server before it for
    instance; without one it gets its own. Raises ``MissingPeer`` with the end of its log when it
    does not come up.
    """
    logs = ROOT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log_path = logs / f"{peer.name}-{workload}.log"
    with contextlib.nullcontext(run) if run else run_directory() as directory:
        launch = peer.launch(home_of(peer, ROOT), directory, workload)
        with log_path.open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                launch.argv,
                cwd=directory,
                env=environment_of(peer),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if wait:
                _wait_for(process, launch.socket, log_path)
            phase = "log" if workload == "log" else "access"
            yield Server(process.pid, launch.socket, launch.plugin, peer.protocol, phase, started)
        finally:
            _stop(process)


def environment_of(peer: Peer) -> dict[str, str]:
    """The environment that a peer's commands run in."""
    kept = dict(os.environ)
    # Whoever installs a server has its modules compiled; without this each start does that.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, **peer.environment()}


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A short-lived directory with a short name: a socket's path has about 100 characters."""
    run = Path(tempfile.mkdtemp(prefix="kongps-bench-"))
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not _is_listening(path):
        if process.poll() is not None:
            raise MissingPeer(f"ended with {process.returncode}: {_last_line(log)}")
        if time.monotonic() > end:
            raise MissingPeer(f"no socket after {START_SECONDS:g} s: {_last_line(log)}")
        time.sleep(0.02)


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(str(path)) == 0


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The session is the server's own: its group holds the server and its children, nothing else.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def load(server: Server, options: Sequence[str]) -> dict[str, Any]:
    """Run the driver against a server and return its report; ``errors`` in it must be looked at."""
    command = [
        str(TOOLS / "load"),
        "--socket",
        str(server.socket),
        "--pid",
        str(server.pid),
        "--plugin",
        server.plugin,
        "--protocol",
        server.protocol,
        "--event",
        server.phase,
        *options,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the driver ended with {done.returncode}: {' '.join(command)}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
