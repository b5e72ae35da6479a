"""The kongps command of this checkout: run once, or as a server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from client import ProtobufSocket, Socket
from paths import SRC


def environment() -> dict[str, str]:
    """The environment for a kongps of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KONGPS_")}
    return {**kept, "PYTHONPATH": str(SRC), "PYTHONDONTWRITEBYTECODE": "1"}


def run(*words: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the kongps command."""
    return subprocess.run(
        [sys.executable, "-m", "kongps", *words],
        env={**environment(), **more},
        cwd=cwd,
        capture_output=True,
        timeout=30,
    )


class Process:
    """A kongps server in a process of its own.

    :ivar log: the lines that it wrote so far to stderr, in a file.
    """

    def __init__(self, socket_path: Path, *words: str, **more: str) -> None:
        self.socket_path = socket_path
        self.log = socket_path.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kongps", *words],
                env={**environment(), **more},
                stdout=log,
                stderr=log,
            )
        self.wait_for(lambda: self.is_listening() or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended: {self.text()}")

    def is_listening(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s; the log:\n{self.text()}")
            time.sleep(0.01)

    def connect(self) -> Socket:
        return Socket(self.socket_path)

    def connect_protobuf(self) -> ProtobufSocket:
        return ProtobufSocket(self.socket_path)

    def end(self, timeout: float = 20.0) -> int:
        """Waits for the process to end by itself."""
        return self.process.wait(timeout)


@contextlib.contextmanager
def serving(directory: Path, socket_path: Path, *words: str, **more: str) -> Iterator[Process]:
    """A server of the plugins in `directory`, ended at the end of the block."""
    process = Process(
        socket_path, "serve", "--plugins-directory", str(directory),
        "--socket", str(socket_path), *words, **more,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def status(server: Process) -> Any:
    """The server's status."""
    wire = server.connect()
    try:
        return wire.call("GetStatus", 0)
    finally:
        wire.close()


def is_quiet(server: Process) -> bool:
    """Whether no event is under way."""
    return bool(status(server)["Events"] == 0)
