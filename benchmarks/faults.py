"""What servers do when things go wrong: the same faults against each, measured.

    python benchmarks/faults.py [--peers kongps,go-pdk] [--wait 5] [--events 1000]

One Kong of our own speaks to each server; `docs/reliability.md` has the table that this prints.
A server that cannot be had is left out, with the reason. A fault that a kind of server cannot have
(Go has no constructor that knows the configuration) is a dash.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import ROOT, TOOLS, Server, build_tools, run_directory, running
from peers import MissingPeer, Peer, all_peers, home_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from client import EXIT, ProtobufSocket, RPCError, Socket

WORKLOAD = "faults"
PEERS = (
    "kongps", "go-pluginserver", "kong-python-pdk-gevent", "kong-python-pdk-threads",
    "kongps-protobuf", "go-pdk",
)  # fmt: skip
GET_HEADER = "kong.request.get_header"
PATIENCE = 62.0  # a little longer than Kong waits, and than kongps keeps an event


class Answers(Socket):
    """A connection over MsgPack:1, without the notifications that go-pluginserver sends."""

    def receive(self) -> Any:
        while True:
            message = super().receive()
            if message[0] != 2:
                return message


class Kong:
    """A connection to a server.

    :param wait: seconds to wait for an answer.
    """

    def __init__(self, server: Server, wait: float) -> None:
        self.protobuf = server.protocol == "protobuf"
        self.wire: Any = (ProtobufSocket if self.protobuf else Answers)(server.socket, wait)

    def start(self, **config: Any) -> int:
        import json

        id: int = self.wire.start(WORKLOAD, json.dumps({"__seq__": 7, **config}))
        return id

    def event(self, instance: int, steps: int = -1) -> str:
        """Runs an event; gives how it ends, and the header that the plugin set.

        :param steps: PDK calls after which Kong is silent, -1 for never.
        """
        header = None
        self.wire.begin(instance)
        while True:
            asked = self.wire.read_asked()
            if asked is None:
                return f"returned, {header}" if header else "returned"
            function, args = asked.function, asked.args
            if function == EXIT:
                return f"exit {args['status'] if self.protobuf else args[0]}"
            if function == "kong.response.set_header":
                header = args["v"] if self.protobuf else args[1]
            if steps == 0:
                return "left"
            steps -= 1
            self.wire.answer(asked, "example.test" if function == GET_HEADER else None)

    def close(self) -> None:
        self.wire.close()


class Trial:
    """A server, and how its faults are measured."""

    def __init__(self, peer: Peer, wait: float, events: int) -> None:
        self.peer = peer
        self.wait = wait
        self.events = events
        self.is_go = peer.name.startswith("go-")

    def kong(self, server: Server) -> Kong:
        return Kong(server, self.wait)

    def outcome(self, action: Callable[[], Any]) -> str:
        """What an action ends in, and after how long."""
        started = time.monotonic()
        try:
            end = str(action())
        except RPCError as error:
            text = re.sub(r"\s+", " ", str(error))
            text = re.sub(r"/\S+/", "…/", text)
            end = f"error: {text[:60]}{'…' if len(text) > 60 else ''}"
        except TimeoutError:
            return f"nothing for {self.wait:g} s"
        except (ConnectionError, BrokenPipeError):
            end = "closes the connection"
        seconds = time.monotonic() - started
        return end if seconds < 1 else f"{end}, after {seconds:.0f} s"

    def serves(self, server: Server) -> str:
        """Whether a request without a fault is served now."""
        try:
            kong = self.kong(server)
            end = kong.event(kong.start(message="hello"))
        except (OSError, RPCError) as error:
            return f"and then serves no other client: {type(error).__name__}"
        return "" if end == "returned, hello" else f"and then: {end}"

    def with_fault(self, how: str) -> str:
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            found = self.outcome(lambda: kong.event(kong.start(how=how)))
            return " ".join(filter(None, (found, self.serves(server))))

    # --- one method per fault ----------------------------------------------------------------

    def handler_raises(self) -> str:
        return self.with_fault("raise")

    def handler_leaves(self) -> str:
        return "-" if self.is_go else self.with_fault("leave")

    def constructor_raises(self) -> str:
        return "-" if self.is_go else self.with_fault("construct")

    def configuration_that_does_not_fit(self) -> str:
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            found = self.outcome(lambda: kong.event(kong.start(message=5)))
            return " ".join(filter(None, (found, self.serves(server))))

    def unknown_instance(self) -> str:
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            found = self.outcome(lambda: kong.event(123456))
            return " ".join(filter(None, (found, self.serves(server))))

    def garbage(self) -> str:
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)

            def send() -> str:
                kong.wire.socket.sendall(b"\xc1\xff garbage \xff" * 20)
                data = kong.wire.socket.recv(1000)
                return f"answers {len(data)} bytes" if data else "closes the connection"

            found = self.outcome(send)
            return " ".join(filter(None, (found, self.serves(server))))

    def message_that_says_it_is_huge(self) -> str:
        """4 GiB are announced (MsgPack: a text; ProtoBuf: a frame), 200 MB are sent."""
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            head = b"\x94\x00\x01\xdb\xff\xff\xff\xff"
            if kong.protobuf:
                head = b"\xff\xff\xff\x7f"
            before = resident_kb(server.pid)
            sent = flood(kong.wire.socket, head, b"x" * (1 << 20), 3.0, 200 << 20)
            grown = (resident_kb(server.pid) - before) / 1024
            found = f"takes {sent / (1 << 20):.0f} MB of 200, grows by {max(0, grown):.0f} MB"
            return " ".join(filter(None, (found, self.serves(server))))

    def slow_reader(self) -> str:
        """Asks for three seconds, and reads nothing."""
        import msgpack
        from client import frame

        from kongps.core.wire.protobuf import encode_message

        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            instance = kong.start(message="m" * 2000)
            if kong.protobuf:
                call = {"sequence": 1, "cmd_get_plugin_info": {"name": WORKLOAD}}
                ask = frame(encode_message("RpcCall", call))
            else:
                ask = msgpack.packb([0, 1, "plugin.InstanceStatus", [instance]])
            before = resident_kb(server.pid)
            sent = flood(kong.wire.socket, b"", ask * 1000, 3.0, 200 << 20)
            grown = (resident_kb(server.pid) - before) / 1024
            found = f"takes {sent // len(ask):,} calls, grows by {max(0, grown):.0f} MB"
            return " ".join(filter(None, (found, self.serves(server))))

    def exit_ends_the_handler(self) -> str:
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            found = self.outcome(lambda: kong.event(kong.start(how="exit")))
            return " ".join(filter(None, (found, self.serves(server))))

    def memory_after_exits(self) -> str:
        return self.memory(lambda kong, instance: kong.event(instance), how="exit")

    def memory_after_abandoned_events(self) -> str:
        return self.memory(lambda kong, instance: kong.event(instance, steps=0), how="")

    def memory(self, one: Callable[[Kong, int], str], how: str) -> str:
        """Twice as many events, and what the second half adds to the memory.

        Between the halves passes more time than Kong waits: what the server means to give up, it
        has given up by then.
        """
        with running(self.peer, WORKLOAD) as server:
            kong = self.kong(server)
            instance = kong.start(how=how)
            readings = []
            for _ in range(3):
                for _ in range(self.events):
                    one(kong, instance)
                    if kong.protobuf:  # as Kong does
                        kong.close()
                        kong = self.kong(server)
                readings.append((resident_kb(server.pid), threads(server.pid)))
                if len(readings) < 3:
                    time.sleep(PATIENCE)
            grown = (readings[2][0] - readings[0][0]) / 2 / self.events
            found = f"{max(0.0, grown):.2f} KB an event"
            more = (readings[2][1] - readings[0][1]) / 2 / self.events
            if more > 0:
                found += f", {more:.2g} threads an event"
            return " ".join(filter(None, (found, self.serves(server))))

    def restart_with_old_ids(self) -> str:
        """Two configurations; the server is killed; the second worker starts its own first.

        The new server gets the socket of the old one, as from Kong.
        """
        with run_directory() as run:
            with running(self.peer, WORKLOAD, run=run) as server:
                kong = self.kong(server)
                old = {message: kong.start(message=message) for message in ("one", "two")}
                os.kill(server.pid, signal.SIGKILL)
            try:
                with running(self.peer, WORKLOAD, run=run) as server:
                    kong = self.kong(server)
                    kong.start(message="three")
                    return self.outcome(lambda: kong.event(old["one"]))
            except MissingPeer as error:
                return f"it does not start again: {error}"


def flood(peer: socket.socket, head: bytes, data: bytes, seconds: float, most: int) -> int:
    """Sends for a time without reading; gives the bytes that were taken."""
    deadline = time.monotonic() + seconds
    sent = 0
    peer.settimeout(0.2)
    with contextlib.suppress(ConnectionError):
        if head:
            peer.sendall(head)
        left = memoryview(data)
        while time.monotonic() < deadline and sent < most:
            with contextlib.suppress(TimeoutError):
                taken = peer.send(left)
                sent += taken
                left = left[taken:] or memoryview(data)
    return sent


def processes(pid: int) -> list[int]:
    """A process and its children's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in processes(int(child)))]


