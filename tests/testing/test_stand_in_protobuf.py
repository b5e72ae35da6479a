"""The stand-in's side of ProtoBuf:1: its codec, events that hold their connection, and failures."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import Close, NoAnswer, ProtobufServer, RpcFailure, call
from hypothesis import given, settings
from hypothesis import strategies as st

from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.errors import KongpsError
from kongps.testing import Kong, PluginConfig, Request
from kongps.testing.exchange import Exchange
from kongps.testing.protobuf import FIELDS, decode, encode
from kongps.testing.protobuf_rpc import FrameReader, frame, result
from kongps.testing.values import Failure, LuaError

HELLO = {
    "access": [
        call("kong.request.get_header", "host"),
        call("kong.response.set_header", "x-hello", "hi"),
    ]
}
ALL = {phase: [] for phase in ("certificate", "rewrite", "access", "response", "log", "preread")}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Any]:
    made: list[ProtobufServer] = []

    def make(plugins: Any, *, burst: bool = False, **options: Any) -> ProtobufServer:
        server = ProtobufServer(str(tmp_path / f"p{len(made)}.sock"), plugins, **options)
        server.burst = burst
        made.append(server)
        return server

    yield make
    for server in made:
        with contextlib.suppress(OSError):
            server.stop()


def kong_of(server: ProtobufServer, **options: Any) -> Kong:
    return Kong(server.path, protocol="protobuf", **options)


# --- the codec ----------------------------------------------------------------------------------

TEXTS = st.text(max_size=8) | st.just("\udcff\udc80")
SCALARS = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
    "string": TEXTS,
    "bytes": st.binary(max_size=8),
}
# Of the values that a plugin may send: null and false cannot be carried.
VALUES = st.recursive(
    st.just(True) | SCALARS["double"] | TEXTS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)


def messages(name: str) -> st.SearchStrategy[Any]:
    if name in ("Value", "Empty"):
        return VALUES if name == "Value" else st.none()
    if name == "Struct":
        return st.dictionaries(TEXTS, VALUES, max_size=3)
    if name == "ListValue":
        return st.lists(VALUES, max_size=3)
    optional = {}
    for field in FIELDS[name]:
        values = SCALARS[field.kind] if field.kind in SCALARS else messages(field.kind)
        if field.many == "[]":
            values = st.lists(values, min_size=1, max_size=3)
        elif field.many:
            values = st.dictionaries(TEXTS, values, min_size=1, max_size=3)
        optional[field.name] = values
    return st.fixed_dictionaries({}, optional=optional)


@pytest.mark.parametrize("name", [*FIELDS, "Value", "Struct", "ListValue", "Empty"])
def test_codec_and_the_compiled_one_agree(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(messages(name))
    def check(message: Any) -> None:
        assert decode_message(name, encode(name, message)) == message
        assert decode(name, encode_message(name, message)) == message
        without = decode(name, encode(name, message, ()))
        if name in FIELDS and name != "RawBodyResult":
            # Left out are, at every level, the fields that have their default.
            assert decode(name, encode(name, without, ())) == without
            assert not any(
                field.default is not None and without.get(field.name) == field.default
                for field in FIELDS[name]
            )

    check()


def test_codec_and_the_package_agree() -> None:
    pytest.importorskip("google.protobuf")
    from google.protobuf import struct_pb2

    values = {"a": [1, "x", True, {"deep": 2.5}], "n": 7, "e": "", "f": False, "l": [False, "é"]}
    theirs = struct_pb2.Struct()
    theirs.update(values)
    assert decode("Struct", theirs.SerializeToString()) == values
    read = struct_pb2.Struct.FromString(encode("Struct", values))
    assert read == theirs
    null = struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    assert decode("Value", null.SerializeToString()) is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("String", b"\x0a"),
        ("String", b"\x0a\x05ab"),
        ("String", b"\x08\x01"),
        ("Int", b"\x08" + b"\xff" * 10),
        ("Int", b"\x0a\x00"),
        ("Number", b"\x09\x00"),
        ("Number", b"\x0b"),
        ("Bool", b"\x00\x00"),
        ("Value", b"\x2a\x03\x0a\x05\x00"),
        ("Empty", b"\x0a"),
    ],
)
def test_what_is_no_message(name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(name, data)


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x98\x06\x05" + b"\x99\x06" + b"\0" * 8 + b"\x9a\x06\x01x" + b"\x9d\x06" + b"\0" * 4
    assert decode("String", unknown + b"\x0a\x01v" + unknown) == {"v": "v"}


def test_results_as_kong_writes_them() -> None:
    three, two = ("bool", "string", "bytes"), ()
    for function, value, expected in (
        ("kong.request.get_header", None, b""),
        ("kong.request.get_header", "", b"\x0a\x00"),
        ("kong.ip.is_trusted", False, b"\x08\x00"),
        ("kong.ctx.shared.get", None, b"\x08\x01"),
        ("kong.ctx.shared.get", False, b"\x20\x00"),
        ("kong.ctx.shared.get", "", b"\x1a\x00"),
        ("kong.ctx.shared.get", {}, b"\x2a\x00"),
        ("kong.response.set_header", None, b""),
        ("kong.service.set_upstream", Failure("none of that name"), b""),
        ("kong.request.get_query", {"a": [], "b": ["1"]}, b"\n\x07\n\x01a\x12\x02 \x01"
         b"\n\x08\n\x01b\x12\x03\x1a\x011"),
        ("kong.request.get_raw_body", b"", b"\x0a\x00"),
        ("kong.request.get_raw_body", Failure("no"), b"\x1a\x02no"),
    ):  # fmt: skip
        assert result(function, value, three).frame == expected, function
    assert result("kong.ip.is_trusted", False, two).frame == b""
    assert result("kong.request.get_raw_body", b"", two).frame == b"\x0a\x00"
    assert result("kong.request.get_forwarded_port", "443", two).frame == b"\x08\xbb\x03"
    with pytest.raises(LuaError, match="string expected for field 'v', got boolean"):
        result("kong.request.get_query_arg", True, three)
    with pytest.raises(LuaError, match="number expected for field 'v', got string"):
        result("kong.client.get_port", "none", three)
    with pytest.raises(LuaError, match="boolean expected for field 'v', got table"):
        result("kong.ip.is_trusted", ["x"], three)


def test_frames_cut_anywhere() -> None:
    data = frame(b"") + frame(b"abc") + frame(b"x" * 300)
    reader, found = FrameReader(), []
    for byte in data:
        reader.feed(bytes([byte]))
        with contextlib.suppress(StopIteration):
            found.append(next(reader))
    assert found == [b"", b"abc", b"x" * 300]
    reader.feed(struct.pack("=I", 1 << 31))
    with pytest.raises(ValueError, match="frame of"):
        next(reader)


# --- calls and events ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_hello(servers: Any, version: str) -> None:
    server = servers({"hello": HELLO})
    with kong_of(server, version=version) as kong:
        result = kong.request("GET", "/x?a=1", headers={"Host": "example.test"})
    assert result.status == 200
    assert result.headers["X-Hello"] == "hi"
    assert [(call.function, call.args, call.answer, call.step) for call in result.calls] == [
        ("kong.request.get_header", ["host"], "example.test", "String"),
        ("kong.response.set_header", ["x-hello", "hi"], None, "Empty"),
    ]
    assert server.answers == [b"\x0a\x0cexample.test", b""]
    assert server.methods(without=("GetPluginInfo", "GetPluginNames")) == [
        "StartInstance",
        "HandleEvent",
    ]
    assert {number for number, _, _ in server.seen} == {1}
    assert result.events[0].round_trips == 3
    assert json.loads(server.of("StartInstance")[0]["Config"])["__seq__"] == int(version[0]) - 1


def test_a_burst_is_answered_one_by_one(servers: Any) -> None:
    calls = [call("kong.response.set_header", f"x-{i}", str(i)) for i in range(20)]
    server = servers({"p": {"access": [*calls, call("kong.request.get_path")]}}, burst=True)
    result = kong_of(server).request("GET", "/path")
    assert [result.headers[f"x-{i}"] for i in range(20)] == [str(i) for i in range(20)]
    assert result.events[0].round_trips == 1
    deadline = time.monotonic() + 5
    while len(server.answers) < 21 and time.monotonic() < deadline:
        time.sleep(0.005)  # the last answers are read when the request is over
    assert server.answers == [b""] * 20 + [b"\x0a\x05/path"]


def test_phases_in_order(servers: Any) -> None:
    kong = kong_of(servers({"all": ALL}))
    phases = ["certificate", "rewrite", "access", "response", "log"]
    assert kong.request(scheme="https").phases == phases
    assert kong.stream().phases == ["preread", "log"]


def test_events_at_the_same_time_hold_a_connection_each(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server)
    results = kong.requests(Request("GET", f"/{i}") for i in range(6))
    assert [result.headers["x-hello"] for result in results] == ["hi"] * 6
    assert len(server.of("StartInstance")) == 1
    assert len({number for number, name, _ in server.seen if name == "plugin.HandleEvent"}) == 6
    assert kong.workers[0].pool.idle == 6


def test_a_changed_config(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server, plugins=[PluginConfig("hello", {"message": "a"})])
    kong.request()
    kong.configure("hello", {"message": "b"})
    server.seen.clear()
    kong.request()
    assert server.methods() == ["StartInstance", "CloseInstance", "HandleEvent"]
    assert server.of("CloseInstance") == [0]
    assert server.of("HandleEvent")[0]["InstanceId"] == 1


def test_calls_of_our_own(servers: Any) -> None:
    server = servers({"hello": HELLO}, priorities={"hello": -3}, schemas={"hello": {"name": "x"}})
    kong = kong_of(server)
    assert kong.call("plugin.GetPluginNames") == ["hello"]
    info = kong.call("plugin.GetPluginInfo", "hello")
    assert info == {
        "Name": "hello",
        "Phases": ["access"],
        "Version": "1",
        "Priority": -3,
        "Schema": {"name": "x"},
    }
    with pytest.raises(KongpsError, match=r"ProtoBuf:1 has no plugin\.GetStatus"):
        kong.call("plugin.GetStatus", 0)
    with pytest.raises(KongpsError, match="closed"):
        kong_of(server, plugins=["other"])


def test_who_speaks_it(servers: Any) -> None:
    server = servers({})
    with pytest.raises(ValueError, match="MsgPack:1 only"):
        kong_of(server, version="2.3")
    with pytest.raises(ValueError, match="not 'msgpack' or 'protobuf'"):
        Kong(server.path, protocol="json")


def test_a_body_in_a_file(servers: Any, tmp_path: Path) -> None:
    server = servers({"p": {"access": [call("kong.request.get_raw_body")] * 2}})
    body = b"\x00\xff" * 5000
    there: list[bytes] = []

    def look(data: Any) -> None:
        path = decode("RawBodyResult", server.answers[-1])["body_filepath"]
        there.append(Path(path).read_bytes())

    server.behaviours["Step"] = look
    result = kong_of(server).request("POST", "/", body=body)
    assert result.status == 200
    assert result.calls[0].answer == body
    assert there == [body, body]
    first, second = (decode("RawBodyResult", answer) for answer in server.answers)
    assert first == second
    assert not Path(first["body_filepath"]).exists()
    del server.behaviours["Step"]
    kong_of(server).request("POST", "/", body=b"x" * 8192)
    assert decode("RawBodyResult", server.answers[-1]) == {"content": b"x" * 8192}


# --- what ends badly ----------------------------------------------------------------------------

EXIT = call("kong.response.exit", 403, b"no", {"x-exit": "yes"})
UNKNOWN = {"Method": "kong.nosuch.method", "Raw": b""}
NOT_BY_PROTOBUF = {"Method": "kong.request.get_raw_path", "Raw": b""}
UNDECODABLE = {"Method": "kong.request.get_header", "Raw": b"\x0a\xff"}
REFUSED = call("kong.response.set_status", 99)


def wait_for_close(server: ProtobufServer, number: int) -> None:
    """Returns when the server's connection has been closed by the stand-in."""
    deadline = time.monotonic() + 5
    while server._connections[number - 1].fileno() >= 0:
        assert time.monotonic() < deadline, "the connection was left open"
        time.sleep(0.002)


