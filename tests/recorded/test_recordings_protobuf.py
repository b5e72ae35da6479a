"""Every recording of a real Kong over ProtoBuf:1, replayed against our server.

What Kong sent goes in byte for byte (only instance ids are ours), cut at the recorded boundaries,
at random ones, and into single bytes. The plugin makes the recorded PDK calls, with pipelining and
without.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import split_frames
from protobuf_recordings import (
    Cut,
    Exchange,
    ProtobufRecording,
    ProtobufReplay,
    files,
    same_message,
    seen_value,
)

from kongps.core.wire.protobuf import decode_message
from kongps.errors import PDKError

RECORDINGS = files()


def recorded(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in zip(edges, edges[1:]):
        yield data[start:end]


def single_bytes(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for index in range(len(data)):
        yield data[index : index + 1]


def at_random(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    dice = random.Random(len(data))
    start = 0
    while start < len(data):
        end = start + dice.randint(1, len(data))
        yield data[start:end]
        start = end


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def replay(path: Path, cut: Cut, *, pipelined: bool) -> ProtobufReplay:
    return ProtobufReplay(ProtobufRecording(path), cut, pipelined=pipelined).run()


def asked_for(exchange: Exchange) -> tuple[list[tuple[str, bytes]], dict[str, Any] | None]:
    """The PDK calls that our server sent in an event, and its RpcReturn if the event ended."""
    frames, rest = split_frames(exchange.sent)
    assert rest == b""
    asked = []
    while frames:
        function = frames.pop(0)
        if not function:
            (last,) = frames
            return asked, decode_message("RpcReturn", last)
        asked.append((function.decode(), frames.pop(0)))
    return asked, None


def test_all_recordings_are_here() -> None:
    assert len(RECORDINGS) == 15
    recordings = [ProtobufRecording(path) for path in RECORDINGS]
    events = [one for each in recordings for one in each.exchanges if one.is_event]
    assert (len(events), sum(len(event.calls) for event in events)) == (1122, 843)


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("cut", [recorded, at_random, single_bytes])
@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_what_kong_answered_reaches_the_plugin(path: Path, cut: Cut, pipelined: bool) -> None:
    result = replay(path, cut, pipelined=pipelined)
    for call, value in result.plugin.seen:
        if call.answer is None:
            assert pipelined, "an event went on without an answer"
            continue
        expected = seen_value(call.function, call.answer, call.args or ())
        if pipelined and value is None and expected is None:
            continue
        assert value == expected, call
    assert not result.plugin.events, "events of the recording that were never handled"
    assert result.dispatcher.live_events == 0


@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_commands_are_answered_with_their_number(path: Path) -> None:
    for exchange in replay(path, recorded, pipelined=True).recording.exchanges:
        if exchange.is_event:
            continue
        (found,), rest = split_frames(exchange.sent)
        assert rest == b""
        answer = decode_message("RpcReturn", found)
        assert answer["sequence"] == exchange.call.get("sequence", 0)
        status = answer["instance_status"]
        assert 0 < status["instance_id"] < 2**31
        assert status["started_at"] > 0


# What differs on the wire on purpose: the function, and why.
SENT_OTHERWISE = {
    "kong.request.get_query_arg": "all are asked for, since Kong cannot answer with a flag",
    "kong.request.get_raw_body": "its limit is ours to keep",
}


def differs_on_purpose(function: str, message: bytes) -> bool:
    if function in SENT_OTHERWISE:
        return True
    if function.startswith("kong.log.") and function != "kong.log.set_serialize_value":
        return True  # false and nil go as texts
    if function.endswith("_header") and b"\x20\x00" in message:
        return True  # false goes as a text; Kong refused it
    # Null, which Kong reads as a text, is left out, which it reads as nil.
    return function == "kong.ctx.shared.set" and message.endswith(b"\x12\x02\x08\x00")


@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_events_are_answered_frame_by_frame_as_by_the_recorded_server(path: Path) -> None:
    result = replay(path, recorded, pipelined=False)
    refused = [call for call, _ in result.plugin.refused]
    compared = 0
    for exchange in result.recording.exchanges:
        if not exchange.was_handled:
            continue
        asked, answer = asked_for(exchange)
        calls = [call for call in exchange.calls if not call.known]
        for call, (function, message) in zip(calls, asked):
            if any(call is other for other in refused) or call.args is None:
                break
            if differs_on_purpose(call.function, call.message):
                continue
            assert function == call.function
            assert same_message(function, message, call.message), call
            compared += 1
        if exchange.returned is not None and not any(call in refused for call in exchange.calls):
            assert len(asked) == len(calls)
            assert answer == {"sequence": exchange.call["sequence"]}
    assert compared or "startup" in path.name or "start-instance" in path.name


@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_with_pipelining_the_same_is_asked_in_the_same_order(path: Path) -> None:
    one_by_one = replay(path, recorded, pipelined=False).recording.exchanges
    pipelined = replay(path, recorded, pipelined=True).recording.exchanges
    for first, second in zip(one_by_one, pipelined):
        if first.is_event:
            asked, _ = asked_for(first)
            # What Kong refused is noticed later; more may have been asked by then.
            assert asked_for(second)[0][: len(asked)] == asked


# Answered by Kong and refused by kongps all the same: Kong does not see what the plugin means.
REFUSED_NEVERTHELESS = [
    ("kong.ctx.shared.set", ("k4", False)),  # nil for Kong
    ("kong.ctx.shared.set", ("k3", {"a": [1, True, None, {"x": "y"}]})),  # a text for Kong
    ("kong.response.set_header", ("x-null",)),  # a text for Kong
]


def test_calls_that_are_refused_were_refused_by_kong_too() -> None:
    seen = []
    for path in RECORDINGS:
        for call, error in replay(path, recorded, pipelined=False).plugin.refused:
            assert isinstance(error, (PDKError, TypeError))
            assert str(error).startswith(f"{call.function}: ")
            if call.answer is not None and (call.function, call.args) not in seen:
                seen.append((call.function, call.args))
    assert sorted(seen, key=repr) == sorted(REFUSED_NEVERTHELESS, key=repr)


def test_an_instance_of_a_server_that_died_closes_the_connection() -> None:
    """So Kong 3.9 starts the instance again; there is no other way to say it."""
    restarts = 0
    for path in RECORDINGS:
        for exchange in replay(path, recorded, pipelined=True).recording.exchanges:
            if exchange.is_event and not exchange.was_handled:
                restarts += 1
                assert exchange.sent == b""
    assert restarts
