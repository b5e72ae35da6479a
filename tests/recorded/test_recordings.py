"""Every recording of a real Kong over MsgPack:1, replayed against our server.

What Kong sent goes in byte for byte (only instance and event ids are ours), cut at the recorded
boundaries, at random ones, and into single bytes. The plugin makes the recorded PDK calls.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from msgpack_recordings import STEPS, PDKCall, Recording, Replay, Restart, files

from kongps.errors import PDKError

RECORDINGS = files()
# In the log phase Kong 3.9 answers this one with nothing; everywhere else it gives the event up.
ANSWERED_IN_LOG = ("kong.request.get_header", [5])
TERMINAL = ("kong.response.exit", "kong.response.error")


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def single_bytes(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        yield data[index : index + 1]


def at_random(data: bytes) -> Iterator[bytes]:
    dice = random.Random(len(data))
    start = 0
    while start < len(data):
        end = start + dice.randint(1, len(data))
        yield data[start:end]
        start = end


def replay(path: Path, cut: Callable[[bytes], Iterator[bytes]]) -> Replay:
    result = Replay(Recording(path), cut)
    result.run()
    return result


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def check_form(method: str, answer: list[Any]) -> None:
    assert answer[0] == 1
    if answer[2] is not None:
        assert isinstance(answer[2], str)
        assert answer[3] is None
    elif method in ("plugin.StartInstance", "plugin.InstanceStatus", "plugin.CloseInstance"):
        assert set(answer[3]) == {"Name", "Id", "Config", "StartTime"}
    elif method == "plugin.HandleEvent" or method in STEPS:
        assert set(answer[3]) == {"EventId", "Data"}
        data = answer[3]["Data"]
        assert data == "ret" or set(data) == {"Method", "Args"}


def without_trailing_nil(args: list[Any]) -> list[Any]:
    args = list(args)
    while args and args[-1] is None:
        args.pop()
    return args


def test_all_recordings_are_here() -> None:
    assert len(RECORDINGS) == 47


@pytest.mark.parametrize("cut", [whole, at_random, single_bytes])
@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_what_kong_sent_is_answered_and_its_values_arrive(
    path: Path, cut: Callable[[bytes], Iterator[bytes]]
) -> None:
    result = replay(path, cut)
    assert result.answers
    for request, answer in result.answers:
        assert answer[1] == request.sequence
        check_form(request.method, answer)
    for call, value in result.plugin.seen:
        if call.step is None:
            assert call.function in TERMINAL
        elif call.step.method == "plugin.StepError":
            assert isinstance(value, PDKError)
            assert value.reason == call.step.argument["Data"]
        else:
            assert value == call.step.argument.get("Data")
    assert not result.plugin.scripts, "events of the recording that were never handled"


# What a step for an event that is not there any more is answered with.
LOST = {
    "Method": "kong.response.exit",
    "Args": [500, {"message": "An unexpected error occurred"}],
}


@pytest.mark.parametrize("path", RECORDINGS, ids=name)
def test_answers_are_those_of_the_recorded_server(path: Path) -> None:
    result = replay(path, whole)
    refused = [call for call, _ in result.plugin.refused]
    for request, answer in result.answers:
        recorded = request.answer
        if recorded is None or recorded[2] is not None or answer[2] is not None:
            continue
        if request.method == "plugin.HandleEvent" or request.method in STEPS:
            said, ours = recorded[3]["Data"], answer[3]["Data"]
            if refused and ours == LOST:
                continue  # the event has ended here with the call that was refused
            if isinstance(said, dict) and PDKCall(said["Method"], said["Args"] or []) in [
                PDKCall(call.function, call.args) for call in refused
            ]:
                continue  # Kong did not take this call either
            if isinstance(said, dict):
                said = {**said, "Args": without_trailing_nil(said["Args"] or [])}
            assert ours == said


def test_calls_that_we_refuse_were_refused_by_kong_too() -> None:
    """A call may only be stopped before it is sent when Kong never answered it."""
    for path in RECORDINGS:
        result = replay(path, whole)
        for call, error in result.plugin.refused:
            if (call.function, call.args) != ANSWERED_IN_LOG:
                assert call.step is None, f"{name(path)}: {call.function}{call.args}: {error}"


def test_an_instance_of_a_server_that_died_is_not_found_in_the_words_kong_knows() -> None:
    restarts = 0
    for path in RECORDINGS:
        recording = Recording(path)
        if not any(isinstance(step, Restart) for step in recording.steps[:-1]):
            continue
        result = Replay(recording, whole)
        result.run()
        for request, answer in result.answers:
            recorded = request.answer
            if (
                request.method == "plugin.HandleEvent"
                and recorded
                and recorded[2]
                and "no plugin instance" in recorded[2].lower()
            ):
                restarts += 1
                assert "No plugin instance" in answer[2]
    assert restarts >= 5


def test_kong_finds_an_instance_for_every_start_even_one_that_fails() -> None:
    """Kong 2.8 hangs after an error from StartInstance; 3.9 asks again without end."""
    starts = 0
    for path in RECORDINGS:
        for request, answer in replay(path, whole).answers:
            if request.method == "plugin.StartInstance":
                starts += 1
                assert answer[2] is None
                assert 0 < answer[3]["Id"] < 2**31
    assert starts > 40
