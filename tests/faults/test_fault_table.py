"""What goes wrong, and what is promised then: the table in docs/reliability.md, row by row.

A row names the tests that show it: those here, over both protocols, and others elsewhere. The
first tests of this file hold the table against them, so that neither can drift.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import logging
import re
import signal
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import msgpack
import pytest
from client import Asked, Direct, DirectProtobuf, ProtobufSocket, RPCError, Socket, frame
from core_defaults import new_dispatcher
from made_plugins import plugin_of
from paths import TESTS
from server_process import serving

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.errors import PDKError, ProtocolError
from kongps.plugins.loader import from_object
from kongps.server.core import make_dispatcher

PAGE = TESTS.parent / "docs" / "reliability.md"

HERE = Path(__file__).name
CAN_END = ("rewrite", "access", "response", "preread")
CANNOT_END = ("certificate", "log")


# --- the table itself ----------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The cells of the rows of the table of faults."""
    text = PAGE.read_text()
    table = text[text.index("| fault | promise |") :].split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]
    ]


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def named(row: list[str]) -> list[tuple[str, str]]:
    """The tests that a row names, as file and function; without a file it is this one."""
    found = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", row[-1])
    return [(file or HERE, function) for file, function in found]


def test_every_row_has_tests_and_every_test_exists() -> None:
    known: dict[str, set[str]] = {}
    for row in rows():
        assert len(row) == 3, row
        tests = named(row)
        assert tests, f"no test for: {row[0]}"
        for file, function in tests:
            if file not in known:
                (path,) = TESTS.rglob(file)
                known[file] = functions_of(path)
            assert function in known[file], f"{file} has no {function}: {row[0]}"


def test_the_table_has_forty_rows_and_none_twice() -> None:
    faults = [row[0] for row in rows()]
    assert len(faults) >= 40
    assert len(faults) == len(set(faults))


def test_every_test_of_this_file_is_in_the_table() -> None:
    tests = {function for row in rows() for file, function in named(row) if file == HERE}
    about_the_table = {
        "test_every_row_has_tests_and_every_test_exists",
        "test_the_table_has_forty_rows_and_none_twice",
        "test_every_test_of_this_file_is_in_the_table",
    }
    assert functions_of(Path(__file__)) - about_the_table == tests


# --- a Kong of each protocol ---------------------------------------------------------------------


class Gateway:
    """Kong's side of some connections to a dispatcher, in either protocol.

    :ivar asked: the PDK functions of the last event and their arguments, without those that log.
    """

    protocol = ""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.asked: list[tuple[str, Any]] = []
        self.wire: Any = None
        self.connect()

    def connect(self) -> None:
        """Opens a connection; it is used from now on."""
        raise NotImplementedError

    def add(
        self, handler: Callable[[Any], Any] | None, *phases: str, id: int = 1, failure: str = ""
    ) -> int:
        handlers = dict.fromkeys(phases or ("access",), handler) if handler else {}
        self.dispatcher.add_instance(Instance(id, plugin_of(), {}, 0.0, handlers, failure or None))
        return id

    def event(
        self, phase: str = "access", *, id: int = 1, answer: Callable[[str], Any] = lambda _: None
    ) -> str:
        """Runs an event to its end.

        :return: ``returned``, the status of an exit, or ``error: …``; ``closed`` when the server
            closes the connection and has nothing to say.
        """
        raise NotImplementedError

    def begin(self, *, id: int = 1, phase: str = "access") -> Any:
        """Starts an event whose handler asks for something, and leaves it there.

        :return: what `go_on` takes.
        """
        raise NotImplementedError

    def go_on(self, begun: Any, value: Any = None) -> str:
        """Answers what `begin` left unanswered, and all that follows."""
        raise NotImplementedError

    def start(self, name: str, config: str = "{}") -> int:
        id: int = self.wire.start(name, config)
        return id

    def close_instance(self, id: int) -> str:
        """:return: ``closed`` for an instance that is there, else what Kong gets."""
        raise NotImplementedError

    def lose(self) -> None:
        """Kong goes away."""
        self.wire.session.connection_lost()


