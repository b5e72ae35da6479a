"""A long run of everything that happens to a server, and what it leaves behind.

    PYTHONPATH=tests/support python tests/soak/soak.py [--events N] [--every N] [--limit-kb 1024]

Two servers, each in a process of its own, both protocols, several connections to each. One is
measured: of its events most are as they should be; some exit, some raise, some make a PDK call
that Kong refuses (they are never stepped again), some lose their connection in the middle; now and
then bytes of no protocol arrive, or a configuration changes. The other gets a twentieth of the
events and is killed and started again, with Kong going on to use the ids that it knows.

The memory of the first is read when no event is under way and the server has given back what it
has freed. Exit status: 0 when it grew by no more than the limit since the first reading, and
nothing was left; else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from client import EXIT, ProtobufSocket, RPCError, Socket, frame, split_frames
from server_process import Process

from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.server.core import MEMORY_INTERVAL

PLUGIN = """
    class Plugin:
        how: str = ""
        seen: int = 0

        def access(self, kong):
            host = kong.request.get_header("host")
            kong.response.set_header("x-how", host + self.how)
            if self.how == "exit":
                kong.response.exit(403, {"message": "no"})
            if self.how == "raise":
                raise ValueError("now and then")
            kong.request.get_method()
"""

# What becomes of an event, out of a hundred.
MIX = {"normal": 62, "exit": 12, "raise": 12, "refused": 8, "abort": 5, "garbage": 1}
HOWS = ("normal", "exit", "raise")

CONNECTIONS = 8  # of each protocol, to the server that is measured
EVENT_TIMEOUT = 1.0  # seconds until an event that is never stepped is ended
CHANGE_EVERY = 2_000  # events between changes of a configuration
RESTART_EVERY = 20_000  # events between restarts of the other server
OTHERS_SHARE = 20  # one event in so many goes to the other server

TEXTS = {"kong.request.get_header": "h" * 50, "kong.request.get_method": "GET"}


class Peer:
    """A Kong's connection: one event at a time, in turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = True
        self.steps_left = -1  # turns until Kong leaves the event alone; -1: it never does
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def start(self, config: str) -> int:
        id: int = self.wire.start("soaked", config)
        return id

    def close_instance(self, id: int) -> None:
        self.wire.close_instance(id)

    def begin(self, instance: int) -> None:
        self.done = False
        self.wire.begin(instance)

    def turn(self) -> None:
        """Reads what the server asks, and answers it."""
        raise NotImplementedError

    def reopen(self) -> None:
        self.wire.close()
        self.done = True
        self.open()

    wire: Any


class MsgPackPeer(Peer):
    def open(self) -> None:
        self.wire = Socket(self.path, timeout=60)

    def turn(self) -> None:
        try:
            asked = self.wire.read_asked()
        except RPCError:
            self.done = True
            raise
        self.steps_left -= 1
        if asked is None or asked.function == EXIT or self.steps_left == 0:
            self.done = True
            return
        self.wire.answer(asked, TEXTS.get(asked.function))


class ProtobufPeer(Peer):
    answers: ClassVar[dict[bytes, bytes]] = {
        name.encode(): frame(encode_message("String", {"v": text})) for name, text in TEXTS.items()
    }

    def open(self) -> None:
        self.wire = ProtobufSocket(self.path, timeout=60)
        self.inbox = b""
        self.frames: list[bytes] = []

    def turn(self) -> None:
        piece = self.wire.socket.recv(1 << 16)
        if not piece:
            self.reopen()
            raise RPCError("No plugin instance: the connection was closed")
        frames, self.inbox = split_frames(self.inbox + piece)
        self.frames += frames
        out = b""
        while len(self.frames) >= 2:
            name, argument, *self.frames = self.frames
            if not name:
                decode_message("RpcReturn", argument)
                self.done = True
            elif name == EXIT.encode():
                self.reopen()  # as Kong does
                return
            else:
                out += self.answers.get(name, frame())
                self.steps_left -= 1
                if self.steps_left == 0:
                    # Kong closes the connection of a call that it refuses.
                    self.reopen()
                    return
        if out:
            self.wire.send(out)


