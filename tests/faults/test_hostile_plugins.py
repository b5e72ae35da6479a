"""Plugin code that does what it should not: the server, and other events, go on."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import signal
import socket
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Callable

import greenlet
import msgpack
import pytest
from client import Client, Direct, RPCError, dispatcher_with, failed
from core_defaults import new_dispatcher
from server_process import run, serving

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.core.wire.msgpack import packb
from kongps.errors import HandlerExit, PackError, PDKError, ProtocolError
from kongps.settings import Settings

FAILED = "kong.response.exit"


@pytest.fixture
def dispatcher() -> Dispatcher:
    return new_dispatcher()


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


def add(dispatcher: Dispatcher, id: int, handler: Callable[[Any], Any]) -> None:
    from made_plugins import plugin_of

    dispatcher.add_instance(Instance(id, plugin_of(), {}, 0.0, {"access": handler}))


# --- greenlets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("caught", [True, False])
def test_an_exception_thrown_into_a_handler_that_waits(
    dispatcher: Dispatcher, caught: bool
) -> None:
    """What a timeout of a greenlet library does."""
    waiting = []

    def handler(kong: Any) -> None:
        waiting.append(greenlet.getcurrent())
        try:
            kong.request.get_method()
        except ValueError:
            if not caught:
                raise

    def thrower(kong: Any) -> None:
        waiting[0].throw(ValueError("timeout"))

    wire = dispatcher_with(dispatcher, handler)
    add(dispatcher, 2, thrower)
    first = wire.event(1)
    assert wire.event(2)["Data"] == "ret"
    answer = wire.step(first, "GET")
    assert answer["Data"] == "ret" if caught else wire.failure(answer)["Data"]["Method"] == FAILED
    assert dispatcher.live_events == 0


def test_an_event_whose_handler_was_thrown_out_can_be_given_up(dispatcher: Dispatcher) -> None:
    waiting = []

    def handler(kong: Any) -> None:
        waiting.append(greenlet.getcurrent())
        kong.request.get_method()

    wire = dispatcher_with(dispatcher, handler)
    add(dispatcher, 2, lambda kong: waiting[0].throw(ValueError))
    wire.event(1)
    wire.event(2)
    assert dispatcher.abandon_all_events() == 1
    assert dispatcher.live_events == 0


def test_a_worker_that_is_woken_without_an_event_goes_back_to_sleep(
    dispatcher: Dispatcher,
) -> None:
    made = []

    def first(kong: Any) -> None:
        made.append(greenlet.greenlet(lambda: greenlet.getcurrent().parent.switch("out")))
        made[0].switch()

    def second(kong: Any) -> None:
        made[0].switch()  # it ends, and its parent is the first handler's idle worker
        kong.request.get_method()

    wire = dispatcher_with(dispatcher, first)
    add(dispatcher, 2, second)
    add(dispatcher, 3, lambda kong: kong.request.get_path())
    assert wire.event(1)["Data"] == "ret"
    keep_busy = wire.event(3)
    for _ in range(3):
        made.clear()
        wire.event(1)
        assert wire.step(wire.event(2), "GET")["Data"] == "ret"
    assert wire.step(keep_busy, "/")["Data"] == "ret"


def test_a_pdk_call_from_a_greenlet_of_the_handlers_own_is_refused(
    dispatcher: Dispatcher,
) -> None:
    seen = []

    def handler(kong: Any) -> None:
        def inner() -> str:
            with pytest.raises(PDKError, match="greenlet that the handler has created"):
                kong.request.get_header("a")
            return "done"

        seen.append(greenlet.greenlet(inner).switch())
        seen.append(kong.request.get_header("b"))

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.event(1)
    assert answer["Data"]["Args"] == ["b"]
    assert wire.step(answer, "value")["Data"] == "ret"
    assert seen == ["done", "value"]


@pytest.mark.parametrize(
    "leave", [lambda: greenlet.getcurrent().parent.switch(), lambda: (_ for _ in ()).throw(
        greenlet.GreenletExit)]
)  # fmt: skip
def test_a_handler_that_leaves_its_greenlet_is_answered_for(
    dispatcher: Dispatcher, leave: Callable[[], Any]
) -> None:
    def handler(kong: Any) -> None:
        for _ in leave() or ():
            pass

    wire = dispatcher_with(dispatcher, handler)
    for _ in range(3):
        answer = wire.event(1)
        if answer["Data"]["Method"] != FAILED:
            answer = wire.failure(answer)
        assert answer["Data"]["Method"] == FAILED
    assert dispatcher.live_events == 0


def test_a_dispatcher_can_move_to_another_thread(dispatcher: Dispatcher) -> None:
    wire = dispatcher_with(dispatcher, lambda kong: kong.request.get_method())
    assert wire.step(wire.event(1), "GET")["Data"] == "ret"
    seen = []

    def elsewhere() -> None:
        seen.append(wire.step(wire.event(1), "GET")["Data"])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["ret"]


# --- packing -----------------------------------------------------------------------------------


def test_a_pdk_call_while_arguments_are_packed_is_refused(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        class Lazy(list):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                with pytest.raises(PDKError, match="are packed"):
                    kong.request.get_header("host")
                return iter(["packed"])

        kong.ctx.shared.set("a", Lazy([1]))

    wire = dispatcher_with(dispatcher, handler)
    assert wire.event(1)["Data"]["Args"] == ["a", ["packed"]]


def test_an_argument_that_raises_while_it_is_packed_leaves_no_half_answer(
    dispatcher: Dispatcher,
) -> None:
    def handler(kong: Any) -> None:
        class Bad(list):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                raise KeyError("bad")

        with pytest.raises(KeyError):
            kong.ctx.shared.set("a", ["x" * 1000, Bad([1])])

    assert dispatcher_with(dispatcher, handler).event(1)["Data"] == "ret"


def test_collections_that_change_while_they_are_packed_are_refused() -> None:
    class Evil(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            outer.clear()
            return iter(())

    outer: Any = [Evil(), *range(1000)]
    with pytest.raises(PackError, match="changed"):
        packb(outer)
    outer = {0: Evil(), **dict.fromkeys(range(1, 1000))}
    with pytest.raises(PackError, match="changed"):
        packb(outer)


# --- logging, signals, files -------------------------------------------------------------------


def test_logging_that_raises_changes_nothing(dispatcher: Dispatcher) -> None:
    class Raising(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise SystemExit("from a filter")

    def handler(kong: Any) -> None:
        raise ValueError

    wire = dispatcher_with(dispatcher, handler)
    raising = Raising()
    logging.getLogger("kongps").addFilter(raising)
    try:
        assert wire.failure(wire.event(1))["Data"]["Method"] == FAILED
        with pytest.raises(ProtocolError):
            Direct(dispatcher).session.receive_data(b"\xc1\xc1\xc1\xc1")
    finally:
        logging.getLogger("kongps").removeFilter(raising)


def test_a_signal_handler_of_a_plugin_that_raises_while_the_loop_waits(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "alarm",
        """
        import signal

        def ring(*_):
            raise TimeoutError("rung")

        class Plugin:
            def access(self, kong):
                signal.signal(signal.SIGALRM, ring)
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
                kong.request.get_method()

            def log(self, kong):
                signal.setitimer(signal.ITIMER_REAL, 0)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("alarm")
        answer = wire.event(instance)
        time.sleep(0.4)
        # The signal may have come while the handler waited or ran: answered it is in any case.
        assert wire.step(answer, "GET")["Data"]
        wire.event(instance, "log")
        assert wire.call("GetStatus", 0)["Pid"] == server.process.pid
        server.process.terminate()
        assert server.end() == 0
        assert "rung" in server.text()


