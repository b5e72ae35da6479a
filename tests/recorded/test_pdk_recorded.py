"""Every PDK function against what a real Kong 3.9.1 answered.

One row of the recording is one call in one phase: what a plugin server asked for, and what came
back, or that nothing did because Kong refused the call. What Kong answered must reach the plugin;
what it refused must raise before anything is sent.
"""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest
from paths import DATA
from scripted_kong import decoded, run, was_refused, was_unknown, wire_answer

from kongps.core.wire.function import registered
from kongps.errors import HandlerExit, PDKError

RECORDING = DATA / "pdk" / "kong-3.9-results-msgpack.jsonl"
TABLE = registered()
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in RECORDING.read_text("utf-8").splitlines()
]

# Answered by Kong, refused by kongps; (phase or None for all, function, arguments or None for all).
REFUSED_NEVERTHELESS: list[tuple[str | None, str, list[Any] | None]] = [
    # Kong clears its own copy; the plugin's table would stay as it is.
    (None, "kong.table.clear", None),
    # In the log phase Kong does not look at these arguments, in all others it abandons the event.
    ("log", "kong.request.get_header", [5]),
    ("log", "kong.request.get_headers", [0]),
    ("log", "kong.request.get_headers", [-1]),
]
# Functions of kong.log whose tables are sent; others write their text.
KEEP_TABLES = {"kong.log.inspect", "kong.log.set_serialize_value"}
# Values and tables of Kong's that the recording tried to call.
NO_FUNCTIONS = {"kong.configuration", "kong.version", "kong.request"}


def expected_value(function: str, answer: Any) -> Any:
    """What the plugin gets for an answer."""
    if function == "kong.log.serialize":
        return json.loads(answer)
    if function == "kong.request.get_uri_captures":
        return {"unnamed": answer["unnamed"] or {}, "named": answer["named"] or {}}
    if function == "kong.vault.update":
        return answer or {}
    return answer


def expected_arguments(function: str, arguments: list[Any]) -> list[Any]:
    """What is sent for the arguments of a call."""
    if function.startswith("kong.log") and function not in KEEP_TABLES:
        arguments = [str(item) if isinstance(item, dict) else item for item in arguments]
    while arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    return arguments


def refused_nevertheless(row: dict[str, Any]) -> bool:
    function, arguments = row["call"]
    return any(
        phase in (None, row["phase"]) and name == function and given in (None, arguments)
        for phase, name, given in REFUSED_NEVERTHELESS
    )


def identify(row: dict[str, Any]) -> str:
    function, arguments = row["call"]
    return f"{row['phase']}-{function}-{json.dumps(arguments)[:40]}"


def call(row: dict[str, Any], answers: list[Any]) -> Any:
    function, arguments = row["call"]

    def handler(kong: Any) -> Any:
        method = reduce(getattr, function.split(".")[1:], kong)
        return method(*decoded(arguments))

    return run(handler, row["phase"], answers)


ANSWERED = [
    row
    for row in ROWS
    if not was_refused(row) and not was_unknown(row) and not refused_nevertheless(row)
]
REFUSED = [row for row in ROWS if was_refused(row) or refused_nevertheless(row)]
UNKNOWN = [row for row in ROWS if was_unknown(row)]


def test_the_recording_is_read_whole() -> None:
    assert len(ROWS) == len(ANSWERED) + len(REFUSED) + len(UNKNOWN) == 828
    assert (len(ANSWERED), len(REFUSED), len(UNKNOWN)) == (504, 308, 16)


@pytest.mark.parametrize("row", ANSWERED, ids=identify)
def test_what_kong_answered_reaches_the_plugin(row: dict[str, Any]) -> None:
    function, arguments = row["call"]
    answer = wire_answer(function, row["result"]["data"])
    outcome = call(row, [] if row["result"]["terminal"] else [answer])
    assert outcome.sent == [(function, expected_arguments(function, decoded(arguments)))]
    if row["result"]["terminal"]:
        assert isinstance(outcome.error, HandlerExit)
        return
    assert outcome.error is None
    assert outcome.last == "ret"
    assert outcome.value == expected_value(function, answer)


@pytest.mark.parametrize("row", REFUSED, ids=identify)
def test_what_kong_refused_raises_before_it_is_sent(row: dict[str, Any]) -> None:
    outcome = call(row, [])
    assert outcome.asked == []
    function = row["call"][0]
    if function in NO_FUNCTIONS:
        assert isinstance(outcome.error, (AttributeError, TypeError))
        return
    assert isinstance(outcome.error, (PDKError, TypeError, ValueError))
    assert function.rpartition(".")[2] in str(outcome.error)


@pytest.mark.parametrize("row", UNKNOWN, ids=identify)
def test_what_kong_does_not_know_raises_before_it_is_sent(row: dict[str, Any]) -> None:
    # Kong answers nothing and logs that it could not find the method; disable_tls is there in
    # stream sessions alone.
    outcome = call(row, [])
    assert outcome.asked == []
    assert isinstance(outcome.error, (PDKError, AttributeError))


def test_phases_are_those_that_kong_names() -> None:
    """Kong says ``only in: …`` when it refuses; no phase of ours may be missing there."""
    seen = 0
    for row in ROWS:
        function = row["call"][0]
        for line in row["log"]:
            _, found, rest = line.partition("(only in: ")
            if found:
                allowed = {phase.strip() for phase in rest.partition(")")[0].split(",")}
                if function == "kong.response.exit":
                    allowed.add("preread")  # another function in stream sessions, as documented
                assert set(TABLE[function].phases) <= allowed, function
                seen += 1
    assert seen == 179