@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_exit(servers: Any, version: str) -> None:
    server = servers({"p": {"access": [EXIT], "log": []}})
    kong = kong_of(server, version=version)
    result = kong.request()
    assert (result.status, result.body, result.source) == (403, b"no", "exit")
    assert result.headers["x-exit"] == "yes"
    assert [(e.phase, e.outcome) for e in result.events] == [("access", "exit"), ("log", "done")]
    assert server.answers == []
    # The log event comes on another connection.
    numbers = [number for number, name, _ in server.seen if name == "plugin.HandleEvent"]
    assert numbers == [1, 2]
    wait_for_close(server, 1)
    assert kong.workers[0].pool.idle == 1


@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_exit_leaves_the_connection_open_on_2_8_until_the_request_is_over(
    servers: Any, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers({"p": {"access": [EXIT]}})
    held: list[int] = []
    release = Exchange.release

    def look(exchange: Exchange) -> None:
        held.append(len(exchange.held))
        release(exchange)

    monkeypatch.setattr(Exchange, "release", look)
    kong_of(server, version=version).request()
    assert max(held) == (1 if version == "2.8" else 0)
    wait_for_close(server, 1)


@pytest.mark.parametrize("bad", [REFUSED, UNDECODABLE])
@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_a_call_that_fails(servers: Any, version: str, bad: dict[str, Any]) -> None:
    server = servers({"p": {"access": [bad, call("kong.request.get_path")], "log": []}})
    result = kong_of(server, version=version).request()
    assert result.status == 500
    assert result.json()["message"] == "An unexpected error occurred"
    assert len(result.calls) == 1
    assert result.calls[0].refused
    assert [(e.phase, e.outcome) for e in result.events] == [("access", "refused"), ("log", "done")]
    assert server.answers == []
    wait_for_close(server, 1)


@pytest.mark.parametrize("bad", [UNKNOWN, NOT_BY_PROTOBUF])
@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_a_function_that_there_is_not(servers: Any, version: str, bad: dict[str, Any]) -> None:
    server = servers({"p": {"access": [bad], "log": []}})
    result = kong_of(server, version=version).request()
    text = f'method "{bad["Method"]}" not found'
    assert result.calls[0].error == text
    if version == "2.8":
        assert result.status == 200
        assert result.log[0].message == text
        assert result.events[0].outcome == "error"
    else:
        assert result.status == 500
        assert result.log[0].message == f"pluginserver error: {text}"
        assert result.events[0].outcome == "refused"
    assert server.answers == []
    wait_for_close(server, 1)


def test_a_setter_that_fails_in_the_middle_of_a_burst(servers: Any) -> None:
    good = call("kong.response.set_header", "x-good", "1")
    server = servers({"p": {"access": [good, REFUSED, good]}}, burst=True)
    result = kong_of(server).request()
    assert result.status == 500
    assert [call.function for call in result.calls] == [good["Method"], REFUSED["Method"]]
    wait_for_close(server, 1)


def close(argument: Any) -> None:
    raise Close


def test_a_closed_connection_starts_everything_again_on_3_9(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server)
    kong.request()
    times = [close, close]

    def twice(argument: Any) -> None:
        if times:
            times.pop()(argument)

    server.behaviours["HandleEvent"] = twice
    server.seen.clear()
    result = kong.request()
    assert result.headers["x-hello"] == "hi"
    assert server.methods() == ["HandleEvent", "StartInstance"] * 2 + ["HandleEvent"]
    server.behaviours["HandleEvent"] = close
    server.seen.clear()
    assert kong.request().hung
    assert server.methods().count("StartInstance") >= 99
    del server.behaviours["HandleEvent"]
    server.behaviours["Step"] = close
    assert kong.request().hung


def test_a_closed_connection_lets_the_request_pass_for_good_on_2_8(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server, version="2.8")
    kong.request()
    server.stop()
    server.start()  # it has forgotten its instances, and closes
    for _ in range(2):
        result = kong.request()
        assert result.status == 200
        assert "x-hello" not in result.headers
        assert result.events[0].outcome == "error"
        assert result.log[-1].message == "closed"
    assert len(server.of("StartInstance")) == 1


def test_the_server_is_not_there(servers: Any) -> None:
    for version, status in (("2.8", 200), ("3.9", 500)):
        server = servers({"hello": {**HELLO, "log": []}})
        kong = kong_of(server, version=version)
        kong.request()
        server.stop()
        result = kong.request()
        assert result.status == status
        assert result.events[0].outcome == "error"
        server.start()
        found = kong.request()
        # 2.8 goes on with the instance that it knows; 3.9 as well, and starts it anew.
        assert ("x-hello" in found.headers) == (version == "3.9")


def test_no_answer(servers: Any) -> None:
    def silent(argument: Any) -> None:
        if not isinstance(argument, dict) or argument.get("EventName") != "log":
            raise NoAnswer

    for version, status in (("2.8", 200), ("3.9", 500)):
        server = servers({"hello": {**HELLO, "log": []}})
        kong = kong_of(server, version=version, timeout=0.05)
        kong.request()
        server.behaviours["HandleEvent"] = silent
        result = kong.request()
        assert result.status == status
        assert [e.outcome for e in result.events] == ["timeout", "done"]
        wait_for_close(server, 1)


def test_start_instance_fails(servers: Any) -> None:
    for version, status in (("2.8", 200), ("3.9", 500)):
        server = servers({"hello": HELLO})
        server.behaviours["StartInstance"] = close
        kong = kong_of(server, version=version)
        assert [kong.request().status for _ in range(2)] == [status, status]
        assert server.methods(without=("GetPluginInfo", "GetPluginNames")) == ["StartInstance"] * 2
        del server.behaviours["StartInstance"]
        assert kong.request().headers["x-hello"] == "hi"


def test_an_answer_to_another_call(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server)
    kong.request()
    kong.workers[0].rpc._sequence = 100
    server_side = ProtobufServer._handle

    def wrong(
        self: Any, connection: Any, read: Any, number: int, sequence: int, *rest: Any
    ) -> None:
        server_side(self, connection, read, number, sequence + 1, *rest)

    ProtobufServer._handle = wrong  # type: ignore[method-assign]
    try:
        result = kong.request()
    finally:
        ProtobufServer._handle = server_side  # type: ignore[method-assign]
    # The connection has gone back to the pool all the same, as in the recording.
    assert result.status == 500
    assert "expected 101, got 102" in result.log[0].message
    assert kong.request().status == 200
    assert {number for number, _, _ in server.seen} == {1}


def test_bytes_that_are_no_frames(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server)
    kong.request()

    def garbage(argument: Any) -> None:
        server._connections[-1].sendall(b"\xff" * 64)
        raise NoAnswer

    server.behaviours["HandleEvent"] = garbage
    result = kong.request()
    assert result.status == 500
    assert "no ProtoBuf:1 message" in result.log[0].message


def test_an_rpc_failure_is_a_closed_connection(servers: Any) -> None:
    server = servers({"hello": HELLO})

    def fail(argument: Any) -> None:
        raise RpcFailure("boom")

    server.behaviours["HandleEvent"] = fail
    assert kong_of(server, version="2.8").request().log[-1].message == "closed"


def test_an_idle_connection_that_the_server_closed_is_not_used(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = kong_of(server, version="2.8", connections=3)
    kong.request()
    assert kong.workers[0].pool.idle == 3
    server.stop()
    server.start()
    server._instances[0] = "hello"
    assert kong.request().headers["x-hello"] == "hi"
    assert kong.workers[0].pool.idle == 1