LOSER = """
import os, socket

class Plugin:
    {blocking}
    what: str = "nothing"

    {async_}def access(self, kong):
        if self.what == "everything":
            os.closerange(3, 1024)
            return
        for fd in range(3, 1024):
            if is_one(fd, self.what):
                os.close(fd)

def is_one(fd, what):
    try:
        link = os.readlink(f"/proc/self/fd/{{fd}}")
    except OSError:
        return False
    if what != "listener" or not link.startswith("socket:"):
        return link.startswith(KINDS[what])
    one = socket.socket(fileno=os.dup(fd))
    with one:
        return one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

KINDS = {{
    "nothing": "nothing", "epolls": "anon_inode:[eventpoll]", "waker": "pipe:",
    "listener": "nothing", "connections": "socket:", "store": {store!r},
}}
"""


def loser(way: str, path: Path) -> str:
    return LOSER.format(
        blocking="blocking = True" if way == "in a thread" else "",
        async_="async " if way == "async" else "",
        store=f"{path}.d/",
    )


@pytest.mark.parametrize("way", ["inline", "in a thread", "async"])
@pytest.mark.parametrize("what", ["everything", "epolls", "waker", "listener", "connections"])
def test_file_descriptors_of_the_server_that_a_plugin_closes(
    plugins: Path, short_path: Path, what: str, way: str
) -> None:
    """The server ends in good order and says why; whoever started it starts it again."""
    path = short_path / "k.sock"
    write(plugins, "loser", loser(way, path))
    with serving(plugins, path, "--shutdown-timeout", "0.2") as server:
        wire = server.connect()
        kept = wire.start("hello")
        instance = wire.start("loser", json.dumps({"what": what}))
        with contextlib.suppress(OSError):
            wire.event(instance)
        assert server.end() == 1
        assert "plugin code has closed file descriptors of the server" in server.text()
        # What is left of an asyncio loop whose descriptors are gone complains at the very end.
        assert way == "async" or "Traceback" not in server.text(), server.text()
    with serving(plugins, path) as server:
        assert server.connect().event(kept)


