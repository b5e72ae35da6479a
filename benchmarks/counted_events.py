"""Runs events of the workloads in this process, without sockets; started by ``profile.py``.

    python counted_events.py DIRECTORY EVENTS WARMUP WORKLOAD/PROTOCOL...

``DIRECTORY`` has the plugins, the compiled ``counting`` module and ``answers.json``, what Kong
gives for each PDK function. Here is what Kong's side of a connection does, on prepared bytes; only
what is done inside ``counting.feed`` is counted, which is kongps' side. The last
count, ``nothing``, is of so many calls that bring no bytes.

Two runs give the same counts: what is random, such as an instance's id, comes from a fixed seed,
and the collector of cycles, whose turn depends on all that was allocated, is off.
"""

from __future__ import annotations

import collections
import gc
import json
import random
import secrets
import struct
import sys
from pathlib import Path
from typing import Any, Callable

from msgpack import packb, unpackb

from kongps.core.session import Session
from kongps.plugins.loader import load_directory
from kongps.server.core import make_dispatcher
from kongps.settings import Settings

Feed = Callable[[Any, bytes, Any], bytes]
Answers = dict[str, dict[str, Any]]

CONFIG = '{"__key__":"plugins:bench","__seq__":1,"message":"hello"}'


class MsgPackKong:
    """Kong over MsgPack:1: a request for each step."""

    def __init__(self, dispatcher: Any, feed: Feed, answers: Answers) -> None:
        self.session = Session(dispatcher, Settings().max_message)
        self.feed = feed
        self.answers = {
            name: (row["step"], bytes.fromhex(row["msgpack"])) for name, row in answers.items()
        }
        self.sequence = 0

    def ask(self, method: str, argument: bytes) -> Any:
        self.sequence += 1
        head = b"\x94\x00" + packb(self.sequence) + packb(method) + b"\x91"
        session = self.session
        out = self.feed(session.receive_data, head + argument, session.data_to_send)
        kind, sequence, error, result = unpackb(out, strict_map_key=False)
        if kind != 1 or sequence != self.sequence or error is not None:
            raise RuntimeError(f"{method}: {error or 'no answer'}")
        return result

    def start(self, plugin: str) -> None:
        argument = packb({"Name": plugin, "Config": CONFIG})
        self.instance = self.ask("plugin.StartInstance", argument)["Id"]

    def event(self, phase: str) -> list[str]:
        """Runs one event to its end; returns the PDK functions that it called."""
        calls = []
        event = packb({"InstanceId": self.instance, "EventName": phase})
        result = self.ask("plugin.HandleEvent", event)
        while result["Data"] != "ret":
            calls.append(result["Data"]["Method"])
            step, data = self.answers[calls[-1]]
            if step is None:
                break
            argument = b"\x82\xa4Data" + data if data else b"\x81"
            argument += b"\xa7EventId" + packb(result["EventId"])
            result = self.ask(step, argument)
        return calls


class ProtobufKong:
    """Kong over ProtoBuf:1: the connection is the event's; calls are answered one by one."""

    def __init__(self, dispatcher: Any, feed: Feed, answers: Answers) -> None:
        self.dispatcher = dispatcher
        self.session = Session(dispatcher, Settings().max_message)
        self.feed = feed
        self.answers = {
            name: None if row["step"] is None else bytes.fromhex(row["protobuf"])
            for name, row in answers.items()
        }
        self.sequence = 0
        self.frames: collections.deque[bytes] = collections.deque()
        self.part = b""

    def send(self, message: bytes) -> None:
        session = self.session
        data = struct.pack("=I", len(message)) + message
        self.part += self.feed(session.receive_data, data, session.data_to_send)
        while len(self.part) >= 4:
            (size,) = struct.unpack_from("=I", self.part)
            if len(self.part) < 4 + size:
                break
            self.frames.append(self.part[4 : 4 + size])
            self.part = self.part[4 + size :]

    def command(self, number: int, message: bytes) -> None:
        self.sequence += 1
        self.send(field(1, self.sequence) + field(number, message))

    def start(self, plugin: str) -> None:
        self.command(33, field(1, plugin.encode()) + field(2, CONFIG.encode()))
        returned = fields(self.frames.popleft())
        self.instance = fields(returned[33]).get(2, 0)

    def event(self, phase: str) -> list[str]:
        """Runs one event to its end; returns the PDK functions that it called."""
        calls = []
        self.command(36, field(1, self.instance) + field(2, phase.encode()))
        while True:
            method = self.frames.popleft().decode()
            if not method:
                break
            self.frames.popleft()  # its arguments
            calls.append(method)
            data = self.answers[method]
            if data is None:
                # Kong closes the connection; the next event is on another one.
                self.session.connection_lost()
                self.session = Session(self.dispatcher, Settings().max_message)
                self.frames.clear()
                self.part = b""
                return calls
            self.send(data)
        if fields(self.frames.popleft()).get(1) != self.sequence or self.frames:
            raise RuntimeError(f"{phase}: no RpcReturn to what was asked")
        return calls


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message: bytes) -> dict[int, Any]:
    """The numbers and byte fields of a message, by number."""
    found: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            found[tag >> 3] = number()
        elif tag & 7 == 2:
            size = number()
            found[tag >> 3] = message[at : at + size]
            at += size
        else:
            raise RuntimeError(f"a field of wire type {tag & 7}")
    return found


KONGS: dict[str, Any] = {"msgpack": MsgPackKong, "protobuf": ProtobufKong}


def main() -> None:
    directory, events, warmup, *chosen = sys.argv[1:]
    sys.path.insert(0, directory)
    seeded = random.Random(0)
    secrets.randbelow = lambda exclusive_upper_bound: seeded.randrange(exclusive_upper_bound)
    import counting  # type: ignore[import-not-found]

    answers: Answers = json.loads((Path(directory) / "answers.json").read_text())
    report: dict[str, dict[str, Any]] = {}
    feeds = 0

    def feed(receive: Any, data: bytes, take: Any) -> bytes:
        nonlocal feeds
        feeds += 1
        answer: bytes = counting.feed(receive, data, take)
        return answer

    plugins = load_directory(Path(directory) / "plugins").plugins
    counting.begin()
    for name in chosen:
        workload, protocol = name.split("/")
        phase = "log" if workload == "log" else "access"
        kong = KONGS[protocol](make_dispatcher(plugins), feed, answers)
        kong.start(workload)
        calls: list[str] = []
        for _ in range(int(warmup)):
            calls = kong.event(phase)
        gc.collect()
        gc.freeze()  # what was made before is not looked at again
        gc.disable()
        feeds = 0
        counting.zero()
        for _ in range(int(events)):
            kong.event(phase)
        counting.dump(name)
        gc.enable()
        gc.unfreeze()
        report[name] = {"calls": calls, "feeds": feeds}
    # What entering and leaving a session costs from Python, which a server on sockets does not do.
    session = kong.session
    counting.zero()
    for _ in range(int(events)):
        feed(session.receive_data, b"", session.data_to_send)
    counting.dump("nothing")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
