"""A server with several workers, seen from outside."""

from __future__ import annotations

import os
from typing import Any

from client import Socket
from server_process import Process


def workers_of(server: Process) -> list[int]:
    """The process ids of the workers, those first that have most connections."""
    rows = server.connect().call("GetStatus", 0)["Workers"]
    return [row["Pid"] for row in sorted(rows, key=lambda row: -row["Connections"])]


def one_in_each(server: Process, count: int = 2) -> list[Socket]:
    """Connections to different workers: each new one goes to the worker that has fewest."""
    wires = [server.connect() for _ in range(count)]
    for wire in wires:
        wire.call("GetPluginNames", 0)
    return wires


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def finish(wire: Socket, answer: Any, name: str, host: str) -> None:
    """Steps an event of `seen` to its end."""
    assert answer["Data"] == {"Method": "kong.request.get_header", "Args": ["host"]}
    answer = wire.step(answer, host)
    assert answer["Data"]["Args"] == ["x-seen", f"{name} {host}"]
    answer = wire.step(answer)
    assert answer["Data"]["Method"] == "kong.request.get_method"
    assert wire.step(answer, "GET")["Data"] == "ret"