@pytest.mark.parametrize("way", ["inline", "in a thread", "async"])
def test_the_store_that_a_plugin_closes(plugins: Path, short_path: Path, way: str) -> None:
    path = short_path / "k.sock"
    write(plugins, "loser", loser(way, path))
    with serving(plugins, path) as server:
        wire = server.connect()
        assert wire.event(wire.start("loser", '{"what": "store"}'))
        kept = server.connect().start("hello")
        assert "opening it again" in server.text()
        assert server.connect().call("GetStatus", 0)["Pid"] == server.process.pid
        server.process.terminate()
        assert server.end() == 0
    with serving(plugins, path) as server:
        assert server.connect().event(kept)


def test_a_worker_whose_file_descriptors_a_plugin_closes_is_replaced(
    plugins: Path, short_path: Path
) -> None:
    path = short_path / "k.sock"
    write(plugins, "loser", LOSER.format(blocking="", async_="", store=""))
    with serving(plugins, path, "--workers", "2") as server:
        for what in ("everything", "epolls", "connections"):
            wire = server.connect()
            instance = wire.start("loser", json.dumps({"what": what}))
            with contextlib.suppress(OSError):
                wire.event(instance)
            for _ in range(4):
                again = server.connect()
                assert again.event(again.start("hello"))["Data"]["Method"]
                assert again.call("GetStatus", 0)["Pid"] == server.process.pid
        server.wait_for(lambda: server.text().count("ended with exit code 1") == 3)
        server.process.terminate()
        assert server.end() == 0


def test_a_child_that_a_handler_forks_ends_by_itself_and_lets_go_of_the_socket(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "forker",
        """
        import os, time

        class Plugin:
            returns: bool = False

            def access(self, kong):
                child = os.fork()
                if child == 0 and not self.returns:
                    time.sleep(60)
                    os._exit(0)
                kong.log.notice(str(child))
        """,
    )
    path = short_path / "k.sock"
    with serving(plugins, path) as server:
        wire = server.connect()
        child = int(wire.event(wire.start("forker", '{"returns": true}'))["Data"]["Args"][0])
        assert child > 0, "the child answered in the server's place"
        deadline = time.monotonic() + 10
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(child)
        assert wire.call("GetStatus", 0)["Pid"] == server.process.pid
        sleeper = int(wire.event(wire.start("forker"))["Data"]["Args"][0])
        server.process.kill()
        server.end()
    try:
        with serving(plugins, path) as server:  # the child does not hold the socket
            assert server.connect().call("GetStatus", 0)["Pid"] == server.process.pid
    finally:
        os.kill(sleeper, signal.SIGTERM)
    while _alive(sleeper) and time.monotonic() < deadline + 10:
        time.sleep(0.02)
    assert not _alive(sleeper), "SIGTERM does not end the child"


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    "held",
    [
        "def access(self, kong):\n        while True: pass",
        "def access(self, kong):\n        import threading; threading.Thread("
        "target=__import__('time').sleep, args=(600,), daemon=False).start()",
        "def access(self, kong): ...\n    def close(self):\n        __import__('time').sleep(600)",
    ],
    ids=["a handler that never returns", "a thread that is no daemon", "a close that hangs"],
)
def test_plugin_code_cannot_keep_the_server_from_ending(
    plugins: Path, short_path: Path, held: str
) -> None:
    write(plugins, "holds", f"class Plugin:\n    {held}\n")
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "0.2") as server:
        wire = server.connect()
        request = {"InstanceId": wire.start("holds"), "EventName": "access"}
        wire.socket.sendall(msgpack.packb([0, 9, "plugin.HandleEvent", [request]]))
        time.sleep(0.2)
        server.process.terminate()
        assert server.end(10) == 1
        assert "ending it now" in server.text()