class MsgPackGateway(Gateway):
    protocol = "MsgPack:1"

    def connect(self) -> None:
        self.wire = Direct(self.dispatcher)

    def event(
        self, phase: str = "access", *, id: int = 1, answer: Callable[[str], Any] = lambda _: None
    ) -> str:
        self.asked = []
        try:
            begun = self.wire.event(id, phase)
            return self._follow(begun, answer)
        except RPCError as error:
            return f"error: {error}"

    def _follow(self, answered: Any, answer: Callable[[str], Any]) -> str:
        while answered["Data"] != "ret":
            function, args = answered["Data"]["Method"], answered["Data"]["Args"]
            if not function.startswith("kong.log."):
                self.asked.append((function, args))
            if function == "kong.response.exit":
                return str(args[0])
            answered = self.wire.step(answered, answer(function))
        return "returned"

    def begin(self, *, id: int = 1, phase: str = "access") -> Any:
        return self.wire.event(id, phase)

    def go_on(self, begun: Any, value: Any = None) -> str:
        self.asked = []
        return self._follow(self.wire.step(begun, value), lambda _: None)

    def close_instance(self, id: int) -> str:
        try:
            self.wire.call("CloseInstance", id)
        except RPCError as error:
            return str(error)
        return "closed"


class ProtobufGateway(Gateway):
    protocol = "ProtoBuf:1"

    def connect(self) -> None:
        self.wire = DirectProtobuf(self.dispatcher)

    def event(
        self, phase: str = "access", *, id: int = 1, answer: Callable[[str], Any] = lambda _: None
    ) -> str:
        self.asked = []
        self.wire.begin(id, phase)
        return self._follow(answer)

    def _follow(self, answer: Callable[[str], Any]) -> str:
        while True:
            try:
                asked = self.wire.read_asked()
            except ConnectionError:
                return "closed"
            if asked is None:
                return "returned"
            if not asked.function.startswith("kong.log."):
                self.asked.append((asked.function, asked.args))
            if asked.function == "kong.response.exit":
                self.connect()  # as Kong does
                return str(asked.args["status"])
            self.wire.answer(asked, answer(asked.function))

    def begin(self, *, id: int = 1, phase: str = "access") -> Any:
        self.wire.begin(id, phase)
        return self.wire.read_asked()

    def go_on(self, begun: Any, value: Any = None) -> str:
        self.asked = []
        self.wire.answer(begun, value)
        return self._follow(lambda _: None)

    def close_instance(self, id: int) -> str:
        try:
            self.wire.call("cmd_close_instance", instance_id=id)
        except ConnectionError:
            self.connect()
            return "No plugin instance: the connection is closed"
        return "closed"


@pytest.fixture
def dispatcher() -> Dispatcher:
    return new_dispatcher()


