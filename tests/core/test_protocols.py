"""Both protocols on one socket: which of them a connection speaks, and what disturbs it."""

from __future__ import annotations

import contextlib
import socket
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import msgpack
import pytest
from client import (
    Asked,
    Direct,
    DirectProtobuf,
    ProtobufSocket,
    Socket,
    frame,
    result_message,
    split_frames,
)
from core_defaults import MAX_MESSAGE, new_dispatcher, new_session
from hypothesis import given
from hypothesis import strategies as st
from made_plugins import plugin_of
from server_process import Process, serving

from kongps.core.connection import Unfinished, serve
from kongps.core.dispatch.instance import Instance
from kongps.core.io.loop import Loop
from kongps.core.session import Session
from kongps.core.wire.msgpack_rpc import MsgPackRPC
from kongps.core.wire.protobuf import encode_message
from kongps.errors import ProtocolError

# The largest frame with a call of Kong: what the proof rests on.
MAX_CALL_SIZE = 8 * 1024 * 1024


def session() -> Session:
    return new_session(new_dispatcher())


def spoken(opening: bytes) -> str | None:
    """The protocol that a connection which begins so is taken to speak; None for neither."""
    found = session()
    try:
        found.receive_data(opening)
    except ProtocolError:
        # Recognised, and then refused as this protocol; or not recognised at all.
        return found.protocol.name if found.protocol is not None else None
    assert found.protocol is not None
    return found.protocol.name


# --- one opening, one protocol -------------------------------------------------------------------


