"""ProtoBuf:1 as a protocol without I/O."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Asked, DirectProtobuf, frame, protobuf_with, split_frames
from core_defaults import MAX_MESSAGE, new_dispatcher, new_session
from hypothesis import given
from hypothesis import strategies as st
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.core.wire.function import registered
from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.protobuf_rpc import ProtobufRPC
from kongps.core.wire.tables import ADAPTED, RPCS
from kongps.errors import HandlerExit, PackError, PDKError, ProtocolError
from kongps.server.core import make_dispatcher

# Bytes of calls that are sent before an answer is waited for, and of a frame with a call of Kong.
MAX_PIPELINED = 16384
MAX_CALL_SIZE = 8 * 1024 * 1024
MAX_ANSWER_SIZE = 64 * 1024 * 1024


@pytest.fixture
def dispatcher() -> Dispatcher:
    return new_dispatcher()


def call(**fields: Any) -> bytes:
    return frame(encode_message("RpcCall", fields))


def calls_of(*pieces: bytes) -> list[dict[str, Any]]:
    protocol = ProtobufRPC(MAX_MESSAGE)
    calls = []
    for piece in pieces:
        protocol.receive_data(piece)
        while True:
            found = protocol.next()
            if found is None:
                break
            calls.append(
                {
                    name: getattr(found, name)
                    for name in ("kind", "sequence", "target", "phase", "method", "value")
                }
            )
            if found.kind == "command":
                protocol.send_result(found.sequence, None)
            else:
                protocol.send_return(found.sequence, 1)
    return calls


def asked(**fields: Any) -> ProtobufRPC:
    """A connection on which Kong has made a call."""
    protocol = ProtobufRPC(MAX_MESSAGE)
    ask(protocol, **fields)
    return protocol


def ask(protocol: ProtobufRPC, **fields: Any) -> None:
    protocol.receive_data(call(**fields))
    assert protocol.next() is not None


EVENT = {"instance_id": 1, "event_name": "access"}


def functions(asked: list[Asked | None]) -> list[str | None]:
    return [None if item is None else item.function for item in asked]


COMMANDS: list[tuple[dict[str, Any], str, Any]] = [
    ({"cmd_get_plugin_names": {}}, "plugin.GetPluginNames", None),
    ({"cmd_get_plugin_info": {"name": "hello"}}, "plugin.GetPluginInfo", "hello"),
    (
        {"cmd_start_instance": {"name": "hello", "config": b'{"a": "\xff"}'}},
        "plugin.StartInstance",
        {"Name": "hello", "Config": b'{"a": "\xff"}'},
    ),
    ({"cmd_get_instance_status": {"instance_id": 7}}, "plugin.InstanceStatus", 7),
    ({"cmd_close_instance": {"instance_id": 2**31 - 1}}, "plugin.CloseInstance", 2**31 - 1),
    # What has its default need not be there.
    ({"cmd_get_plugin_info": {}}, "plugin.GetPluginInfo", ""),
    ({"cmd_start_instance": {}}, "plugin.StartInstance", {"Name": "", "Config": b""}),
    ({"cmd_get_instance_status": {}}, "plugin.InstanceStatus", 0),
    ({"cmd_close_instance": {}}, "plugin.CloseInstance", 0),
]


# --- calls of Kong -------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "method", "value"), COMMANDS)
def test_commands_are_those_of_msgpack(command: dict[str, Any], method: str, value: Any) -> None:
    (found,) = calls_of(call(sequence=5, **command))
    assert (found["kind"], found["sequence"]) == ("command", 5)
    assert (found["method"], found["value"]) == (method, value)


@pytest.mark.parametrize("sequence", [0, 1, 127, 128, 2**31, 2**63 - 1, -1])
@pytest.mark.parametrize("instance", [0, 1, 2**31 - 1, -1])
def test_an_event_names_instance_and_phase(sequence: int, instance: int) -> None:
    for phase in ("certificate", "rewrite", "access", "response", "preread", "log"):
        (found,) = calls_of(
            call(sequence=sequence, cmd_handle_event={"instance_id": instance, "event_name": phase})
        )
        assert found["kind"] == "handle_event"
        assert (found["sequence"], found["target"]) == (sequence, instance)
        assert found["phase"] == phase


def test_fields_may_come_in_any_order() -> None:
    """Recorded: 3.9 writes the command before the sequence, and the phase before the instance."""
    recorded = bytes.fromhex("a2020a1206616363657373080208031805")
    assert calls_of(frame(recorded)) == calls_of(
        call(sequence=3, cmd_handle_event={"event_name": "access", "instance_id": 2})
    )


MIXED = [
    call(sequence=1, cmd_start_instance={"name": "hello", "config": b"{}" * 80}),
    call(sequence=2, cmd_get_plugin_names={}),
    call(sequence=2**40, cmd_get_plugin_info={"name": "hello"}),
    call(sequence=4, cmd_get_instance_status={"instance_id": 70000}),
    call(sequence=5, cmd_close_instance={"instance_id": 1}),
    call(sequence=6, cmd_handle_event={"instance_id": 70000, "event_name": "access"}),
]


@given(st.lists(st.integers(1, sum(map(len, MIXED)) - 1), unique=True))
def test_calls_may_be_cut_anywhere(cuts: list[int]) -> None:
    whole = b"".join(MIXED)
    edges = [0, *sorted(cuts), len(whole)]
    assert calls_of(*(whole[a:b] for a, b in zip(edges, edges[1:]))) == calls_of(*MIXED)


def test_calls_may_come_byte_by_byte() -> None:
    whole = b"".join(MIXED)
    assert calls_of(*(whole[i : i + 1] for i in range(len(whole)))) == calls_of(whole)
    assert len(calls_of(whole)) == len(MIXED)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame(), "known command"),
        (call(sequence=1), "known command"),
        (frame(b"\xba\x02\x00"), "known command"),  # field 39
        (frame(b"\xa2\x02\x05\x08"), "longer than its message"),
        (frame(b"\xa2\x02\x01\x08"), "inside a number"),
        (frame(b"\x9a\x02\x02\x08"), "longer than its message"),
        (frame(b"\x82\x02\x02\x0a\x05"), "longer than its message"),
        (frame(b"GET / HTTP/1.1"), "not a ProtoBuf:1 message"),
        (frame(b"\xff" * 20), "64 bits"),
        (call(cmd_handle_event={"instance_id": 1}), "phase"),
        (call(cmd_handle_event={"instance_id": 1, "event_name": ""}), "phase"),
        (call(cmd_handle_event={"instance_id": 1, "event_name": "body_filter"}), "phase"),
        ((MAX_CALL_SIZE + 1).to_bytes(4, "little"), "larger than --max-message"),
        (b"\xff\xff\xff\xff", "larger than --max-message"),
    ],
)
def test_what_is_no_call_is_a_protocol_error(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        calls_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_calls_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        calls_of(data)
    with contextlib.suppress(ProtocolError):
        calls_of(frame(data))


def test_a_call_of_the_largest_size_is_taken() -> None:
    config = b"x" * (MAX_CALL_SIZE - 30)
    data = call(sequence=1, cmd_start_instance={"name": "a", "config": config})
    data = frame(data[4:] + b"\x9a\x06" + bytes([MAX_CALL_SIZE - len(data) + 4 - 3]) +
                 b"x" * (MAX_CALL_SIZE - len(data) + 4 - 3))  # fmt: skip
    assert len(data) == 4 + MAX_CALL_SIZE
    (found,) = calls_of(data[:1000], data[1000:])
    assert found["value"]["Config"] == config


# --- what goes to Kong ---------------------------------------------------------------------------


def returned(protocol: ProtobufRPC) -> dict[str, Any]:
    (data,), rest = split_frames(protocol.data_to_send())
    assert rest == b""
    result: dict[str, Any] = decode_message("RpcReturn", data)
    return result


def test_answers_have_the_forms_that_kong_reads() -> None:
    protocol = asked(sequence=2128, cmd_handle_event=EVENT)
    protocol.send_return(2128, 5)
    assert protocol.data_to_send() == frame() + frame(bytes.fromhex("08d010"))  # recorded
    ask(protocol, sequence=2, cmd_get_plugin_names={})
    protocol.send_result(2, ["one", "two"])
    assert returned(protocol) == {"sequence": 2, "plugin_names": {"names": ["one", "two"]}}
    status = {"Name": "hello", "Id": 2**31 - 1, "Config": {"a": False}, "StartTime": 1.9}
    ask(protocol, sequence=3, cmd_start_instance={"name": "hello", "config": b"{}"})
    protocol.send_result(3, status)
    assert returned(protocol) == {
        "sequence": 3,
        "instance_status": {"name": "hello", "instance_id": 2**31 - 1, "started_at": 1},
    }
    info = {
        "Name": "hello", "Phases": ["access", "log"], "Version": "1.2.3", "Priority": -5,
        "Schema": {"name": "hello", "fields": []}, "ModTime": 1.5, "LoadTime": 2.5,
    }  # fmt: skip
    ask(protocol, sequence=4, cmd_get_plugin_info={"name": "hello"})
    protocol.send_result(4, info)
    found = returned(protocol)["plugin_info"]
    assert json.loads(found.pop("schema")) == info["Schema"]
    assert found == {
        "name": "hello", "phases": ["access", "log"], "version": "1.2.3", "priority": -5,
        "updated_at": 1, "loaded_at": 2,
    }  # fmt: skip
    assert protocol.data_to_send() == b""


def test_an_error_is_a_return_without_a_result() -> None:
    protocol = asked(sequence=5, cmd_get_plugin_info={"name": "x"})
    protocol.send_error(5, "there is no plugin 'x' on this server")
    assert returned(protocol) == {"sequence": 5}
    assert not protocol.closing


def test_a_result_that_cannot_be_packed_leaves_no_half_answer() -> None:
    protocol = asked(sequence=3, cmd_get_plugin_names={})
    with pytest.raises(PackError):
        protocol.send_result(3, {"Name": "x", "Id": 2**40, "StartTime": 0})
    assert protocol.data_to_send() == b""


def test_an_argument_that_cannot_be_carried_leaves_no_half_call() -> None:
    protocol = asked(sequence=1, cmd_handle_event=EVENT)
    protocol.send_pdk_call(1, 1, "kong.response.set_header", ("x", "1"))
    before = protocol.data_to_send()
    protocol.receive_data(frame())
    assert protocol.next() is not None
    protocol.send_pdk_call(1, 1, "kong.response.set_header", ("x", "1"))
    for args in (("x", [object()]), ("x", [1, {"a": None}])):
        with pytest.raises(PackError, match=r"kong.response.set_header: .*MsgPack:1"):
            protocol.send_pdk_call(1, 1, "kong.response.set_header", args)
    with pytest.raises(PDKError, match="MsgPack:1"):
        protocol.send_pdk_call(1, 1, "kong.cache.get", ("x",))
    assert protocol.data_to_send() == before


def test_all_six_commands_are_answered() -> None:
    plugin = plugin_of(
        "hello", version="1.2.3", priority=9, schema={"name": "hello", "fields": []},
        make=lambda config: type("Made", (), {"access": lambda self, kong: None})(),
        handlers={"access": "access"},
    )  # fmt: skip
    dispatcher = make_dispatcher({"hello": plugin})
    wire = DirectProtobuf(dispatcher)
    names = wire.call("cmd_get_plugin_names")
    assert names == {"plugin_names": {"names": ["hello"]}}
    info = wire.call("cmd_get_plugin_info", name="hello")["plugin_info"]
    assert info["name"] == "hello"
    assert info["phases"] == ["access"]
    assert (info["version"], info["priority"]) == ("1.2.3", 9)
    assert json.loads(info["schema"]) == plugin.schema
    assert info["loaded_at"] == int(plugin.loaded)
    status = wire.call("cmd_start_instance", name="hello", config=b"{}")["instance_status"]
    instance = status["instance_id"]
    assert 0 < instance < 2**31
    assert wire.call("cmd_get_instance_status", instance_id=instance)["instance_status"] == status
    assert wire.event(instance) == []
    closed = wire.call("cmd_close_instance", instance_id=instance)["instance_status"]
    assert closed == status
    assert wire.call("cmd_get_plugin_info", name="nothing") == {}
    assert not wire.session.closing
    with pytest.raises(ConnectionError, match="closes"):
        wire.call("cmd_close_instance", instance_id=instance)


# --- events --------------------------------------------------------------------------------------


def test_an_event_asks_gets_its_answers_and_ends(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        seen.append(kong.request.get_header("host"))
        kong.response.set_header("x", "1")

    wire = protobuf_with(dispatcher, handler, pipelined=False)
    wire.begin(1)
    (asked,) = wire.waiting()
    assert asked is not None
    assert (asked.function, asked.args) == ("kong.request.get_header", {"v": "host"})
    wire.answer(asked, "example.test")
    assert seen == ["example.test"]
    (asked,) = wire.waiting()
    assert asked is not None
    assert (asked.function, asked.args) == ("kong.response.set_header", {"k": "x", "v": "1"})
    assert dispatcher.live_events == 1
    wire.answer(asked)
    assert wire.waiting() == [None]
    assert (dispatcher.live_events, dispatcher.handled) == (0, 1)
    assert len(wire.event(1, answers=lambda asked: None)) == 2


def test_answers_may_come_byte_by_byte(dispatcher: Dispatcher) -> None:
    seen = []
    wire = protobuf_with(dispatcher, lambda kong: seen.append(kong.request.get_path()))
    wire.begin(1)
    wire.waiting()
    answer = frame(b"\x0a\x05/path")
    for index in range(len(answer)):
        assert seen == []
        wire.send(answer[index : index + 1])
    assert seen == ["/path"]
    assert wire.waiting() == [None]


@pytest.mark.parametrize(
    ("function", "args", "answer", "value"),
    [
        ("kong.request.get_header", ("x",), b"", None),
        ("kong.request.get_header", ("x",), b"\x0a\x00", ""),
        ("kong.request.get_header", ("x",), b"\x0a\x02a\xff", "a\udcff"),
        ("kong.client.get_port", (), b"", None),
        ("kong.client.get_port", (), b"\x08\x00", 0),
        ("kong.ip.is_trusted", ("1.1.1.1",), b"\x08\x00", False),
        ("kong.ip.is_trusted", ("1.1.1.1",), b"\x08\x01", True),
        # Kong 2.8 writes neither false nor an empty text.
        ("kong.ip.is_trusted", ("1.1.1.1",), b"", False),
        ("kong.request.get_raw_query", (), b"", ""),
        ("kong.request.get_raw_query", (), b"\x0a\x03a=1", "a=1"),
        ("kong.ctx.shared.get", ("k",), b"\x08\x01", None),
        ("kong.ctx.shared.get", ("k",), b"", None),
        ("kong.ctx.shared.get", ("k",), b"\x20\x00", False),
        ("kong.ctx.shared.get", ("k",), b"\x1a\x00", ""),
        ("kong.ctx.shared.get", ("k",), b"\x32\x00", []),
        ("kong.ctx.shared.get", ("k",), b"\x2a\x00", []),  # an empty table, as over MsgPack:1
        ("kong.nginx.get_ctx", ("k",), b"\x2a\x09\x0a\x07\x0a\x01t\x12\x02\x2a\x00", {"t": []}),
        ("kong.client.get_consumer", (), b"", None),
        ("kong.client.get_consumer", (), b"\x0a\x02id", {"id": "id"}),
        ("kong.response.set_status", (200,), b"", None),
        ("kong.request.get_raw_body", (), b"", None),
        ("kong.request.get_raw_body", (), b"\x0a\x00", b""),
        ("kong.request.get_raw_body", (), b"\x0a\x01\xff", b"\xff"),
        ("kong.service.response.get_raw_body", (), b"\x0a\x01\xff", b"\xff"),
        ("kong.request.get_query", (), b"", {}),
        ("kong.request.get_uri_captures", (), b"", None),
    ],
)
def test_nil_false_and_what_is_empty_are_told_apart(
    dispatcher: Dispatcher, function: str, args: tuple[Any, ...], answer: bytes, value: Any
) -> None:
    seen = []
    wire = protobuf_with(
        dispatcher, lambda kong: seen.append(kong._call(function, *args)), pipelined=False,
        phase="response",
    )  # fmt: skip
    wire.event(1, "response", lambda asked: answer)
    assert seen == [value]
    assert type(seen[0]) is type(value)


def test_an_event_starts_after_another_on_the_same_connection(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, lambda kong: kong.request.get_method())
    for _ in range(3):
        assert len(wire.event(1, answers=lambda asked: "GET")) == 1
    assert dispatcher.handled == 3


# --- multi-value headers, flags, limits ----------------------------------------------------------


def collect(
    dispatcher: Dispatcher, handler: Any, answers: Any, phase: str = "access"
) -> tuple[Any, list[Asked]]:
    """What a handler returns when Kong answers it."""
    seen = []
    wire = protobuf_with(dispatcher, lambda kong: seen.append(handler(kong)), phase)
    trail = wire.event(1, phase, answers)
    assert len(seen) == 1
    return seen[0], trail


QUERY = {"a": ["1", "2"], "flag": True, "b": "3", "empty": "", "l": [True, "x"], "\udcff": "\udcfe"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "1"),
        ("flag", True),
        ("b", "3"),
        ("empty", ""),
        ("l", True),
        ("missing", None),
        ("\udcff", "\udcfe"),
        (b"b", "3"),
        (b"\xff", "\udcfe"),
    ],
)
def test_a_query_argument_may_be_a_flag(dispatcher: Dispatcher, name: Any, value: Any) -> None:
    found, trail = collect(
        dispatcher, lambda kong: kong.request.get_query_arg(name), lambda asked: QUERY
    )
    assert found == value
    assert [(item.function, item.args) for item in trail] == [
        ("kong.request.get_query", {"v": 100})
    ]


def test_every_value_of_a_query_is_a_list(dispatcher: Dispatcher) -> None:
    found, trail = collect(dispatcher, lambda kong: kong.request.get_query(5), lambda asked: QUERY)
    assert trail[0].args == {"v": 5}
    assert found == {
        "a": ["1", "2"], "flag": [], "b": ["3"], "empty": [""], "l": [True, "x"],
        "\udcff": ["\udcfe"],
    }  # fmt: skip


@pytest.mark.parametrize("part", ["request", "response", "service.response"])
@pytest.mark.parametrize(("limit", "sent"), [((), 100), ((None,), 100), ((1,), 1), ((1000,), 1000)])
def test_headers_without_a_limit_are_asked_for_with_kongs_own(
    dispatcher: Dispatcher, part: str, limit: tuple[Any, ...], sent: int
) -> None:
    def handler(kong: Any) -> Any:
        return kong._call(f"kong.{part}.get_headers", *limit)

    answer = {"host": "x", "x-many": ["1", "2"]}
    found, trail = collect(dispatcher, handler, lambda asked: answer, "response")
    assert trail[0].args == {"v": sent}
    assert found == {"host": ["x"], "x-many": ["1", "2"]}


@pytest.mark.parametrize("part", ["response", "service.request"])
def test_headers_of_several_values_are_carried(dispatcher: Dispatcher, part: str) -> None:
    def handler(kong: Any) -> None:
        for name, value in (("a", "1"), ("b", ["1", "2"]), ("c", 5), ("d", True), ("e", False)):
            kong._call(f"kong.{part}.set_header", name, value)
            kong._call(f"kong.{part}.add_header", name, value)
        kong._call(f"kong.{part}.set_headers", {"x": ["1", "2"], "y": 5, "z": False})

    _, trail = collect(dispatcher, handler, lambda asked: None)
    sent = [item.args for item in trail]
    assert sent[0::2][:5] == [
        {"k": "a", "v": "1"},
        {"k": "b", "v": ["1", "2"]},
        {"k": "c", "v": 5},
        {"k": "d", "v": True},
        {"k": "e", "v": "false"},  # what Kong makes of it over MsgPack:1
    ]
    assert sent[1::2] == sent[0:10:2]
    assert sent[10] == {"x": ["1", "2"], "y": 5, "z": "false"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"unnamed": [b"v1", b"\xff"], "named": {"ver": b"v1", "e": b""}},
         {"unnamed": {1: "v1", 2: "\udcff"}, "named": {"ver": "v1", "e": ""}}),
        ({"unnamed": [b"a"]}, {"unnamed": {1: "a"}, "named": {}}),
    ],
)  # fmt: skip
def test_captures_of_a_path_are_texts_and_counted_from_one(
    dispatcher: Dispatcher, answer: Any, expected: Any
) -> None:
    found, _ = collect(
        dispatcher, lambda kong: kong.request.get_uri_captures(), lambda asked: answer
    )
    assert found == expected


# --- bodies --------------------------------------------------------------------------------------


def body_of(dispatcher: Dispatcher, answer: dict[str, Any], *limit: Any) -> Any:
    def handler(kong: Any) -> Any:
        try:
            return kong.request.get_raw_body(*limit)
        except PDKError as error:
            return error

    found, trail = collect(dispatcher, handler, lambda asked: answer)
    assert trail[0].message == b""
    return found


def test_a_body_that_kong_wrote_to_a_file_is_read(dispatcher: Dispatcher, tmp_path: Path) -> None:
    file = tmp_path / "0000000001"
    file.write_bytes(b"\xff" * 100_000)
    assert body_of(dispatcher, {"body_filepath": str(file)}) == b"\xff" * 100_000
    dispatcher.remove_instance(1)
    assert body_of(dispatcher, {"body_filepath": str(file)}, 100_000) == b"\xff" * 100_000
    dispatcher.remove_instance(1)
    assert len(body_of(dispatcher, {"body_filepath": str(file)}, 0)) == 100_000


@pytest.mark.parametrize("limit", [float("inf"), 1e300, 10**30])
def test_a_limit_of_any_size_is_one(dispatcher: Dispatcher, tmp_path: Path, limit: float) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"x")
    assert body_of(dispatcher, {"body_filepath": str(file)}, limit) == b"x"


def test_a_body_larger_than_the_plugin_allows_is_an_error(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"x" * 1001)
    error = body_of(dispatcher, {"body_filepath": str(file)}, 1000)
    assert isinstance(error, PDKError)
    assert error.function == "kong.request.get_raw_body"
    assert "1001 bytes, more than the 1000" in error.reason


def test_a_body_larger_than_the_server_reads_is_an_error(
    dispatcher: Dispatcher, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    with file.open("wb") as hole:
        hole.truncate(MAX_ANSWER_SIZE + 1)
    for limit in ((), (2**40,)):
        error = body_of(dispatcher, {"body_filepath": str(file)}, *limit)
        assert isinstance(error, PDKError)
        assert f"{MAX_ANSWER_SIZE + 1} bytes" in error.reason
        dispatcher.remove_instance(1)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("kind", ["missing", "directory", "forbidden"])
def test_a_body_that_cannot_be_read_is_an_error_that_names_the_file(
    dispatcher: Dispatcher, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "body"
    if kind == "directory":
        file.mkdir()
    elif kind == "forbidden":
        file.write_bytes(b"x")
        file.chmod(0)
    with as_nobody():
        error = body_of(dispatcher, {"body_filepath": str(file)})
    assert isinstance(error, PDKError)
    assert error.function == "kong.request.get_raw_body"
    assert str(file) in error.reason
    assert "client_body_buffer_size" in error.reason


def test_an_error_in_place_of_a_body_reaches_the_plugin(dispatcher: Dispatcher) -> None:
    error = body_of(dispatcher, {"error": "no body for you"})
    assert isinstance(error, PDKError)
    assert error.reason == "no body for you"


# --- pipelining ----------------------------------------------------------------------------------


def ten_setters(kong: Any) -> None:
    for n in range(10):
        kong.response.set_header("x-n", str(n))


def test_setters_do_not_wait_for_their_answers(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, ten_setters)
    wire.begin(1)
    trail = wire.waiting()
    assert functions(trail) == ["kong.response.set_header"] * 10 + [None]
    assert [item.args["v"] for item in trail[:-1] if item] == [str(n) for n in range(10)]
    assert dispatcher.live_events == 0
    wire.send(frame() * 10)
    assert not wire.session.closing
    assert len(wire.event(1)) == 10


def test_a_getter_waits_for_all_answers_in_order(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        ten_setters(kong)
        seen.append(kong.request.get_path())
        kong.response.set_header("x-last", "1")
        seen.append(kong.request.get_method())

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    trail = wire.waiting()
    assert functions(trail) == ["kong.response.set_header"] * 10 + ["kong.request.get_path"]
    for _ in range(10):
        wire.send(frame())
        assert seen == []
    wire.send(frame(b"\x0a\x02/p"))
    assert seen == ["/p"]
    trail = wire.waiting()
    assert functions(trail) == ["kong.response.set_header", "kong.request.get_method"]
    wire.send(frame() + frame(b"\x0a\x03GET"))
    assert seen == ["/p", "GET"]
    assert wire.waiting() == [None]


@given(st.lists(st.integers(1, 60), unique=True))
def test_answers_to_a_burst_may_be_cut_anywhere(cuts: list[int]) -> None:
    seen = []

    def handler(kong: Any) -> None:
        ten_setters(kong)
        seen.append(kong.request.get_path())

    wire = protobuf_with(new_dispatcher(), handler)
    wire.begin(1)
    wire.waiting()
    answers = frame() * 10 + frame(b"\x0a\x05/path")
    edges = [0, *sorted(cut for cut in cuts if cut < len(answers)), len(answers)]
    for start, end in zip(edges, edges[1:]):
        assert seen == []
        wire.send(answers[start:end])
    assert seen == ["/path"]
    assert wire.waiting() == [None]


def test_a_plugin_may_turn_pipelining_off(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, ten_setters, pipelined=False)
    wire.begin(1)
    for _ in range(10):
        (asked,) = wire.waiting()
        assert asked is not None
        assert dispatcher.live_events == 1
        wire.answer(asked)
    assert wire.waiting() == [None]


def test_a_function_with_a_result_is_waited_for_even_if_nobody_takes_it(
    dispatcher: Dispatcher,
) -> None:
    def handler(kong: Any) -> None:
        kong.service.set_upstream("u")
        kong.response.set_header("x", "1")

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    assert functions(wire.waiting()) == ["kong.service.set_upstream"]


def test_every_function_without_a_result_is_pipelined(dispatcher: Dispatcher) -> None:
    args: dict[str, tuple[Any, ...]] = {
        "KV": ("k", "v"), "ListValue": ("text",), "String": ("/x",), "Struct": ({"a": "b"},),
        "Int": (200,), "Target": ("host", 80), "ByteString": (b"x",),
        "AuthenticateArgs": ({"id": "1"}, None),
    }  # fmt: skip
    setters = [
        name for name, (_, result) in RPCS.items()
        if result == "Empty" and name != "kong.response.exit"
    ]  # fmt: skip
    assert len(setters) > 20

    for name in setters:
        phases = registered()[name].phases
        phase = "access" if "access" in phases else phases[0]

        def handler(kong: Any, name: str = name) -> None:
            kong._call(name, *args[RPCS[name][0]])
            kong._call(name, *args[RPCS[name][0]])

        wire = protobuf_with(dispatcher, handler, phase)
        wire.begin(1, phase)
        assert functions(wire.waiting()) == [name, name, None]
        dispatcher.remove_instance(1)


@pytest.mark.parametrize("size", [100, 5000, MAX_PIPELINED, 100_000])
def test_a_burst_is_no_longer_than_its_limit(dispatcher: Dispatcher, size: int) -> None:
    def handler(kong: Any) -> None:
        for _ in range(400):
            kong.service.request.set_raw_body("x" * size)

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    asked = 0
    while True:
        trail = wire.waiting()
        asked += len(trail)
        sizes = [len(item.function) + len(item.message) + 8 for item in trail if item]
        assert sum(sizes[:-1]) <= MAX_PIPELINED
        if trail[-1] is None:
            break
        assert sum(sizes) > MAX_PIPELINED
        assert dispatcher.live_events == 1
        wire.send(frame() * len(trail))
    assert dispatcher.live_events == 0
    assert asked == 401


def test_answers_that_come_after_the_end_are_checked_off(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, ten_setters)
    for _ in range(3):
        wire.begin(1)
        assert wire.waiting()[-1] is None
        wire.send(frame() * 9)
        wire.send(frame())
    assert dispatcher.handled == 3
    assert wire.call("cmd_get_plugin_names") == {}


def test_a_wrong_answer_to_a_setter_is_noticed(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, ten_setters)
    wire.begin(1)
    wire.send(frame() * 5)
    with pytest.raises(ProtocolError, match="ProtoBuf:1 message"):
        wire.send(frame(b"\x0a"))


def test_order_is_kept_between_setters_and_getters(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        for n in range(5):
            kong.response.set_header("n", str(n))
            kong.log.notice("n", n)
            assert kong.ctx.shared.get("n") == str(n)
            kong.ctx.shared.set("n", n)

    wire = protobuf_with(dispatcher, handler)
    kept = iter("01234")
    trail = wire.event(
        1, answers=lambda asked: next(kept) if asked.function.endswith(".get") else None
    )
    assert functions(list(trail)) == [
        "kong.response.set_header", "kong.log.notice", "kong.ctx.shared.get",
        "kong.ctx.shared.set",
    ] * 5  # fmt: skip


def test_a_refused_argument_in_a_burst_leaves_the_others(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        kong.ctx.shared.set("a", 1)
        with pytest.raises(TypeError, match="false cannot be sent over ProtoBuf:1"):
            kong.ctx.shared.set("b", [1, False])
        kong.ctx.shared.set("c", 3)

    wire = protobuf_with(dispatcher, handler)
    assert [item.args for item in wire.event(1)] == [{"k": "a", "v": 1}, {"k": "c", "v": 3}]


# --- the end of an event -------------------------------------------------------------------------


def test_exit_is_sent_and_closes(dispatcher: Dispatcher) -> None:
    trail = []

    def handler(kong: Any) -> None:
        try:
            kong.response.exit(403, {"message": "nö"}, {"x-a": "b"})
        except Exception:
            trail.append("caught")
        finally:
            trail.append("finally")

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    (asked,) = wire.waiting()
    assert asked is not None
    assert asked.function == "kong.response.exit"
    assert asked.args == {
        "status": 403,
        "body": '{"message":"nö"}'.encode(),
        "headers": {"x-a": "b", "content-type": "application/json; charset=utf-8"},
    }
    assert trail == ["finally"]
    assert wire.session.closing
    assert dispatcher.live_events == 0
    wire.send(call(sequence=9, cmd_get_plugin_names={}))
    assert wire.frames == []


@pytest.mark.parametrize(
    ("args", "sent"),
    [
        ((204,), {"status": 204}),
        ((200.0, "text"), {"status": 200, "body": b"text"}),
        ((200, b"\xff"), {"status": 200, "body": b"\xff"}),
        ((200, ""), {"status": 200, "body": b""}),
        ((200, None, {"x": ["1", "2"]}), {"status": 200, "headers": {"x": ["1", "2"]}}),
        ((200, [1], {"Content-Type": "x"}),
         {"status": 200, "body": b"[1]", "headers": {"Content-Type": "x"}}),
        ((200, "x", {"a": False}), {"status": 200, "body": b"x", "headers": {"a": "false"}}),
        ((200, "x", {}), {"status": 200, "body": b"x", "headers": {}}),
    ],
)  # fmt: skip
def test_exit_carries_status_body_and_headers(
    dispatcher: Dispatcher, args: tuple[Any, ...], sent: Any
) -> None:
    wire = protobuf_with(dispatcher, lambda kong: kong.response.exit(*args))
    wire.begin(1)
    (asked,) = wire.waiting()
    assert asked is not None
    assert asked.args == sent


def test_an_exit_after_setters_lets_kong_answer_them_first(dispatcher: Dispatcher) -> None:
    """Kong writes those answers before it comes to the exit, and gives up when it cannot."""

    def handler(kong: Any) -> None:
        ten_setters(kong)
        kong.response.exit(403)

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    assert functions(wire.waiting())[-2:] == ["kong.response.set_header", "kong.response.exit"]
    assert dispatcher.live_events == 0
    for _ in range(10):
        assert not wire.session.closing
        wire.send(frame())
    assert wire.session.closing
    assert wire.frames == []


@pytest.mark.parametrize("phase", ["rewrite", "access", "response", "preread"])
def test_a_handler_that_fails_ends_the_request_with_a_500(
    dispatcher: Dispatcher, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(kong: Any) -> None:
        kong.log.notice("before")
        raise ValueError("a secret")

    wire = protobuf_with(dispatcher, handler, phase)
    wire.begin(1, phase)
    noted, told, exit = wire.waiting()
    assert noted is not None
    assert told is not None
    assert exit is not None
    assert functions([told, exit]) == ["kong.log.err", "kong.response.exit"]
    assert exit.args == {
        "status": 500,
        "body": b'{"message":"An unexpected error occurred"}',
        "headers": {"content-type": "application/json; charset=utf-8"},
    }
    assert b"secret" not in exit.message
    wire.answer(noted)
    assert not wire.session.closing
    wire.answer(told)
    assert wire.session.closing
    assert f"plugin one, {phase} handler, instance 1" in caplog.text


@pytest.mark.parametrize("phase", ["log", "certificate"])
def test_a_handler_that_fails_where_no_exit_is_allowed_returns(
    dispatcher: Dispatcher, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Were the connection closed, Kong 3.9 would start the event again without end."""

    def handler(kong: Any) -> None:
        raise ValueError("oh no")

    wire = protobuf_with(dispatcher, handler, phase)
    for _ in range(3):
        assert functions(wire.event(1, phase)) == ["kong.log.err"]
    assert not wire.session.closing
    assert "ValueError: oh no" in caplog.text