def test_a_socket_directory_that_is_gone_does_not_keep_the_server_from_ending(
    plugins: Path, short_path: Path
) -> None:
    place = short_path / "run"
    place.mkdir()
    with serving(plugins, place / "k.sock") as server:
        wire = server.connect()
        wire.start("hello")
        place.rename(short_path / "moved")
        place.write_text("a file now")
        server.log = short_path / "moved" / "k.log"
        server.process.terminate()
        assert server.end() == 0


def test_a_server_says_when_its_socket_is_taken_away(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        (short_path / "k.sock").unlink()
        server.wait_for(lambda: "was removed or replaced" in server.text())


# --- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])
def test_an_answer_is_too_late_too_when_its_call_has_waited_to_be_read(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(
        plugins,
        "slow",
        """
        import time

        class Plugin:
            blocking = False

            def access(self, kong):
                time.sleep(0.6)
        """,
    )
    words = ("--event-timeout", "1", "--handlers", "inline", "--block-threshold", "0")
    with serving(plugins, short_path / "k.sock", *words) as server:
        clients = [Client(server, protocol) for _ in range(2)]
        instance = clients[0].start("slow")
        time.sleep(1.5)  # a time without work is no such wait
        assert not failed(clients[1].event(instance))
        for client in clients:
            time.sleep(0.1)
            client.begin(instance)
        assert not failed(clients[0].finish())
        with pytest.raises(ConnectionError):
            clients[1].finish()
        assert "Kong has abandoned it" in server.text()


class Raising(str):
    """Text whose methods are a plugin's, and raise."""

    def __str__(self) -> str:
        raise ValueError

    lower = casefold = __str__


class Named(str, enum.Enum):
    REQUEST_ID = "X-Request-ID"


@pytest.mark.parametrize("name", [Raising("X-Request-ID"), Named.REQUEST_ID])
def test_a_header_of_a_class_of_the_plugins_is_as_good_as_text(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(kong: Any) -> None:
        kong.request.get_header(name)
        raise ValueError("oh no")

    served = new_dispatcher(event_timeout=0.0)
    wire = dispatcher_with(new_dispatcher(), handler)
    answer = wire.step(wire.event(1), "an-id")
    assert ", request an-id raised ValueError" in answer["Data"]["Args"][0]
    wire = dispatcher_with(served, lambda kong: kong.request.get_header(name))
    wire.event(1)
    time.sleep(0.02)
    assert served.abandon_idle_events() == 1


def test_an_answer_that_comes_too_late_is_not_sent(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "late",
        """
        import time

        class Plugin:
            asks: bool = False

            def access(self, kong):
                time.sleep(0.5)
                if self.asks:
                    kong.request.get_method()
        """,
    )
    with serving(plugins, short_path / "k.sock", "--event-timeout", "0.2") as server:
        for config in ("{}", '{"asks": true}'):
            wire = server.connect()
            instance = wire.start("late", config)
            with pytest.raises((ConnectionError, OSError)):
                wire.event(instance)
        assert "Kong has abandoned it" in server.text()
        assert server.connect().call("GetStatus", 0)["Events"] == 0


def test_too_many_events_are_refused_and_closed() -> None:
    assert Settings().max_events == 65536
    dispatcher = new_dispatcher(max_events=2000)
    wire = dispatcher_with(dispatcher, lambda kong: kong.request.get_method())
    logging.disable(logging.CRITICAL)
    try:
        events = [wire.event(1) for _ in range(2000)]
        assert wire.event(1)["Data"]["Method"] == FAILED
        assert wire.step(events[0], "GET")["Data"] == "ret"
        assert wire.event(1)["Data"]["Method"] == "kong.request.get_method"
        assert dispatcher.abandon_all_events() == 2000
    finally:
        logging.disable(logging.NOTSET)


def test_event_ids_do_not_start_anew_with_the_server() -> None:
    ids = set()
    for _ in range(20):
        wire = dispatcher_with(new_dispatcher(), lambda kong: kong.request.get_method())
        ids.add(wire.event(1)["EventId"])
    assert len(ids) == 20


# --- configurations and peers ------------------------------------------------------------------


def test_a_configuration_that_cannot_be_sent_back_starts_an_instance(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        for config in ('{"other": 1' + "0" * 30 + "}", '{"other": ' + "[" * 500 + "]" * 500 + "}"):
            instance = wire.start("hello", config)
            assert wire.event(instance)["Data"]["Method"] == "kong.request.get_header"
        assert wire.call("GetStatus", 0)["Plugins"]["hello"]["Instances"]
        for id in (float("nan"), float("inf"), True, "1", None, 1.5):
            with pytest.raises(RPCError, match="whole number"):
                wire.call("InstanceStatus", id)
        for id in (0, -1, 1e300, 2**64 - 1, -(2**63)):
            with pytest.raises(RPCError, match="No plugin instance"):
                wire.call("InstanceStatus", id)


def test_a_name_with_control_characters_is_not_put_into_the_log(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        server.connect().start("no\x1b[31m\nsuch")
        assert "\x1b" not in server.text()
        assert len(server.text().splitlines()) == 3


def test_names_of_a_megabyte_cost_no_memory_and_no_log(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        for letter in ("n", "/", "\x1b"):
            wire.start(letter * 1_000_000)
        before = wire.call("GetStatus", 0)["Memory"]
        ids = [wire.start(letter * 1_000_000) for letter in "n/\x1b" * 10]
        assert wire.call("GetStatus", 0)["Memory"] - before < 4_000_000
        for id in ids:
            assert wire.event(id)["Data"]["Method"] == FAILED
            assert len(wire.call("InstanceStatus", id)["Name"]) == 41
        with pytest.raises(RPCError, match=r"there is no plugin 'n{40}…'") as raised:
            wire.call("GetPluginInfo", "n" * 1_000_000)
        assert len(str(raised.value)) < 1000
        assert len(server.text()) < 50_000
        stored = list(Path(f"{short_path}/k.sock.d").iterdir())
        assert sum(each.stat().st_size for each in stored) < 50_000


def test_a_peer_that_has_closed_its_side_gets_what_it_asked_for(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("hello", json.dumps({"message": "x" * 100_000}))
        wire.socket.sendall(msgpack.packb([0, 1, "plugin.InstanceStatus", [instance]]) * 30)
        wire.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        received = 0
        while data := wire.socket.recv(1 << 16):
            received += len(data)
        assert received > 3_000_000


def test_of_servers_started_at_once_on_one_socket_one_serves(
    plugins: Path, short_path: Path
) -> None:
    import subprocess
    import sys

    from client import Socket
    from server_process import environment

    path = short_path / "k.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    words = ["serve", "--plugins-directory", str(plugins), "--socket", str(path)]
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", "kongps", *words],
            env=environment(), stderr=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while sum(server.poll() is None for server in servers) > 1:
            assert time.monotonic() < deadline, "two servers think that they serve"
            time.sleep(0.02)
        (left,) = [server for server in servers if server.poll() is None]
        assert Socket(path).call("GetStatus", 0)["Pid"] == left.pid
    finally:
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes; ctypes.CDLL(None).printf(b'from printf ')",
        "import atexit; atexit.register(print, 'at exit')",
        "import sys, io; sys.stdout = io.StringIO()",
        "import sys; print('first'); sys.stdout = sys.__stderr__",
        "import sys; sys.stdout.close()",
        "import threading, time; threading.Thread("
        "target=lambda: (time.sleep(0.3), print('late'))).start()",
    ],
)
def test_nothing_that_a_plugin_prints_gets_into_a_dump(
    plugins: Path, short_path: Path, code: str
) -> None:
    write(plugins, "talks", f"{code}\nclass Plugin:\n    def access(self, kong): ...\n")
    done = run("dump", "--plugins-directory", str(plugins))
    assert [info["Name"] for info in json.loads(done.stdout)["Plugins"]] == ["hello", "talks"]
    done = run("-plugins-directory", str(plugins), "-dump-plugin-info", "talks")
    assert msgpack.unpackb(done.stdout)["Name"] == "talks"


def test_handler_exit_cannot_be_used_to_pass_without_an_answer(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        raise HandlerExit

    wire = dispatcher_with(dispatcher, handler)
    assert wire.failure(wire.event(1))["Data"]["Method"] == FAILED
