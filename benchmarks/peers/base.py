"""What a server under measurement is, to the benchmarks."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
"""The ``benchmarks`` directory."""

WORKLOADS = HERE / "workloads"


class MissingPeer(Exception):
    """A peer that cannot be had or run here; its text is the reason, for the report."""


@dataclass
class Launch:
    """How to start one server: it listens on ``socket`` when it is ready."""

    argv: Sequence[str]
    socket: Path
    plugin: str


class Peer:
    """One server, or one mode of it. ``name`` is what ``--peers`` and the table call it.

    ``family`` names the set-up that several modes of one server share.
    ``protocol`` is what the driver speaks to it, ``msgpack`` or ``protobuf``; ``version`` and
    ``notes``, sentences for the report, are known after ``prepare``.
    """

    name: str = ""
    family: str = ""
    version: str = ""
    protocol: str = "msgpack"
    notes: Sequence[str] = ()

    def prepare(self, home: Path, workload: str) -> None:
        """Build or fetch what is needed, in ``home``, once; raise ``MissingPeer`` if that fails."""

    def launch(self, home: Path, run: Path, workload: str) -> Launch:
        """How to start it, with its socket in the short-lived directory ``run``."""
        raise NotImplementedError

    def dump(self, home: Path, run: Path, workload: str) -> Sequence[str] | None:
        """The command that prints what Kong asks of its plugins; None if there is none."""
        return None

    def environment(self) -> Mapping[str, str]:
        """What its commands need in their environment."""
        return {}

    def versions(self) -> dict[str, str]:
        """What is measured, exactly; known after ``prepare``."""
        return {self.name: self.version} if self.version else {}


def workload_file(workload: str, flavour: str, suffix: str) -> Path:
    """The plugin of a workload written for one kind of server; ``MissingPeer`` if there is none."""
    path = WORKLOADS / workload / f"{flavour}{suffix}"
    if not path.exists():
        raise MissingPeer(f"the workload {workload!r} is not written for it ({path.name})")
    return path


def run_step(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run one step of a set-up and return what it printed.

    Raises ``MissingPeer`` with the last line that tells what is wrong when it fails.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise MissingPeer(f"{argv[0]}: {error.strerror}") from None
    if done.returncode:
        (cwd / "failed-step.log").write_text(f"$ {' '.join(argv)}\n{done.stdout}")
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise MissingPeer(lines[-1] if lines else f"{argv[0]} ended with {done.returncode}")
    return done.stdout


def is_current(stamp: Path, *parts: str | Path) -> bool:
    """Whether ``stamp`` was written by ``mark_current`` for these very texts and files."""
    return stamp.exists() and stamp.read_text() == _digest(parts)


def mark_current(stamp: Path, *parts: str | Path) -> None:
    """Note that what ``parts`` describe has been built."""
    stamp.write_text(_digest(parts))


def _digest(parts: Sequence[str | Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()