def test_a_phase_without_a_handler_and_a_failed_instance_never_close(
    dispatcher: Dispatcher,
) -> None:
    wire = protobuf_with(dispatcher, lambda kong: None)
    assert wire.event(1, "log") == []
    dispatcher.add_instance(Instance(5, plugin_of(), {}, 0.0, {}, "it did not start"))
    assert wire.event(5, "log") == []
    assert not wire.session.closing
    wire.begin(5, "access")
    assert functions(wire.waiting()) == ["kong.response.exit"]


@pytest.mark.parametrize("command", ["cmd_handle_event", "cmd_close_instance",
                                     "cmd_get_instance_status"])  # fmt: skip
def test_an_instance_that_is_not_there_closes_so_that_kong_starts_it(command: str) -> None:
    more = {"event_name": "access"} if command == "cmd_handle_event" else {}
    for id in (0, 77, -1):
        wire = DirectProtobuf(make_dispatcher({}))
        with pytest.raises(ConnectionError, match="closes"):
            wire.call(command, instance_id=id, **more)
        assert wire.session.closing
        assert wire.frames == []


# --- out of step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "answer"),
    [
        ("kong.request.get_path", (), b"\x08\x01"),
        ("kong.request.get_path", (), b"\x0a\x09x"),
        ("kong.request.get_port", (), b"\x0a\x01x"),
        ("kong.request.get_http_version", (), b"\x08\x01"),
        ("kong.request.get_headers", (), b"\x0a\x09x"),
        ("kong.request.get_raw_body", (), b"\x08\x01"),
        ("kong.request.get_uri_captures", (), b"\x08\x01"),
        ("kong.router.get_route", (), b"\x0a\x09x"),
        ("kong.ctx.shared.get", ("k",), b"\x1a\x09x"),
        ("kong.node.get_memory_stats", (), b"\x0a\x02\x0a\x05"),
        ("kong.response.set_status", (200,), b"\x0a"),
    ],
)
def test_an_answer_of_the_wrong_type_is_a_protocol_error(
    dispatcher: Dispatcher, function: str, args: tuple[Any, ...], answer: bytes
) -> None:
    trail = []

    def handler(kong: Any) -> None:
        try:
            kong._call(function, *args)
        except HandlerExit:
            trail.append("ended")
            raise
        finally:
            trail.append("finally")

    wire = protobuf_with(dispatcher, handler, pipelined=False)
    wire.begin(1)
    with pytest.raises(ProtocolError):
        wire.send(frame(answer))
    assert trail == []
    wire.session.connection_lost()
    assert trail == ["ended", "finally"]
    assert dispatcher.live_events == 0
    assert wire.session.data_to_send() == b""


