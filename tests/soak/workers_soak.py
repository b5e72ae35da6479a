"""Clients of a server whose workers are killed, configurations changed, code reloaded.

    PYTHONPATH=tests/support python tests/soak/workers_soak.py [--seconds 600]

Each client is as an nginx worker of Kong: it has a pool of connections and takes any of them for
each request of MsgPack:1. What it sends is its own, so that a mixed-up answer shows. Exit status: 0
when no answer was wrong or late, and no more events failed than the killed workers can have held.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from client import ProtobufSocket, RPCError, Socket
from server_process import Process

PLUGIN = """
    class Plugin:
        name: str = ""

        def access(self, kong):
            host = kong.request.get_header("host")
            total = sum(range(2000))
            kong.response.set_header("x-seen", f"{self.name} {host}")
            method = kong.request.get_method()
            kong.response.set_header("x-method", f"{method} {host}")
"""

CLIENTS = 4  # of each protocol
POOL = 4  # connections of each client
PATIENCE = 15.0  # seconds; an answer that takes longer is lost


class Wrong(Exception):
    """An answer that belongs to something else."""


class Client:
    """One nginx worker: its events one after the other.

    :ivar counts: what became of them.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.random = random.Random(number)
        self.counts: Counter[str] = Counter()
        self.known: tuple[int, str] | None = None
        self.made = 0
        self.pool: list[Any] = []

    def take(self) -> Any:
        raise NotImplementedError

    def close_instance(self, id: int) -> None:
        raise NotImplementedError

    def event(self, id: int, name: str, host: str) -> str:
        raise NotImplementedError

    def run(self, done: threading.Event) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            try:
                if self.known is None or turn % 50 == 0:
                    self.change()
                assert self.known is not None
                id, name = self.known
                self.counts[self.event(id, name, f"c{self.number}-{turn}")] += 1
            except RPCError as error:
                if "no plugin instance" in str(error).lower():
                    self.known = None
                    self.counts["started again"] += 1
                else:
                    self.counts[f"error: {error}"] += 1
            except TimeoutError:
                self.counts["lost"] += 1
                self.pool.clear()
            except Wrong as error:
                self.counts[f"wrong: {error}"] += 1
            except OSError:
                self.counts["closed"] += 1
                self.known = None  # Kong starts the instance again
        for wire in self.pool:
            wire.close()

    def change(self) -> None:
        """A configuration changes: the new instance starts, the old one is closed."""
        self.made += 1
        old, name = self.known, f"n{self.number}-{self.made}"
        wire = self.take()
        self.known = wire.start("seen", f'{{"name": "{name}"}}'), name
        self.pool.append(wire)
        if old is not None:
            with contextlib.suppress(RPCError):
                self.close_instance(old[0])


class MsgPackClient(Client):
    def take(self) -> Socket:
        if len(self.pool) < POOL:
            return Socket(self.path, timeout=PATIENCE)
        wire: Socket = self.pool.pop(self.random.randrange(len(self.pool)))
        return wire

    def ask(self, method: str, *args: Any) -> Any:
        wire = self.take()  # an error that is no answer's leaves the connection out of the pool
        try:
            answer = getattr(wire, method)(*args)
        except RPCError:
            self.pool.append(wire)
            raise
        self.pool.append(wire)
        return answer

    def close_instance(self, id: int) -> None:
        self.ask("call", "CloseInstance", id)

    def event(self, id: int, name: str, host: str) -> str:
        values = {"kong.request.get_header": host, "kong.request.get_method": "M" + host}
        answer = self.ask("event", id)
        seen = []
        while answer["Data"] != "ret":
            data = answer["Data"]
            if data["Method"] == "kong.response.exit":
                return "failed"
            seen.append(tuple(data["Args"]))
            answer = self.ask("step", answer, values.get(data["Method"]))
        expected = [
            ("host",), ("x-seen", f"{name} {host}"), (), ("x-method", f"M{host} {host}")
        ]  # fmt: skip
        if seen != expected:
            raise Wrong(f"{seen} instead of {expected}")
        return "fine"