@pytest.fixture(params=[MsgPackGateway, ProtobufGateway], ids=["msgpack", "protobuf"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def gateway(kind: Any, dispatcher: Dispatcher) -> Iterator[Gateway]:
    yield kind(dispatcher)
    assert dispatcher.live_events == 0, "an event was left behind"


def asks(kong: Any) -> None:
    kong.request.get_method()


# --- handlers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", CAN_END)
def test_a_handler_that_raises_ends_the_request(gateway: Gateway, phase: str) -> None:
    def handler(kong: Any) -> None:
        kong.client.get_ip()
        raise ValueError("no")

    gateway.add(handler, *CAN_END)
    for _ in range(3):
        assert gateway.event(phase) == "500"
        assert [name for name, _ in gateway.asked] == ["kong.client.get_ip", "kong.response.exit"]


@pytest.mark.parametrize("phase", CANNOT_END)
def test_a_handler_that_raises_where_nothing_can_be_ended(gateway: Gateway, phase: str) -> None:
    def handler(kong: Any) -> None:
        raise ValueError("no")

    gateway.add(handler, *CANNOT_END)
    for _ in range(3):
        end = gateway.event(phase)
        assert end.startswith("error: plugin one") or end == "returned"
        assert gateway.asked == []


def overflow() -> None:
    overflow()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    "error",
    [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, MemoryError, RecursionError,
     Unprintable, type("Own", (BaseException,), {})],
)  # fmt: skip
def test_what_ends_other_programs_ends_a_request(gateway: Gateway, error: Any) -> None:
    def handler(kong: Any) -> None:
        if error is RecursionError:
            overflow()
        if error is MemoryError:
            bytearray(sys.maxsize // 2)
        raise error

    gateway.add(handler)
    gateway.add(asks, id=2)
    assert gateway.event() == "500"
    assert gateway.event(id=2) == "returned"


def test_nothing_runs_after_an_exit(gateway: Gateway) -> None:
    ran = []

    def handler(kong: Any) -> None:
        try:
            try:
                kong.response.exit(403, "no")
            except Exception:
                ran.append("except Exception")
            ran.append("after")
        finally:
            with pytest.raises(PDKError):
                kong.request.get_method()
            ran.append("finally")

    gateway.add(handler)
    assert gateway.event() == "403"
    assert ran == ["finally"]


def test_a_handler_that_holds_an_exit_up_stays_without_kong(gateway: Gateway) -> None:
    refused = []

    def handler(kong: Any) -> None:
        for call in (lambda: kong.response.exit(403), asks, asks):
            try:
                call() if call is not asks else asks(kong)
            except BaseException as error:
                refused.append(type(error).__name__)

    gateway.add(handler)
    assert gateway.event() == "403"
    assert refused == ["HandlerExit", "PDKError", "PDKError"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda kong: kong.request.get_header(5), TypeError),
        (lambda kong: kong.request.get_header(), TypeError),
        (lambda kong: kong.ctx.shared.set("a", object()), TypeError),
        (lambda kong: kong.ctx.shared.set("a", {1, 2}), TypeError),
        (lambda kong: kong.request.get_header("\ud800"), TypeError),
    ],
)
def test_an_argument_that_kong_would_refuse(gateway: Gateway, call: Any, error: Any) -> None:
    def handler(kong: Any) -> None:
        with pytest.raises(error):
            call(kong)
        kong.request.get_method()

    gateway.add(handler)
    assert gateway.event() == "returned"
    assert [name for name, _ in gateway.asked] == ["kong.request.get_method"]


def test_a_function_that_the_phase_does_not_have(gateway: Gateway) -> None:
    def handler(kong: Any) -> None:
        with pytest.raises(PDKError, match="phase"):
            kong.response.exit(200)

    gateway.add(handler, "log")
    assert gateway.event("log") == "returned"
    assert gateway.asked == []


def test_a_kong_in_another_thread(gateway: Gateway) -> None:
    seen = []

    def handler(kong: Any) -> None:
        def elsewhere() -> None:
            with pytest.raises(PDKError, match="another thread"):
                kong.request.get_method()
            seen.append("refused")

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        kong.request.get_method()

    gateway.add(handler)
    assert gateway.event() == "returned"
    assert seen == ["refused"]


def test_a_kong_kept_beyond_its_event(gateway: Gateway) -> None:
    kept = []

    def later(kong: Any) -> None:
        with pytest.raises(PDKError):
            kept[0].request.get_method()

    gateway.add(kept.append)
    gateway.add(later, id=2)
    assert gateway.event() == "returned"
    assert gateway.event(id=2) == "returned"
    assert gateway.asked == []