def test_a_frame_before_what_it_would_answer_was_asked_is_a_protocol_error(
    dispatcher: Dispatcher,
) -> None:
    trail = []

    def handler(kong: Any) -> None:
        trail.append(kong.request.get_path())
        trail.append(kong.request.get_method())

    wire = protobuf_with(dispatcher, handler)
    wire.begin(1)
    with pytest.raises(ProtocolError, match="answer was made"):
        wire.send(frame(b"\x0a\x01/") + frame(b"\x0a\x03GET"))
    assert trail == ["/"]
    wire.session.connection_lost()
    assert trail == ["/"]
    assert dispatcher.live_events == 0


def test_a_frame_right_behind_an_event_is_a_protocol_error(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, lambda kong: kong.request.get_path())
    event = call(sequence=1, cmd_handle_event={"instance_id": 1, "event_name": "access"})
    with pytest.raises(ProtocolError, match="answer was made"):
        wire.send(event + event)
    wire.session.connection_lost()
    assert dispatcher.live_events == 0


def test_an_answer_longer_than_the_limit_is_refused_before_it_comes(
    dispatcher: Dispatcher,
) -> None:
    wire = protobuf_with(dispatcher, lambda kong: kong.request.get_raw_body())
    wire.begin(1)
    wire.send(MAX_ANSWER_SIZE.to_bytes(4, "little"))
    wire = DirectProtobuf(dispatcher)
    wire.begin(1)
    with pytest.raises(ProtocolError, match="larger"):
        wire.send((MAX_ANSWER_SIZE + 1).to_bytes(4, "little"))