class ProtobufClient(Client):
    def take(self) -> ProtobufSocket:
        if len(self.pool) < POOL:
            return ProtobufSocket(self.path, timeout=PATIENCE)
        wire: ProtobufSocket = self.pool.pop(self.random.randrange(len(self.pool)))
        return wire

    def close_instance(self, id: int) -> None:
        wire = self.take()
        wire.call("cmd_close_instance", instance_id=id)
        self.pool.append(wire)

    def event(self, id: int, name: str, host: str) -> str:
        values = {"kong.request.get_header": host, "kong.request.get_method": "M" + host}
        wire = self.take()
        wire.begin(id)
        seen = []
        while True:
            asked = wire.read_asked()
            if asked is None:
                break
            if asked.function == "kong.response.exit":
                wire.close()
                return "failed"
            seen.append(asked.message)
            wire.answer(asked, values.get(asked.function))
        self.pool.append(wire)
        whole = b" ".join(seen)
        if len(seen) != 4 or f"{name} {host}".encode() not in whole:
            raise Wrong(f"{whole!r} for {name} {host}")
        if f"M{host} {host}".encode() not in whole:
            raise Wrong(f"{whole!r} for M{host}")
        return "fine"


def soak(
    directory: Path, *, kills: int, pause: float, reloads: int = 0, seed: int = 1
) -> tuple[Counter[str], str]:
    """Runs clients while workers are killed.

    :param kills: how many.
    :param pause: seconds between them, for the server to be whole again.
    :param reloads: how often the code is reloaded in between.
    :return: what became of the events, and the server's log.
    """
    dice = random.Random(seed)
    plugins = directory / "plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "seen.py").write_text(textwrap.dedent(PLUGIN))
    path = directory / "soak.sock"
    server = Process(
        path, "serve", "--plugins-directory", str(plugins), "--socket", str(path),
        "--workers", "3", "--log-level", "warning", "--shutdown-timeout", "1",
    )  # fmt: skip
    kinds = (MsgPackClient, ProtobufClient)
    clients = [kinds[number % 2](path, number) for number in range(2 * CLIENTS)]
    done = threading.Event()
    threads = [threading.Thread(target=client.run, args=(done,)) for client in clients]
    try:
        for thread in threads:
            thread.start()
        for number in range(max(kills, reloads)):
            done.wait(pause)
            if number < reloads:
                server.process.send_signal(signal.SIGHUP)
                done.wait(pause)
            if number < kills:
                rows = Socket(path).call("GetStatus", 0)["Workers"]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(rows)["Pid"], signal.SIGKILL)
        done.wait(pause)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    status = Socket(path).call("GetStatus", 0)
    server.process.send_signal(signal.SIGTERM)
    server.end()
    counts: Counter[str] = Counter()
    for client in clients:
        counts.update(client.counts)
    counts["left"] = status["Events"]
    return counts, server.text()


def faults(counts: Counter[str], kills: int) -> list[str]:
    """What must not have been."""
    found = [f"{count} {what}" for what, count in counts.items() if what.startswith("wrong")]
    found += [f"{counts['lost']} lost"] if counts["lost"] else []
    if counts["left"] > counts["closed"]:  # as with any client that goes away in an event
        found.append(f"{counts['left']} left, but only {counts['closed']} closed")
    found += [f"{count} {what}" for what, count in counts.items() if what.startswith("error")]
    # A killed worker held at most one event of each client.
    most = kills * 2 * CLIENTS
    for what in ("failed", "closed"):
        if counts[what] > most:
            found.append(f"{counts[what]} {what}, more than {most}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--pause", type=float, default=3.0)
    options = parser.parse_args()
    kills = max(1, int(options.seconds / options.pause / 2))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kps") as directory:
        counts, _ = soak(Path(directory), kills=kills, pause=options.pause, reloads=kills)
    print(f"{kills} kills, {kills} reloads in {time.monotonic() - began:.0f} s: {dict(counts)}")
    found = faults(counts, kills)
    print("; ".join(found) or "nothing lost, doubled or mixed up")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