def test_an_event_of_a_phase_that_the_plugin_has_not(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.add(asks)
    for _ in range(2):
        end = gateway.event("log")
        assert end.startswith("error: plugin one has no log handler") or end == "returned"
        assert gateway.event("rewrite") == "500"
        assert gateway.event() == "returned"
    for phase in ("log", "rewrite"):
        assert caplog.text.count(f"plugin one has no {phase} handler, and Kong runs that") == 1


def test_an_event_of_a_phase_that_the_plugin_has_not_may_be_let_through(kind: Any) -> None:
    gateway = kind(new_dispatcher(on_error="open"))
    gateway.add(asks)
    assert gateway.event("rewrite") == "returned"


async def coroutine(kong: Any) -> None:
    raise ValueError


def generator(kong: Any) -> Iterator[None]:
    yield
    raise ValueError


async def async_generator(kong: Any) -> AsyncIterator[None]:
    yield
    raise ValueError


@pytest.mark.parametrize("unrun", [coroutine, generator, async_generator])
@pytest.mark.filterwarnings("error")
def test_a_handler_that_returns_what_it_has_not_run(
    gateway: Gateway, unrun: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    gateway.add(lambda kong: unrun(kong))
    assert gateway.event() == "500"
    assert "the handler has not run: what was called returned" in caplog.text
    gateway.add(lambda kong: [kong, True, "text"], id=2)
    assert gateway.event(id=2) == "returned"


def test_thousands_of_failures_leave_nothing(gateway: Gateway) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Held:
        pass

    def handler(kong: Any) -> None:
        held = Held()
        alive.add(held)
        kong.request.get_method()
        raise ValueError(held)

    gateway.add(handler)
    logging.disable(logging.CRITICAL)
    try:
        for _ in range(2000):
            assert gateway.event() == "500"
    finally:
        logging.disable(logging.NOTSET)
    gc.collect()
    assert len(alive) <= 1


# --- what Kong abandons ---------------------------------------------------------------------------


def test_a_call_that_kong_refuses_and_never_steps(kind: Any) -> None:
    gateway = kind(new_dispatcher(event_timeout=0.0))
    ended = []

    def handler(kong: Any) -> None:
        try:
            kong.request.get_method()
        finally:
            ended.append("finally")

    gateway.add(handler)
    gateway.begin()
    assert gateway.dispatcher.live_events == 1
    assert gateway.dispatcher.abandon_idle_events() == 1
    assert ended == ["finally"]
    assert gateway.dispatcher.live_events == 0


def test_an_abandoned_handler_gives_its_memory_back(gateway: Gateway) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Body:
        pass

    def handler(kong: Any) -> None:
        body = Body()
        alive.add(body)
        kong.request.get_method()
        assert body

    gateway.add(handler)
    for _ in range(100):
        gateway.begin()
        gateway.connect()
    assert len(alive) == 100
    assert gateway.dispatcher.abandon_all_events() == 100
    gc.collect()
    assert len(alive) == 0


def test_an_abandoned_handler_that_will_not_end(gateway: Gateway) -> None:
    ran = []

    def handler(kong: Any) -> None:
        for _ in range(3):
            try:
                kong.request.get_method()
            except BaseException as error:
                ran.append(type(error).__name__)

    gateway.add(handler)
    gateway.begin()
    assert gateway.dispatcher.abandon_all_events() == 1
    assert ran == ["HandlerExit", "PDKError", "PDKError"]
    gateway.connect()
    assert gateway.event() == "returned"


def test_a_kong_that_goes_away(gateway: Gateway) -> None:
    ended = []

    def handler(kong: Any) -> None:
        try:
            kong.request.get_method()
        finally:
            ended.append("finally")

    gateway.add(handler)
    begun = gateway.begin()
    gateway.lose()
    gateway.connect()
    if gateway.protocol == "ProtoBuf:1":
        # The connection was the event's own.
        assert ended == ["finally"]
    else:
        # Any connection may bring the step.
        assert ended == []
        assert gateway.go_on(begun, "GET") == "returned"


def test_an_answer_that_is_too_late(kind: Any) -> None:
    gateway = kind(new_dispatcher(event_timeout=0.01))
    gateway.add(lambda kong: time.sleep(0.05))
    wire = gateway.wire
    if kind is MsgPackGateway:
        request = {"InstanceId": 1, "EventName": "access"}
        assert wire.exchange(msgpack.packb([0, 1, "plugin.HandleEvent", [request]])) == b""
    else:
        wire.begin(1)
        assert wire.frames == []
    assert wire.session.closing
    assert gateway.dispatcher.live_events == 0


def test_a_step_that_comes_twice(gateway: Gateway) -> None:
    gateway.add(asks)
    begun = gateway.begin()
    assert gateway.go_on(begun, "GET") == "returned"
    if gateway.protocol == "MsgPack:1":
        assert gateway.wire.step(begun, "GET")["Data"]["Method"] == "kong.response.exit"
    else:
        with pytest.raises(ProtocolError):
            gateway.wire.answer(begun, "GET")


def test_an_answer_of_another_type_than_the_functions(gateway: Gateway) -> None:
    """MsgPack says what a value is: the handler gets it. ProtoBuf:1 has one type for it."""
    gateway.add(asks)
    begun = gateway.begin()
    if gateway.protocol == "MsgPack:1":
        assert gateway.go_on(begun, {"not": ["a", "text"]}) == "returned"
    else:
        with pytest.raises(ProtocolError):
            gateway.wire.send(frame(b"\x08\x05"))
        gateway.lose()


def test_text_that_is_not_utf8(gateway: Gateway) -> None:
    def handler(kong: Any) -> None:
        kong.response.set_header("x", kong.request.get_header("host"))

    gateway.add(handler)

    if gateway.protocol == "ProtoBuf:1":
        begun = gateway.begin()
        gateway.wire.send(frame(b"\x0a\x02\xff\xfe"))
        asked: Asked = gateway.wire.read_asked()
        assert begun is not None
        assert asked.message.endswith(b"\x02\xff\xfe")
        gateway.wire.answer(asked)
        assert gateway.wire.read_asked() is None
    else:
        begun = gateway.begin()
        step = b"\x82\xa7EventId" + msgpack.packb(begun["EventId"]) + b"\xa4Data\xa2\xff\xfe"
        out = gateway.wire.exchange(b"\x94\x00\x09\xabplugin.Step\x91" + step)
        assert b"\xa1x\xa2\xff\xfe" in out
        assert gateway.wire.step(begun)["Data"] == "ret"


# --- instances -----------------------------------------------------------------------------------


class Strict:
    """A plugin with one field, and a constructor that may raise."""

    limit: int = 5
    secret: str = ""

    def __init__(self) -> None:
        pass

    def access(self, kong: Any) -> None:
        kong.request.get_method()

    def close(self) -> None:
        raise SystemExit("in close")


def with_plugins(kind: Any, **plugins: Any) -> Any:
    loaded = {name: from_object(plugin, name=name) for name, plugin in plugins.items()}
    return kind(make_dispatcher(loaded))


@pytest.mark.parametrize(
    "config",
    ["", "[", "[1]", '"text"', "nul", '{"limit": "x"}', '{"limit": 1e400}', "\x00", "{" * 500],
)
def test_a_configuration_that_cannot_be_used(kind: Any, config: str) -> None:
    gateway = with_plugins(kind, strict=Strict)
    id = gateway.start("strict", config)
    assert gateway.event(id=id) == "500"
    assert gateway.event("log", id=id) != "closed"
    assert gateway.event(id=gateway.start("strict")) == "returned"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, RecursionError])