def numbers() -> list[bytes]:
    """A request's number in every form that MessagePack has, with values at the forms' edges."""
    found = [bytes([n]) for n in range(0x80)]
    for head, size in ((b"\xcc", 1), (b"\xcd", 2), (b"\xce", 4), (b"\xcf", 8)):
        for value in {0, 1, 0x7F, 0xA0, 0x80 << 8 * (size - 1), 256**size - 1} - {2**63, 2**64 - 1}:
            found.append(head + (value % 256**size).to_bytes(size, "big"))
    for head, size in ((b"\xd0", 1), (b"\xd1", 2), (b"\xd2", 4), (b"\xd3", 8)):
        for value in {0, 1, 0x7F, 256**size // 2 - 1}:
            found.append(head + value.to_bytes(size, "big"))
    found += [msgpack.packb(5.0), msgpack.packb(5.0, use_single_float=True)]
    return found


def methods() -> list[bytes]:
    """The method of a request in every form of a text."""
    found = []
    for text in (b"", b"x", b"plugin.HandleEvent", b"plugin.StepMemoryStats", b"x" * 64):
        if len(text) < 32:
            found.append(bytes([0xA0 | len(text)]) + text)
        found.append(b"\xd9" + bytes([len(text)]) + text)
        found.append(b"\xda" + len(text).to_bytes(2, "big") + text)
        found.append(b"\xdb" + len(text).to_bytes(4, "big") + text)
    return found


def test_every_form_of_a_request_is_taken_for_msgpack() -> None:
    seen = 0
    for number in numbers():
        for method in methods():
            request = b"\x94\x00" + number + method + b"\x90"
            protocol = MsgPackRPC(MAX_MESSAGE)
            protocol.receive_data(request)
            assert protocol.next() is not None, "a valid request of MsgPack:1"
            assert spoken(request) == "MsgPack:1"
            seen += 1
    assert seen > 2500


def test_every_length_of_a_call_is_taken_for_protobuf() -> None:
    """The four bytes of a length stand alone: a call of any length begins with one of these."""
    edges = {0, 1, 2, 0x94, 0x9400, MAX_CALL_SIZE - 1, MAX_CALL_SIZE}
    edges |= {(1 << bit) - minus for bit in range(24) for minus in (0, 1)}
    # All lengths whose lowest bytes are those of a request: 94 00.
    edges |= {0x94 | high << 16 for high in range(0x80)}
    for length in edges:
        assert spoken(length.to_bytes(4, sys.byteorder)) == "ProtoBuf:1", length


@pytest.mark.skipif(sys.byteorder != "little", reason="elsewhere 94 is the highest byte")
def test_no_four_bytes_open_both_protocols() -> None:
    """Of all openings that begin as a request does, those are lengths that are no request."""
    either = {"MsgPack:1": 0, "ProtoBuf:1": 0}
    for third in range(256):
        for fourth in range(256):
            opening = bytes([0x94, 0x00, third, fourth])
            protocol = spoken(opening)
            assert protocol is not None
            either[protocol] += 1
            is_length = int.from_bytes(opening, "little") <= MAX_CALL_SIZE
            assert (protocol == "ProtoBuf:1") == is_length
            if is_length:
                # As MessagePack it would be a request whose method is a number: never valid.
                assert fourth == 0
                assert third < 0x80
                refused = MsgPackRPC(MAX_MESSAGE)
                refused.receive_data(opening + b"\x90")
                with pytest.raises(ProtocolError, match="method"):
                    refused.next()
    assert either == {"MsgPack:1": 65536 - 0x80, "ProtoBuf:1": 0x80}


@given(st.binary(min_size=4, max_size=4))
def test_any_opening_is_one_protocol_or_none(opening: bytes) -> None:
    length = int.from_bytes(opening, sys.byteorder)
    protocol = spoken(opening)
    if length <= MAX_CALL_SIZE:
        assert protocol == "ProtoBuf:1"
    elif opening[:2] == b"\x94\x00":
        assert protocol == "MsgPack:1"
    else:
        assert protocol is None


@given(
    st.integers(0, 2**64 - 1),
    st.text(max_size=20),
    st.one_of(st.none(), st.integers(0, 2**32), st.dictionaries(st.text(), st.text(), max_size=3)),
)
def test_any_request_is_taken_for_msgpack(number: int, method: str, argument: Any) -> None:
    assert spoken(msgpack.packb([0, number, method, [argument]])) == "MsgPack:1"


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["cmd_get_plugin_info", "cmd_start_instance", "cmd_close_instance"]),
    st.binary(max_size=2000),
)
def test_any_call_is_taken_for_protobuf(sequence: int, command: str, config: bytes) -> None:
    fields: dict[str, Any] = {"name": "x", "config": config, "instance_id": 5}
    call = encode_message("RpcCall", {"sequence": sequence, command: fields})
    assert spoken(frame(call)) == "ProtoBuf:1"


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1", b"\x16\x03\x01\x02\x00", b"\xc1\xc1\xc1\xc1", b"\x93\x02\xa9ser"]
)
def test_what_is_neither_is_refused_and_quoted(opening: bytes) -> None:
    with pytest.raises(ProtocolError, match=opening[:4].hex()):
        session().receive_data(opening)


def test_nothing_is_decided_before_four_bytes() -> None:
    found = session()
    for byte in (b"\x94", b"\x00", b"\x01"):
        found.receive_data(byte)
        assert found.protocol is None
        assert found.data_to_send() == b""
        assert not found.closing
    found.receive_data(b"\xa0")
    assert found.protocol is not None
    session().connection_lost()


@pytest.mark.parametrize("kind", [Direct, DirectProtobuf])
def test_either_protocol_may_come_byte_by_byte(kind: Any) -> None:
    dispatcher = new_dispatcher()
    seen = []
    dispatcher.add_instance(
        Instance(
            1, plugin_of(), {}, 0.0, {"access": lambda kong: seen.append(kong.request.get_path())}
        )
    )
    wire = kind(dispatcher)
    whole = wire.session.receive_data

    class Slow:
        closing = False
        data_to_send = wire.session.data_to_send

        @staticmethod
        def receive_data(data: bytes) -> None:
            for index in range(len(data)):
                whole(data[index : index + 1])

    wire.connection.session = Slow()
    if kind is Direct:
        assert wire.step(wire.event(1), "/slow")["Data"] == "ret"
    else:
        assert len(wire.event(1, answers=lambda asked: "/slow")) == 1
    assert seen == ["/slow"]


# --- both on one running server ------------------------------------------------------------------


