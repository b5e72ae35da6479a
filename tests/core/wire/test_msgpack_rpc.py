"""MsgPack:1 as a protocol without I/O."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from core_defaults import MAX_MESSAGE
from hypothesis import given
from hypothesis import strategies as st

from kongps.core.wire.msgpack_rpc import MsgPackRPC
from kongps.errors import PackError, ProtocolError


def request(sequence: int, method: str, *args: Any) -> bytes:
    packed: bytes = msgpack.packb([0, sequence, method, list(args)])
    return packed


def calls_of(*pieces: bytes) -> list[dict[str, Any]]:
    protocol = MsgPackRPC(MAX_MESSAGE)
    calls = []
    for piece in pieces:
        protocol.receive_data(piece)
        while True:
            call = protocol.next()
            if call is None:
                break
            calls.append(
                {
                    name: getattr(call, name)
                    for name in ("kind", "sequence", "target", "phase", "method", "value")
                }
            )
    return calls


def only_call(data: bytes) -> dict[str, Any]:
    (call,) = calls_of(data)
    return call


MIXED = [
    request(1, "plugin.StartInstance", {"Name": "hello", "Config": "{}"}),
    request(2, "plugin.HandleEvent", {"InstanceId": 70000, "EventName": "access"}),
    msgpack.packb([2, "serverPid", 5]),
    request(3, "plugin.Step", {"EventId": 300, "Data": {"a": [1, 2.5, None, True]}}),
    request(4, "plugin.StepError", {"Data": "no", "EventId": 3}),
    request(2**32 - 1, "plugin.GetStatus", 0),
]


def test_handle_event_names_instance_and_phase() -> None:
    for phase in ("certificate", "rewrite", "access", "response", "preread", "log"):
        call = only_call(
            request(7, "plugin.HandleEvent", {"EventName": phase, "InstanceId": 2**31 - 1})
        )
        assert call["kind"] == "handle_event"
        assert (call["sequence"], call["target"], call["phase"]) == (7, 2**31 - 1, phase)


@pytest.mark.parametrize("number", [5, 5.0])
@pytest.mark.parametrize("single", [True, False])
def test_numbers_may_come_as_doubles(number: float, single: bool) -> None:
    data = msgpack.packb(
        [0, number, "plugin.HandleEvent", [{"InstanceId": number, "EventName": "log"}]],
        use_single_float=single,
    )
    call = only_call(data)
    assert (call["sequence"], call["target"]) == (5, 5)


def test_keys_that_are_not_known_are_passed_over() -> None:
    call = only_call(
        request(
            1,
            "plugin.HandleEvent",
            {"More": {"x": [1, {}]}, "InstanceId": 4, 9: 9, "EventName": "access", "Z": b"z"},
        )
    )
    assert (call["kind"], call["target"]) == ("handle_event", 4)


@pytest.mark.parametrize(
    "method",
    [
        "plugin.Step",
        "plugin.StepMultiMap",
        "plugin.StepCredential",
        "plugin.StepRoute",
        "plugin.StepService",
        "plugin.StepConsumer",
        "plugin.StepMemoryStats",
        "plugin.StepPlugin",
    ],
)
def test_every_step_method_brings_a_value(method: str) -> None:
    call = only_call(request(1, method, {"EventId": 9, "Data": {"k": ["v"]}}))
    assert (call["kind"], call["target"], call["value"]) == ("step", 9, {"k": ["v"]})


def test_a_step_without_data_brings_none() -> None:
    assert only_call(request(1, "plugin.Step", {"EventId": 9}))["value"] is None


def test_step_error_brings_its_text() -> None:
    call = only_call(request(1, "plugin.StepError", {"EventId": 9, "Data": "boom"}))
    assert (call["kind"], call["value"]) == ("step_error", "boom")


def test_other_methods_are_commands_with_their_argument() -> None:
    call = only_call(request(1, "plugin.StartInstance", {"Name": "x", "Config": "{}"}))
    assert (call["kind"], call["method"]) == ("command", "plugin.StartInstance")
    assert call["value"] == {"Name": "x", "Config": "{}"}
    assert only_call(request(1, "plugin.StepFurther", {}))["kind"] == "command"
    assert only_call(request(1, "plugin.GetStatus"))["value"] is None


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"EventName": "access"}, "No plugin instance"),
        ({"EventName": "access", "InstanceId": "4"}, "No plugin instance"),
        ({"EventName": "access", "InstanceId": 1.5}, "No plugin instance"),
        ({"InstanceId": 1}, "phase"),
        ({"InstanceId": 1, "EventName": "body_filter"}, "phase"),
        ({"InstanceId": 1, "EventName": 5}, "phase"),
        ([1, 2], "No plugin instance"),
        (None, "No plugin instance"),
    ],
)
def test_a_handle_event_that_lacks_something_is_invalid(argument: Any, words: str) -> None:
    call = only_call(request(3, "plugin.HandleEvent", argument))
    assert call["kind"] == "invalid"
    assert words in call["value"]


def test_a_step_without_an_event_is_invalid() -> None:
    for argument in ({"Data": 1}, {"EventId": "x"}, None, 7):
        assert only_call(request(3, "plugin.Step", argument))["kind"] == "invalid"


def test_a_call_with_two_arguments_is_invalid() -> None:
    assert only_call(request(3, "plugin.CloseInstance", 1, 2))["kind"] == "invalid"


@given(st.lists(st.integers(1, sum(map(len, MIXED)) - 1), unique=True))
def test_messages_may_be_cut_anywhere(cuts: list[int]) -> None:
    whole = b"".join(MIXED)
    edges = [0, *sorted(cuts), len(whole)]
    pieces = [whole[a:b] for a, b in zip(edges, edges[1:])]
    assert calls_of(*pieces) == calls_of(*MIXED)


def test_messages_may_come_byte_by_byte() -> None:
    whole = b"".join(MIXED)
    assert calls_of(*(whole[i : i + 1] for i in range(len(whole)))) == calls_of(whole)
    assert len(calls_of(whole)) == 5  # the notification asks for nothing


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xc1",
        msgpack.packb([1, 1, None, None]),
        msgpack.packb([0, 1, "plugin.Step"]),
        msgpack.packb([0, "1", "plugin.Step", []]),
        msgpack.packb([0, -1, "plugin.Step", []]),
        msgpack.packb([0, 1, 5, []]),
        msgpack.packb([0, 1, "x" * 65, []]),
        msgpack.packb([]),
        msgpack.packb({}),
        b"\xdd\xff\xff\xff\xff",
        b"\x94\x00\x01\xadplugin.Status\x91\x81\x90\x01",
    ],
)
def test_what_is_no_request_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        calls_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_calls_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        calls_of(data)


def answer(protocol: MsgPackRPC) -> Any:
    return msgpack.unpackb(protocol.data_to_send(), strict_map_key=False)


def test_answers_have_the_forms_that_kong_reads() -> None:
    protocol = MsgPackRPC(MAX_MESSAGE)
    protocol.send_return(70000, 5)
    assert answer(protocol) == [1, 70000, None, {"EventId": 5, "Data": "ret"}]
    protocol.send_pdk_call(2, 300, "kong.response.set_header", ("x", "1"))
    call = {"Method": "kong.response.set_header", "Args": ["x", "1"]}
    assert answer(protocol) == [1, 2, None, {"EventId": 300, "Data": call}]
    protocol.send_result(3, {"Id": 9})
    assert answer(protocol) == [1, 3, None, {"Id": 9}]
    protocol.send_error(4, "nö")
    assert answer(protocol) == [1, 4, "nö", None]
    assert protocol.data_to_send() == b""


def test_an_argument_that_cannot_be_packed_leaves_no_half_answer() -> None:
    protocol = MsgPackRPC(MAX_MESSAGE)
    protocol.send_return(1, 1)
    before = len(protocol.data_to_send())
    protocol.send_return(1, 1)
    with pytest.raises(PackError, match=r"argument 2 of kong.response.set_header"):
        protocol.send_pdk_call(2, 1, "kong.response.set_header", ("x", [object()]))
    with pytest.raises(PackError):
        protocol.send_result(3, {"x": object()})
    assert len(protocol.data_to_send()) == before