def resident_kb(pid: int) -> int:
    total = 0
    for one in processes(pid):
        total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4
    return total


def threads(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{one}/task").iterdir())) for one in processes(pid))


FAULTS = {
    "a handler raises (panics)": Trial.handler_raises,
    "a handler raises SystemExit": Trial.handler_leaves,
    "a constructor raises": Trial.constructor_raises,
    "a configuration with a number for a text": Trial.configuration_that_does_not_fit,
    "an event for an instance that is not there": Trial.unknown_instance,
    "bytes of no protocol": Trial.garbage,
    "a message that says it has gigabytes": Trial.message_that_says_it_is_huge,
    "a peer that asks and does not read": Trial.slow_reader,
    "a handler exits, and code follows": Trial.exit_ends_the_handler,
    "events that exit: memory that stays": Trial.memory_after_exits,
    "events that Kong abandons: memory that stays": Trial.memory_after_abandoned_events,
    "killed, started again, an id from before": Trial.restart_with_old_ids,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--wait", type=float, default=5.0, help="seconds for an answer (5)")
    parser.add_argument("--events", type=int, default=1000, help="of each half, for memory (1000)")
    parser.add_argument("--quick", action="store_true", help="without what takes two minutes")
    options = parser.parse_args()
    build_tools()
    known = all_peers(TOOLS)
    columns: dict[str, list[str]] = {}
    for name in options.peers.split(","):
        peer = known[name]
        try:
            peer.prepare(home_of(peer, ROOT), WORKLOAD)
        except MissingPeer as missing:
            print(f"{name}: {missing}", file=sys.stderr)
            continue
        trial = Trial(peer, options.wait, options.events)
        cells = []
        for fault, measure in FAULTS.items():
            if options.quick and "memory" in fault:
                cells.append("-")
                continue
            try:
                cells.append(measure(trial))
            except (MissingPeer, OSError, RPCError) as error:
                cells.append(f"could not be measured: {type(error).__name__} {error}")
            print(f"{name}: {fault}: {cells[-1]}", file=sys.stderr, flush=True)
        columns[f"{name} {peer.version}"] = cells
    print(f"| fault | {' | '.join(columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for row, fault in enumerate(FAULTS):
        print(f"| {fault} | {' | '.join(cells[row] for cells in columns.values())} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