@dataclass
class Target:
    """A server under load, and what its Kong knows of it."""

    process: Process
    peers: list[Peer]
    instances: dict[str, int] = field(default_factory=dict)
    made: int = 0
    manager: Peer | None = None

    def instance(self, how: str) -> int:
        if how not in self.instances:
            self.made += 1
            # A configuration of its own each time, as large as one with a certificate in it.
            config = f'{{"how": "{how}", "__seq__": {self.made}, "more": "{"m" * 1500}"}}'
            self.instances[how] = self.admin().start(config)
        return self.instances[how]

    def admin(self) -> Peer:
        """A connection without an event; in either protocol by turns."""
        if self.manager is not None:
            self.manager.wire.close()
        self.manager = (MsgPackPeer, ProtobufPeer)[self.made % 2](self.process.socket_path)
        return self.manager

    def change(self, how: str) -> None:
        """A configuration changes: the new instance starts, the old is closed."""
        old = self.instances.pop(how, None)
        self.instance(how)
        if old is not None:
            self.admin().close_instance(old)

    def status(self) -> Any:
        return self.process.connect().call("GetStatus", 0)

    def resident_kb(self) -> int:
        pages = Path(f"/proc/{self.process.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4


class Soak:
    """One run.

    :param directory: for the sockets, the plugin and the logs.
    :param patience: seconds to wait before memory is read.
    :ivar readings: (events, resident KB).
    """

    def __init__(self, directory: Path, seed: int = 1, patience: float = 0.0) -> None:
        self.directory = directory
        self.patience = patience
        self.waited = 0.0
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.readings: list[tuple[int, int]] = []
        plugins = directory / "plugins"
        plugins.mkdir()
        (plugins / "soaked.py").write_text(textwrap.dedent(PLUGIN))
        self.kinds = self.random.choices(list(MIX), list(MIX.values()), k=9973)
        self.measured = self.serve("measured", CONNECTIONS)
        self.other = self.serve("other", 1)

    def serve(self, name: str, connections: int) -> Target:
        path = self.directory / f"{name}.sock"
        process = Process(
            path, "serve", "--plugins-directory", str(self.directory / "plugins"),
            "--socket", str(path), "--event-timeout", str(EVENT_TIMEOUT),
            "--log-level", "critical",
        )  # fmt: skip
        kinds = (MsgPackPeer, ProtobufPeer)
        return Target(process, [kind(path) for kind in kinds for _ in range(connections)])

    def end(self) -> None:
        for target in (self.measured, self.other):
            target.process.process.kill()
            target.process.process.wait()

    def run(self, events: int, every: int) -> None:
        started = time.monotonic()
        while sum(self.counts.values()) < events:
            before = sum(self.counts.values())
            target = self.other if self.random.randrange(OTHERS_SHARE) == 0 else self.measured
            # The other has fewer connections: as many turns of it as make it a twentieth.
            for _ in range(CONNECTIONS if target is self.other else 1):
                self.round(target)
            after = sum(self.counts.values())
            if before // CHANGE_EVERY != after // CHANGE_EVERY:
                self.measured.change(self.random.choice(HOWS))
            if before // RESTART_EVERY != after // RESTART_EVERY:
                self.restart()
            if before // every != after // every:
                self.read(started)

    def round(self, target: Target) -> None:
        """An event on each connection."""
        for peer in target.peers:
            kind = self.kinds[sum(self.counts.values()) % len(self.kinds)]
            self.counts[kind] += 1
            if kind == "garbage":
                with contextlib.suppress(OSError):
                    peer.wire.socket.sendall(b"\xff\xc1garbage" * 9)
                    peer.wire.socket.recv(100)
                peer.reopen()
                continue
            peer.steps_left = {"refused": 1, "abort": 2}.get(kind, -1)
            how = kind if kind in HOWS else "normal"
            while True:
                try:
                    peer.begin(target.instance(how))
                    break
                except OSError:
                    peer.reopen()
            if kind == "abort":
                peer.reopen()
        waiting = [peer for peer in target.peers if not peer.done]
        while waiting:
            for peer in waiting:
                try:
                    peer.turn()
                except RPCError as error:
                    # What Kong does: it starts the instance again.
                    if "no plugin instance" not in str(error).lower():
                        raise
                    target.instances.clear()
                    peer.done = True
                except ConnectionError:
                    peer.reopen()
            waiting = [peer for peer in waiting if not peer.done]

    def restart(self) -> None:
        """Kills the other server, and starts it again; Kong knows the old ids."""
        known, made = self.other.instances, self.other.made
        self.other.process.process.kill()
        self.other.process.process.wait()
        for peer in (*self.other.peers, *filter(None, [self.other.manager])):
            peer.wire.close()
        self.other = self.serve("other", 1)
        self.other.instances, self.other.made = known, made

    def settle(self) -> Any:
        """Waits until no event is under way."""
        deadline = time.monotonic() + 30
        while (status := self.measured.status())["Events"]:
            assert time.monotonic() < deadline, f"{status['Events']} events are left"
            time.sleep(0.1)
        return status

    def read(self, started: float) -> None:
        """Reads the memory when the server has given back what nothing uses any more."""
        rate = sum(self.counts.values()) / (time.monotonic() - started - self.waited)
        self.settle()
        time.sleep(self.patience)
        self.waited += self.patience
        total, resident = sum(self.counts.values()), self.measured.resident_kb()
        self.readings.append((total, resident))
        print(f"{total:>10,} events {resident:>8,} KB {rate:>7,.0f} events/s", flush=True)

    def finish(self) -> dict[str, int]:
        """Closes everything that Kong would.

        :return: what is left in the server.
        """
        target = self.measured
        for id in target.instances.values():
            target.admin().close_instance(id)
        for peer in (*target.peers, target.admin()):
            peer.wire.close()
        time.sleep(0.2)
        status = self.settle()
        instances = sum(len(one["Instances"]) for one in status["Plugins"].values())
        descriptors = len(list(Path(f"/proc/{target.process.process.pid}/fd").iterdir()))
        return {
            "events": status["Events"], "instances": instances, "file descriptors": descriptors
        }  # fmt: skip

    def growth(self) -> int:
        """At most so many KB since the first reading."""
        return max(kb for _, kb in self.readings) - self.readings[0][1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=100_000)
    parser.add_argument("--limit-kb", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kps") as directory:
        soak = Soak(Path(directory), options.seed, MEMORY_INTERVAL + 1)
        try:
            idle = len(list(Path(f"/proc/{soak.measured.process.process.pid}/fd").iterdir()))
            soak.run(options.events, options.every)
            left = soak.finish()
        finally:
            soak.end()
    mix = ", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.counts.items()))
    print(f"{sum(soak.counts.values()):,} events: {mix}")
    print(f"left: {', '.join(f'{count} {what}' for what, count in left.items())}")
    open_at_most = idle - len(soak.measured.peers) + 1
    fine = left["events"] == left["instances"] == 0 and left["file descriptors"] <= open_at_most
    growth = soak.growth()
    verdict = "within" if growth <= options.limit_kb else "ABOVE"
    print(f"growth since the first reading: {growth:,} KB, {verdict} {options.limit_kb:,} KB")
    return 0 if fine and growth <= options.limit_kb else 1


if __name__ == "__main__":
    sys.exit(main())