def test_a_constructor_that_raises(kind: Any, error: Any) -> None:
    armed = []

    class Raises(Strict):
        def __init__(self) -> None:
            if armed:
                raise error

    gateway = with_plugins(kind, raises=Raises, strict=Strict)
    armed.append(True)
    id = gateway.start("raises")
    assert gateway.event(id=id) == "500"
    assert gateway.event(id=gateway.start("strict")) == "returned"


@pytest.mark.parametrize(
    "name", ["missing", "../../etc/passwd", "", "a\nb", "\x1b[31m", "x" * 9999]
)
def test_a_plugin_that_is_not_there(kind: Any, name: str) -> None:
    gateway = with_plugins(kind, strict=Strict)
    id = gateway.start(name)
    assert gateway.event(id=id) == "500"
    assert gateway.close_instance(id) == "closed"


def test_a_reason_names_the_field_and_not_its_value(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = with_plugins(kind, strict=Strict)
    for config in ('{"limit": "hunter2"}', '{"secret": ["hunter2"]}', '{"secret": "hunter2"'):
        gateway.event(id=gateway.start("strict", config))
    assert "limit" in caplog.text
    assert "secret" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_close_that_raises(kind: Any) -> None:
    gateway = with_plugins(kind, strict=Strict)
    id = gateway.start("strict")
    assert gateway.close_instance(id) == "closed"
    assert gateway.close_instance(id).startswith("No plugin instance")


def test_an_instance_that_is_not_there(gateway: Gateway) -> None:
    for id in (77, 0, 2**31 - 1):
        end = gateway.event(id=id)
        assert end == "closed" or end.startswith("error: No plugin instance")
        gateway.connect()


def test_an_instance_that_is_closed_during_its_event(kind: Any) -> None:
    gateway = with_plugins(kind, strict=Strict)
    id = gateway.start("strict")
    begun = gateway.begin(id=id)
    other = kind(gateway.dispatcher)
    assert other.close_instance(id) == "closed"
    assert gateway.go_on(begun, "GET") == "returned"
    assert gateway.dispatcher.live_events == 0


# --- bytes ---------------------------------------------------------------------------------------


def refusal(gateway: Gateway, data: bytes) -> str:
    """Sends bytes that must close their connection; another one is served meanwhile."""
    gateway.add(asks, id=50)
    other = type(gateway)(gateway.dispatcher)
    begun = other.begin(id=50)
    with pytest.raises(ProtocolError) as caught:
        gateway.wire.session.receive_data(data)
    gateway.lose()
    assert other.go_on(begun, "GET") == "returned"
    return str(caught.value)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x16\x03\x01\x02\x00"])
def test_bytes_of_no_protocol(gateway: Gateway, data: bytes) -> None:
    assert "neither" in refusal(gateway, data)


def test_garbage_after_a_call(gateway: Gateway) -> None:
    gateway.add(lambda kong: None)
    assert gateway.event() == "returned"
    refusal(gateway, b"\xc1" if gateway.protocol == "MsgPack:1" else b"\xff\xff\xff\xff")


def test_a_message_that_says_it_is_huge(gateway: Gateway) -> None:
    gateway.add(lambda kong: None)
    assert gateway.event() == "returned"
    if gateway.protocol == "MsgPack:1":
        huge = b"\x94\x00\x01\xdb\xff\xff\xff\xff"
    else:
        huge = (1 << 30).to_bytes(4, sys.byteorder)
    assert "bytes" in refusal(gateway, huge)


def test_a_collection_that_says_it_is_huge(gateway: Gateway) -> None:
    if gateway.protocol == "MsgPack:1":
        data = b"\x94\x00\x01\xabplugin.Step\x91\x82\xa7EventId\x01\xa4Data"
        assert "entries" in refusal(gateway, data + b"\xdd\x7f\xff\xff\xff")
    else:
        # Two bytes each, in a list: more values than one message may have.
        gateway.add(lambda kong: kong._call("kong.ctx.shared.get", "a"))
        gateway.begin()
        items = b"\x0a\x00" * 1_100_000
        inner = b"\x32" + varint(len(items)) + items
        with pytest.raises(ProtocolError, match="values"):
            gateway.wire.session.receive_data(frame(inner))
        gateway.lose()


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_a_value_that_is_nested_without_end(gateway: Gateway) -> None:
    if gateway.protocol == "MsgPack:1":
        data = b"\x94\x00\x01\xabplugin.Step\x91\x82\xa7EventId\x01\xa4Data" + b"\x91" * 100_000
        assert "deep" in refusal(gateway, data)
    else:
        gateway.add(lambda kong: kong._call("kong.ctx.shared.get", "a"))
        gateway.begin()
        data = b""
        for _ in range(400):
            item = b"\x0a" + varint(len(data)) + data
            data = b"\x32" + varint(len(item)) + item
        with pytest.raises(ProtocolError, match="deep"):
            gateway.wire.session.receive_data(frame(data))
        gateway.lose()


def test_a_kong_that_stops_in_the_middle_of_a_message(gateway: Gateway) -> None:
    gateway.add(asks)
    gateway.wire.session.receive_data(
        b"\x94\x00\x01\xb2plugin.Hand" if gateway.protocol == "MsgPack:1" else b"\x40\0\0\0\x08"
    )
    gateway.lose()
    gateway.connect()
    assert gateway.event() == "returned"


def test_an_event_without_what_it_needs(gateway: Gateway) -> None:
    """MsgPack:1 can say so; over ProtoBuf:1 only the connection can be closed."""
    gateway.add(asks)
    if gateway.protocol == "MsgPack:1":
        for argument in ({}, {"InstanceId": 1}, {"EventName": "access"}, None, [], 5, "text",
                         {"InstanceId": "1", "EventName": "access"},
                         {"InstanceId": 1, "EventName": "no phase"}):  # fmt: skip
            with pytest.raises(RPCError):
                gateway.wire.call("HandleEvent", argument)
        assert gateway.event() == "returned"
    else:
        refusal(gateway, frame(b"\x08\x01\xa2\x02\x02\x08\x01"))


def test_a_method_that_is_not_known(gateway: Gateway) -> None:
    gateway.add(asks)
    if gateway.protocol == "MsgPack:1":
        for method in ("Nothing", "StepNothing", "", "x" * 50):
            with pytest.raises(RPCError, match="unknown method"):
                gateway.wire.call(method, {"EventId": 1})
        assert gateway.event() == "returned"
    else:
        assert "known command" in refusal(gateway, frame(b"\x08\x01\xca\x02\x00"))


# --- a server ------------------------------------------------------------------------------------

WAITS = """
    import time

    class Plugin:
        message: str = ""

        def access(self, kong):
            kong.response.set_header("x-message", kong.request.get_header("host") + self.message)
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


class Client:
    """A Kong with one connection to a server, which it opens again when it is closed."""

    def __init__(self, path: Path, kind: Any) -> None:
        self.path = path
        self.protobuf = kind is ProtobufGateway
        self.wire: Any = None
        self.instances: dict[str, int] = {}

    def connect(self) -> None:
        make: Any = ProtobufSocket if self.protobuf else Socket
        self.wire = make(self.path)

    def request(self, message: str) -> str:
        """One event of the instance for a configuration, started if need be, as Kong does it.

        :return: the header that the plugin set.
        """
        while True:
            if self.wire is None:
                self.connect()
            if message not in self.instances:
                config = f'{{"message": "{message}"}}'
                self.instances[message] = self.wire.start("waits", config)
            try:
                return self._event(self.instances[message])
            except RPCError as error:
                if "no plugin instance" not in str(error).lower():
                    raise
                del self.instances[message]
            except OSError:
                self.wire.close()
                self.wire = None
                if self.protobuf:
                    del self.instances[message]

    def _event(self, instance: int) -> str:
        if self.protobuf:
            trail = self.wire.event(
                instance, answers=lambda a: "at " if a.function.endswith("get_header") else None
            )
            value: str = trail[-1].args["v"]
            return value
        answer = self.wire.event(instance)
        answer = self.wire.step(answer, "at ")
        text: str = answer["Data"]["Args"][1]
        assert self.wire.step(answer)["Data"] == "ret"
        return text


def test_a_server_that_is_stopped_with_an_event_under_way(
    kind: Any, plugins: Path, short_path: Path
) -> None:
    write(plugins, "waits", WAITS)
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server.socket_path, kind)
        client.connect()
        instance = client.wire.start("waits", '{"message": "it"}')
        begun: Any = None
        if client.protobuf:
            client.wire.begin(instance)
            begun = client.wire.read_asked()
        else:
            begun = client.wire.event(instance)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: not server.socket_path.exists())
        if client.protobuf:
            client.wire.answer(begun, "at ")
            asked = client.wire.read_asked()
            assert asked.args["v"] == "at it"
            client.wire.answer(asked)
            assert client.wire.read_asked() is None
        else:
            answer = client.wire.step(begun, "at ")
            assert answer["Data"]["Args"][1] == "at it"
            assert client.wire.step(answer)["Data"] == "ret"
        assert server.end() == 0
        assert "had not ended" not in server.text()


def test_a_server_that_is_killed_under_load(kind: Any, plugins: Path, short_path: Path) -> None:
    """Every request after the reconnect is served, and by the instance of its configuration."""
    write(plugins, "waits", WAITS)
    path = short_path / "k.sock"
    stop = threading.Event()
    ready = threading.Event()
    ready.set()

    def load(number: int) -> int:
        client, served = Client(path, kind), 0
        while not stop.is_set():
            message = f"{number}-{served % 3}"
            ready.wait(30)
            try:
                assert client.request(message) == f"at {message}"
            except OSError:  # nobody listens yet
                client.wire = None
                time.sleep(0.01)
                continue
            served += 1
        return served

    with ThreadPoolExecutor(4) as pool:
        for round in range(3):
            with serving(plugins, path) as server:
                if round == 0:
                    running = [pool.submit(load, number) for number in range(4)]
                time.sleep(0.4)
                if round < 2:
                    server.process.kill()
                    server.end()
                else:
                    stop.set()
                    assert all(one.result(30) > 10 for one in running)
                    left = server.connect().call("GetStatus", 0)
                    assert left["Events"] == 0


def test_a_reader_that_does_not_read(kind: Any, plugins: Path, short_path: Path) -> None:
    """A bounded buffer is all that it costs; others are served."""
    write(
        plugins,
        "large",
        """
        class Plugin:
            def access(self, kong):
                kong.service.request.set_raw_body(b"x" * 300_000)
        """,
    )
    write(plugins, "waits", WAITS)
    with serving(plugins, short_path / "k.sock", "--log-level", "error") as server:
        memory = Path(f"/proc/{server.process.pid}/statm")

        def resident() -> int:
            return int(memory.read_text().split()[1]) * 4096

        client = Client(server.socket_path, kind)
        other = Client(server.socket_path, kind)
        assert other.request("a") == "at a"
        client.connect()
        instance = client.wire.start("large")
        first = resident()
        if client.protobuf:
            # The event holds its connection: many connections that do not read.
            silent = []
            for _ in range(20):
                one = ProtobufSocket(server.socket_path)
                one.begin(instance)
                silent.append(one)
            time.sleep(0.2)
            assert resident() - first < 20 * 3_000_000
        else:
            request = {"InstanceId": instance, "EventName": "access"}
            client.wire.socket.settimeout(0.5)
            with contextlib.suppress(OSError):
                for number in range(20_000):
                    client.wire.socket.sendall(
                        msgpack.packb([0, number, "plugin.HandleEvent", [request]])
                    )
            assert resident() - first < 8_000_000
        assert other.request("a") == "at a"


def test_a_plugin_that_disturbs_nobody_else(kind: Any, plugins: Path, short_path: Path) -> None:
    """One plugin fails in every way at once while another is served."""
    write(plugins, "waits", WAITS)
    write(
        plugins,
        "broken",
        """
        import sys

        class Plugin:
            how: str = ""

            def access(self, kong):
                if self.how == "exit":
                    sys.exit(3)
                if self.how == "recursion":
                    self.access(kong)
                if self.how == "interrupt":
                    raise KeyboardInterrupt
                if self.how == "memory":
                    bytearray(1 << 60)
                raise ValueError(self.how)
        """,
    )
    with serving(plugins, short_path / "k.sock", "--log-level", "critical") as server:
        client = Client(server.socket_path, kind)
        broken = Client(server.socket_path, MsgPackGateway)
        broken.connect()
        for how in ("exit", "recursion", "interrupt", "memory", "value"):
            instance = broken.wire.start("broken", f'{{"how": "{how}"}}')
            answer = broken.wire.event(instance)
            while answer["Data"]["Method"].startswith("kong.log"):
                answer = broken.wire.step(answer)
            assert answer["Data"]["Args"][0] == 500
            assert client.request("a") == "at a"
        assert server.process.poll() is None
