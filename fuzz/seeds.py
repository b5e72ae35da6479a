"""Writes inputs for the targets from the recordings of real Kongs.

    python fuzz/seeds.py DIRECTORY

Ids of instances and events are made those that the targets know.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from client import split_frames
from codec_targets import MESSAGE_NAMES
from msgpack_recordings import CAPTURES, STEPS, Recording, Request, replace_number
from targets import ANSWER, FRAME, MARK, NEW, SEND

LONGEST = 2048


def main(directory: Path) -> None:
    for target, found in inputs().items():
        place = directory / target
        place.mkdir(parents=True, exist_ok=True)
        for data in found:
            (place / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def inputs() -> dict[str, list[bytes]]:
    """The inputs of each target, each once."""
    made = {
        "msgpack-codec": msgpack_values(),
        "msgpack-protocol": msgpack_messages(),
        "protobuf-codec": protobuf_messages(),
        "protobuf-protocol": protobuf_frames(),
        "sessions": both_sessions(),
    }
    return {
        target: list(dict.fromkeys(data for data in every if len(data) <= LONGEST))
        for target, every in made.items()
    }


@functools.cache
def recordings() -> list[Recording]:
    return [
        Recording(path, all_calls=True) for path in sorted(CAPTURES.glob("kong-*-msgpack/*.jsonl"))
    ]


def msgpack_values() -> Iterator[bytes]:
    seen = set()
    for recording in recordings():
        for step in recording.steps:
            if isinstance(step, Request) and (step.method, len(step.raw)) not in seen:
                seen.add((step.method, len(step.raw)))
                yield step.raw


def msgpack_messages() -> Iterator[bytes]:
    for data in msgpack_values():
        yield b"\x07" + data
    yield b"\x40" + b"".join(data for data in list(msgpack_values())[:4])


@functools.cache
def protobuf_streams() -> list[list[tuple[bytes, bytes]]]:
    """Of each event: what the server sent and what Kong sent, frame by frame."""
    found = []
    for path in sorted(CAPTURES.glob("kong-*-protobuf/*.jsonl")):
        streams: dict[int, list[tuple[str, bytes]]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["ev"] == "data":
                streams.setdefault(row["conn"], []).append(
                    (row["dir"], base64.b64decode(row["b64"]))
                )
        for stream in streams.values():
            found.append([(direction.encode(), data) for direction, data in stream])
    return found


def frames_of(stream: list[tuple[bytes, bytes]], direction: bytes) -> list[bytes]:
    frames, _ = split_frames(b"".join(piece for way, piece in stream if way == direction))
    return frames


def protobuf_messages() -> Iterator[bytes]:
    call = MESSAGE_NAMES.index("RpcCall")
    answers = [MESSAGE_NAMES.index(name) for name in ("Value", "Struct", "String", "ListValue")]
    for stream in protobuf_streams():
        for frame in frames_of(stream, b"k2p"):
            yield bytes((call,)) + frame
            for number in answers:
                yield bytes((number,)) + frame
    for number in range(len(MESSAGE_NAMES)):
        yield bytes((number,)) + b"\x0a\x01a\x10\x01"


def protobuf_frames() -> Iterator[bytes]:
    for index, stream in enumerate(protobuf_streams()):
        frames = frames_of(stream, b"k2p")
        for number, frame in enumerate(frames):
            whole = len(frame).to_bytes(4, sys.byteorder) + frame
            yield bytes((3, (index * 7 + number) % 256)) + whole
        every = b"".join(len(f).to_bytes(4, sys.byteorder) + f for f in frames)
        yield b"\x20\x05" + every


def both_sessions() -> Iterator[bytes]:
    yield from msgpack_sessions()
    yield from protobuf_sessions()
    yield from plain_sessions()


def msgpack_sessions() -> Iterator[bytes]:
    """The first messages of a recording, spread over four connections."""
    for number, recording in enumerate(recordings()):
        pieces = [b""]
        size = 0
        events = 0
        for step in recording.steps:
            if not isinstance(step, Request):
                pieces.append(bytes((NEW << 2 | step_connection(size),)))
                continue
            raw = step.raw
            if step.method == "plugin.HandleEvent" and "InstanceId" in step.argument:
                raw = replace_number(raw, b"InstanceId", 1 + number % 6)
                events += 1
            elif step.method in ("plugin.CloseInstance", "plugin.InstanceStatus"):
                raw = replace_number(raw, step.method.encode() + b"\x91", 5)
            elif step.method in STEPS:
                raw = replace_number(raw, b"EventId", events)
            if size + len(raw) > LONGEST - 100:
                break
            size += len(raw) + 3
            pieces.append(bytes((SEND << 2 | step_connection(step.connection),)) + raw)
        yield MARK.join(pieces)


def step_connection(number: int) -> int:
    return number & 3


def protobuf_sessions() -> Iterator[bytes]:
    """Events that answer every call, one frame per piece."""
    for stream in protobuf_streams():
        pieces = [b""]
        size = 0
        for frame in frames_of(stream, b"k2p"):
            if size + len(frame) > LONGEST - 100:
                break
            size += len(frame) + 3
            pieces.append(bytes((FRAME << 2,)) + frame)
        yield MARK.join(pieces)


def plain_sessions() -> Iterator[bytes]:
    """An event of each instance, over both protocols, answered with values of each type."""
    import msgpack

    from kongps.core.wire.protobuf import encode_message

    values = ("GET", None, 1, 1.5, True, b"\xff", ["a"], {"a": ["b"]}, {"v": {"a": 1}})
    for instance in range(1, 8):
        for phase in ("access", "log"):
            call = {"InstanceId": instance, "EventName": phase}
            pieces = [msgpack.packb([0, 1, "plugin.HandleEvent", [call]])]
            for number, value in enumerate(values):
                step = {"EventId": 1, "Data": value}
                raw = msgpack.packb([0, number, "plugin.Step", [step]])
                pieces.append(bytes((SEND << 2 | number & 3,)) + raw)
            yield MARK.join(pieces)
            event = {"instance_id": instance, "event_name": phase}
            begin = encode_message("RpcCall", {"sequence": 1, "cmd_handle_event": event})
            pieces = [b"", bytes((FRAME << 2,)) + begin]
            for kind, answer in (
                ("String", {"v": "host"}), ("Struct", {"a": "b", "c": ["d"]}), ("Empty", None),
                ("Value", "text"), ("Value", {"a": 1.5}), ("ListValue", ["a"]),
            ):  # fmt: skip
                raw = encode_message(kind, answer)
                pieces.append(bytes((FRAME << 2,)) + raw)
                pieces.append(bytes((ANSWER << 2,)))
            yield MARK.join(pieces)
    for name in ("_asks", "_sets", "no such"):
        for config in ("{}", '{"raises": "a"}', "[", '{"a": 1, "b": [null]}'):
            argument = {"Name": name, "Config": config}
            pieces = [msgpack.packb([0, 1, "plugin.StartInstance", [argument]])]
            for method in ("InstanceStatus", "CloseInstance", "InstanceStatus"):
                raw = msgpack.packb([0, 2, f"plugin.{method}", [100]])
                pieces.append(bytes((SEND << 2 | 1,)) + raw)
            pieces.append(bytes((SEND << 2 | 2,)) + msgpack.packb([0, 3, "plugin.GetStatus", [0]]))
            yield MARK.join(pieces)
            start = {"name": name, "config": config.encode()}
            raw = encode_message("RpcCall", {"sequence": 9, "cmd_start_instance": start})
            yield MARK.join([b"", bytes((FRAME << 2,)) + raw])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