def msgpack_events(path: Path, instance: int, count: int) -> int:
    wire = Socket(path, timeout=60)
    for n in range(count):
        answer = wire.event(instance)
        assert answer["Data"] == {"Method": "kong.request.get_header", "Args": ["host"]}
        answer = wire.step(answer, f"host-{n}")
        assert answer["Data"]["Args"] == ["x-hello-from-python", f"Python says hi to host-{n}"]
        assert wire.step(wire.step(answer))["Data"] == "ret"
    wire.close()
    return count


def protobuf_events(path: Path, instance: int, count: int) -> int:
    wire = ProtobufSocket(path, timeout=60)
    for n in range(count):

        def answers(asked: Asked, n: int = n) -> Any:
            return f"host-{n}" if asked.function == "kong.request.get_header" else None

        trail = wire.event(instance, "access", answers)
        assert trail[0].args == {"v": "host"}
        assert trail[1].args == {"k": "x-hello-from-python", "v": f"Python says hi to host-{n}"}
        assert trail[2].args["k"] == "x-python-pid"
    wire.close()
    return count


def test_sixteen_connections_of_each_at_once(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        # Either protocol may use what the other has started.
        one = server.connect().start("hello", '{"message": "hi"}')
        two = server.connect_protobuf().start("hello", '{"message": "hi"}')
        with ThreadPoolExecutor(32) as pool:
            running = [
                pool.submit(run, server.socket_path, instance, 100)
                for instance in (one, two)
                for _ in range(8)
                for run in (msgpack_events, protobuf_events)
            ]
            assert sum(job.result() for job in running) == 3200
        status = server.connect().call("GetStatus", 0)
        assert (status["Events"], status["EventsHandled"]) == (0, 3200)
        assert "ERROR" not in server.text().upper()
        assert "closing" not in server.text()


# --- a Kong that goes away -----------------------------------------------------------------------


WAITING = """
    class Plugin:
        def access(self, kong):
            try:
                kong.response.set_header("x-before", "1")
                print("path", kong.request.get_path(), flush=True)
            finally:
                print("finally", flush=True)
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


def live_events(server: Process) -> int:
    wire = server.connect()
    events: int = wire.call("GetStatus", 0)["Events"]
    wire.close()
    return events


@pytest.mark.parametrize("how", ["close", "reset", "half an answer", "answers of setters alone"])
def test_a_kong_that_goes_away_ends_its_own_event(
    plugins: Path, short_path: Path, how: str
) -> None:
    write(plugins, "waiting", WAITING)
    with serving(plugins, short_path / "k.sock") as server:
        other = server.connect_protobuf()
        instance = other.start("waiting")
        other.begin(instance)
        wire = server.connect_protobuf()
        wire.begin(instance)
        wire.read_asked()
        if how != "reset":  # there the rest of what the server sent is left unread
            wire.read_asked()
        if how == "half an answer":
            wire.send(frame() + frame(b"\x0a\x01/")[:5])
        elif how == "answers of setters alone":
            wire.send(frame())
        wire.close()
        server.wait_for(lambda: server.text().count("finally") == 1)
        assert live_events(server) == 1
        setter = other.read_asked()
        getter = other.read_asked()
        assert setter is not None
        assert getter is not None
        other.answer(setter)
        other.answer(getter, "/still-here")
        assert other.read_asked() is None
        server.wait_for(lambda: "path /still-here" in server.text())
        assert live_events(server) == 0
        assert "Traceback" not in server.text()
        assert "WARNING" not in server.text().upper()


def test_a_kong_that_half_closes_ends_its_event(plugins: Path, short_path: Path) -> None:
    write(plugins, "waiting", WAITING)
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect_protobuf()
        wire.begin(wire.start("waiting"))
        wire.read_asked()
        wire.socket.shutdown(socket.SHUT_WR)
        server.wait_for(lambda: "finally" in server.text())
        assert live_events(server) == 0


# --- bad input -----------------------------------------------------------------------------------


def long_frame(wire: ProtobufSocket) -> None:
    wire.send((MAX_CALL_SIZE + 1).to_bytes(4, sys.byteorder))


def long_answer(wire: ProtobufSocket) -> None:
    wire.send((64 * 1024 * 1024 + 1).to_bytes(4, sys.byteorder))


# What is sent, whether in the middle of an event, and what the log says.
BAD: dict[str, tuple[Callable[[ProtobufSocket], None], bool, str]] = {
    "a frame longer than the limit": (long_frame, False, "larger than --max-message"),
    "an answer longer than the limit": (long_answer, True, "larger than --max-message"),
    "a malformed call": (lambda wire: wire.send(frame(b"\xff" * 11)), False, "not a ProtoBuf:1"),
    "a call cut short": (lambda wire: wire.send(frame(b"\x8a\x02\x70\x0a")), False, "longer than"),
    "an empty call": (lambda wire: wire.send(frame()), False, "known command"),
    "an unknown command": (lambda wire: wire.send(frame(b"\xca\x02\x00")), False, "known command"),
    "a malformed answer": (lambda wire: wire.send(frame(b"\x0a\xff")), True, "not a ProtoBuf:1"),
    "an answer of another type": (
        lambda wire: wire.send(frame(b"\x08\x05")), True, "the field v has wire type 0",
    ),
    "a call in place of an answer": (
        lambda wire: wire.ask("cmd_get_plugin_info", name="hello"), True, "not a ProtoBuf:1",
    ),
    "two answers to one call": (
        lambda wire: wire.send(frame(b"\x0a\x01/") + frame(b"\x0a\x01/")), True, "was made",
    ),
    "another protocol": (
        lambda wire: wire.send(msgpack.packb([0, 1, "plugin.GetStatus", [0]])), False, "larger",
    ),
}  # fmt: skip

ASKING = """
    class Plugin:
        def access(self, kong):
            try:
                kong.request.get_path()
                kong.request.get_host()
            finally:
                print("finally", flush=True)
"""


@pytest.fixture(scope="module")
def asking_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="kps"))
    write(directory, "asking", ASKING)
    try:
        with serving(directory, directory / "k.sock") as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_closes_its_connection_with_one_line(asking_server: Process, name: str) -> None:
    send, within_event, words = BAD[name]
    server = asking_server
    other = server.connect_protobuf()
    instance = other.start("asking")
    other.begin(instance)
    wire = server.connect_protobuf()
    assert wire.call("cmd_get_plugin_info", name="asking")
    if within_event:
        wire.begin(instance)
        assert wire.read_asked() is not None
    before = server.text()
    send(wire)
    with contextlib.suppress(ConnectionError):
        for _ in range(10):
            wire.receive()
        pytest.fail("the connection was not closed")
    ended = before.count("finally") + within_event
    server.wait_for(lambda: server.text().count("finally") == ended)
    lines = server.text()[len(before) :].splitlines()
    (line,) = [line for line in lines if line != "finally"]
    assert "closing a connection: " in line
    assert words in line
    # Nobody else is touched.
    for _ in range(2):
        asked = other.read_asked()
        assert asked is not None
        other.answer(asked, "x")
    assert other.read_asked() is None
    assert live_events(server) == 0
    wire.close()
    other.close()


def test_garbage_of_every_size_closes_its_connection_alone(asking_server: Process) -> None:
    for size in (5, 1000, 300_000):
        wire = asking_server.connect_protobuf()
        with contextlib.suppress(OSError):
            wire.send(b"\x05\x00\x00\x00" + b"\xff" * size)
        with pytest.raises(ConnectionError):
            wire.receive()
    assert live_events(asking_server) == 0


def test_a_connection_that_says_nothing_may_close(asking_server: Process) -> None:
    before = asking_server.text()
    for data in (b"", b"\x05", b"\x94\x00\x01", b"\x05\x00\x00\x00", b"\x05\x00\x00\x00\x08"):
        wire = asking_server.connect_protobuf()
        wire.send(data)
        wire.close()
    assert live_events(asking_server) == 0
    assert asking_server.text() == before


# --- the end of an event, over a socket ----------------------------------------------------------


@pytest.mark.parametrize("setters", [0, 3])
def test_an_exit_reaches_a_kong_that_answers_what_came_before(
    plugins: Path, short_path: Path, setters: int
) -> None:
    """Kong stops at the first answer that it cannot write: the exit would be lost."""
    write(plugins, "leaving", f"""
        class Plugin:
            def access(self, kong):
                for n in range({setters}):
                    kong.response.set_header("n", str(n))
                kong.response.exit(403, "no")
        """)  # fmt: skip
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect_protobuf()
        wire.begin(wire.start("leaving"))
        for _ in range(setters):
            asked = wire.read_asked()
            assert asked is not None
            wire.answer(asked)
        asked = wire.read_asked()
        assert asked is not None
        assert asked.args == {"status": 403, "body": b"no"}
        with pytest.raises(ConnectionError):
            wire.receive()
        assert "WARNING" not in server.text().upper()


# --- round trips ---------------------------------------------------------------------------------


def rounds_of(
    path: Path,
    handler: Callable[[Any], Any],
    answers: Callable[[Asked], Any] = lambda asked: None,
    *,
    pipelined: bool = True,
) -> list[list[str | None]]:
    """Runs one event over a socket that keeps the boundaries of what is written to it.

    Nothing is answered before all that the server wrote at once has been read, so that each item
    is one write of the server, and one wait for Kong's answers.

    :return: what the server asked for in each of its writes; None for the event's end.
    """
    plugin = plugin_of(pipelined=pipelined)
    dispatcher = new_dispatcher()
    dispatcher.add_instance(Instance(1, plugin, {}, 0.0, {"access": handler}))
    loop = Loop(16)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen()
    serve(loop, listening, dispatcher, Unfinished(2 * MAX_MESSAGE), MAX_MESSAGE)
    thread = threading.Thread(target=loop.run)
    thread.start()
    wire = ProtobufSocket(path, kind=socket.SOCK_SEQPACKET)
    writes: list[list[str | None]] = []
    try:
        wire.begin(1)
        while not writes or writes[-1][-1] is not None:
            frames, rest = split_frames(wire.socket.recv(1 << 20))
            assert rest == b""
            asked = []
            while frames:
                name, message, *frames = frames
                asked.append(Asked(name.decode(), message) if name else None)
            writes.append([item and item.function for item in asked])
            results = [result_message(item.function, answers(item)) for item in asked if item]
            if results:
                wire.send(b"".join(map(frame, results)))
        wire.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.socket.recv(1)
    finally:
        wire.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    assert (dispatcher.handled, dispatcher.live_events) == (1, 0)
    return writes


def ten_setters_and_a_getter(where: int) -> Callable[[Any], None]:
    def handler(kong: Any) -> None:
        for n in range(11):
            if n == where:
                assert kong.request.get_path() == "/"
            else:
                kong.response.set_header(f"x-{n}", "v")

    return handler


SET = "kong.response.set_header"
GET = "kong.request.get_path"


def path_only(asked: Asked) -> str | None:
    return "/" if asked.function == GET else None


@pytest.mark.parametrize("where", range(11))
def test_ten_setters_and_one_getter_take_two_round_trips_at_most(
    short_path: Path, where: int
) -> None:
    writes = rounds_of(short_path / "k.sock", ten_setters_and_a_getter(where), path_only)
    assert writes == [[*[SET] * where, GET], [*[SET] * (10 - where), None]]


def test_ten_setters_take_one_round_trip(short_path: Path) -> None:
    def handler(kong: Any) -> None:
        for n in range(10):
            kong.response.set_header(f"x-{n}", "v")

    assert rounds_of(short_path / "k.sock", handler) == [[*[SET] * 10, None]]


def test_without_pipelining_each_call_is_a_round_trip(short_path: Path) -> None:
    handler = ten_setters_and_a_getter(10)
    writes = rounds_of(short_path / "k.sock", handler, path_only, pipelined=False)
    assert writes == [*[[SET]] * 10, [GET], [None]]