def test_a_large_body_goes_both_ways(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        kong.service.request.set_raw_body(kong.request.get_raw_body() * 2)

    wire = protobuf_with(dispatcher, handler)
    body = os.urandom(1000) * 9000
    trail = wire.event(
        1,
        answers=lambda asked: (
            {"content": body} if asked.function.endswith("get_raw_body") else None
        ),
    )
    assert trail[1].args == {"v": body * 2}


def test_arguments_longer_than_a_frame_are_refused(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        with pytest.raises(TypeError, match=rf"more than {MAX_ANSWER_SIZE} bytes"):
            kong.service.request.set_raw_body(bytes(MAX_ANSWER_SIZE))

    assert protobuf_with(dispatcher, handler).event(1) == []


def test_an_abandoned_event_leaves_a_connection_that_takes_nothing_more(
    dispatcher: Dispatcher,
) -> None:
    seen = []
    wire = protobuf_with(dispatcher, lambda kong: seen.append(kong.request.get_path()))
    wire.begin(1)
    wire.waiting()
    assert dispatcher.abandon_all_events() == 1
    assert wire.session.closing
    wire.send(frame(b"\x0a\x01/") + call(sequence=7, cmd_get_plugin_names={}))
    assert seen == []
    assert wire.frames == []


def test_a_connection_lost_ends_the_event_of_its_own_alone(dispatcher: Dispatcher) -> None:
    trail = []

    def handler(kong: Any) -> None:
        try:
            trail.append(kong.request.get_path())
        finally:
            trail.append("finally")
            with pytest.raises(PDKError, match="over"):
                kong.request.get_path()

    wire = protobuf_with(dispatcher, handler)
    other = DirectProtobuf(dispatcher)
    wire.begin(1)
    other.begin(1)
    wire.session.connection_lost()
    assert trail == ["finally"]
    assert dispatcher.live_events == 1
    other.waiting()
    other.send(frame(b"\x0a\x01/"))
    assert trail[1:2] == ["/"]


def test_a_connection_lost_after_its_event_does_nothing(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wire = protobuf_with(dispatcher, ten_setters)
    wire.begin(1)
    assert wire.waiting()[-1] is None
    wire.session.connection_lost()
    assert dispatcher.live_events == 0
    assert caplog.records == []
    new_session(dispatcher).connection_lost()


# --- what ProtoBuf:1 cannot carry ----------------------------------------------------------------


WITHOUT_RPC = sorted(
    name
    for name, row in registered().items()
    if name not in RPCS and name not in ADAPTED and not row.unavailable
)
SAMPLES = {"string": "x", "number": 1, "boolean": True, "table": {}, "string[]": ["x"], "any": "x"}


@pytest.mark.parametrize("name", WITHOUT_RPC)
def test_a_function_without_an_rpc_is_refused_by_name(dispatcher: Dispatcher, name: str) -> None:
    row = registered()[name]
    caught: list[PDKError] = []

    def handler(kong: Any) -> None:
        # As many arguments as the function needs, of the types that it takes.
        for count in range(len(row.params) + 1):
            for kinds in itertools.product(SAMPLES.values(), repeat=count):
                try:
                    kong._call(name, *kinds)
                except TypeError:
                    continue
                except PDKError as error:
                    caught.append(error)
                    return

    wire = protobuf_with(dispatcher, handler, row.phases[0])
    assert wire.event(1, row.phases[0]) == []
    (error,) = caught
    assert error.function == name
    assert error.reason == "ProtoBuf:1 does not have this function; MsgPack:1 can call it"


def test_an_argument_without_a_field_is_refused(dispatcher: Dispatcher) -> None:
    caught = []

    def handler(kong: Any) -> None:
        try:
            kong.log.set_serialize_value("k", 5, {"mode": "add"})
        except TypeError as error:
            caught.append(str(error))

    assert protobuf_with(dispatcher, handler).event(1) == []
    (text,) = caught
    assert text.startswith("kong.log.set_serialize_value: ")
    assert "argument 3" in text
    assert "MsgPack:1" in text


@pytest.mark.parametrize("value", [False, [False], {"a": None}, [None]])
def test_values_that_kong_would_misread_are_refused_by_name(
    dispatcher: Dispatcher, value: Any
) -> None:
    caught = []

    def handler(kong: Any) -> None:
        for function in ("kong.ctx.shared.set", "kong.nginx.set_ctx"):
            try:
                kong._call(function, "k", value)
            except TypeError as error:
                caught.append(str(error))

    assert protobuf_with(dispatcher, handler).event(1) == []
    for function, text in zip(("kong.ctx.shared.set", "kong.nginx.set_ctx"), caught):
        assert text.startswith(f"{function}: ")
        assert "cannot be sent" in text
        assert "MsgPack:1" in text
    assert len(caught) == 2


def test_a_value_is_taken_away_with_none(dispatcher: Dispatcher) -> None:
    wire = protobuf_with(dispatcher, lambda kong: kong.ctx.shared.set("k", None))
    assert [item.args for item in wire.event(1)] == [{"k": "k"}]


def test_log_lines_may_hold_anything(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        kong.log("plain")
        kong.log.err("a", 1, 2.5, True, False, None)
        kong.log.warn()
        kong._call("kong.log.notice", None, "x", [None])

    wire = protobuf_with(dispatcher, handler)
    assert [(item.function, item.args) for item in wire.event(1)] == [
        ("kong.log.notice", ["plain"]),
        ("kong.log.err", ["a", 1, 2.5, True, "false", "None"]),
        ("kong.log.warn", [""]),
        ("kong.log.notice", ["nil", "x", ["nil"]]),
    ]
