"""Handlers in threads, and which of them go there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from client import EXIT, PROTOCOLS, Client, at_once, failed, told
from paths import EXAMPLES
from plugin_files import write
from server_process import is_quiet, run, serving, status
from shared_libraries import needs_compiler

WHERE = """
import sys

# Not imported: what imports them runs in threads from the start.
threading, time = sys.modules["threading"], sys.modules["time"]

class Plugin:
    {attributes}
    seconds: float = 0.0

    def access(self, kong):
        kong.log.notice(threading.current_thread().name)
        if self.seconds:
            time.sleep(self.seconds)
        kong.request.get_method()
"""


def where(attributes: str = "") -> str:
    return WHERE.format(attributes=attributes)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("attributes", "words", "thread"),
    [
        ("blocking = True", (), "kongps-handler-"),
        ("", ("--handlers", "thread"), "kongps-handler-"),
        ("blocking = False", ("--handlers", "thread"), "MainThread"),
        ("blocking = True", ("--handlers", "inline"), "kongps-handler-"),
        ("", (), "MainThread"),
        ("", ("--handlers", "inline"), "MainThread"),
    ],
)
def test_a_handler_runs_where_it_is_told_to(
    plugins: Path, short_path: Path, protocol: str, attributes: str, words: tuple[str, ...],
    thread: str,
) -> None:  # fmt: skip
    write(plugins, "where", where(attributes))
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server, protocol)
        trail = client.event(client.start("where"), answers=lambda _: "GET")
        assert thread in told(trail)
        assert [function for function, _ in trail] == ["kong.log.notice", "kong.request.get_method"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fifty_events_that_sleep_take_about_the_time_of_one(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "sleeper", where("blocking = True"))
    with serving(plugins, short_path / "k.sock") as server:
        instance = Client(server, protocol).start("sleeper", '{"seconds": 0.5}')
        began = time.monotonic()
        with at_once(server, instance, 50, protocol) as events:
            trails = [event.result() for event in events]
        assert time.monotonic() - began < 5
        assert len({told(trail) for trail in trails}) == 50, "each had a thread of its own"
        assert is_quiet(server)


def test_threads_are_used_again(plugins: Path, short_path: Path) -> None:
    write(plugins, "where", where("blocking = True"))
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("where")
        assert len({told(client.event(instance)) for _ in range(50)}) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_burst_of_a_plugin_that_sleeps_is_not_serialised(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "burst", "import time\n" + where())
    with serving(plugins, short_path / "k.sock") as server:
        instance = Client(server, protocol).start("burst", '{"seconds": 0.2}')
        began = time.monotonic()
        with at_once(server, instance, 40, protocol) as events:
            trails = [event.result() for event in events]
        assert time.monotonic() - began < 4, "8 s one after the other"
        assert not any("MainThread" in told(trail) for trail in trails)


def test_a_plugin_that_is_quick_runs_inline_from_its_first_event(
    plugins: Path, short_path: Path
) -> None:
    write(plugins, "quick", where())
    with serving(plugins, short_path / "k.sock") as server:
        instance = Client(server).start("quick")
        with at_once(server, instance, 30) as events:
            assert all("MainThread" in told(event.result()) for event in events)


def test_kong_python_pdks_layout_runs_in_threads(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "older",
        """
        import sys

        Schema = ({"message": {"type": "string"}},)

        class Plugin:
            def __init__(self, config):
                self.config = config

            def access(self, kong):
                kong.log.notice(sys.modules["threading"].current_thread().name)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("older")
        assert all("kongps-handler" in told(client.event(instance)) for _ in range(100))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_failure_in_a_thread_is_as_one_inline(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(
        plugins,
        "fails",
        """
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        class Plugin:
            blocking = True
            how: str = ""

            def access(self, kong):
                kong.request.get_method()
                if self.how == "odd":
                    raise Odd
                if self.how == "exit":
                    raise SystemExit(3)
                raise ValueError("oh no")
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        for how, expected in (("", "ValueError: oh no"), ("odd", "Odd"), ("exit", "SystemExit: 3")):
            trail = client.event(client.start("fails", f'{{"how": "{how}"}}'))
            assert failed(trail), trail
            assert expected in told(trail)
            assert "fails.py" in told(trail)
        assert is_quiet(server)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_exit_ends_a_handler_whatever_it_catches(
    plugins: Path, short_path: Path, protocol: str, kind: str
) -> None:
    awaits = "await " if kind == "async def" else ""
    write(
        plugins,
        "exits",
        f"""
        import os

        class Plugin:
            blocking = True
            path: str

            {kind} access(self, kong):
                try:
                    try:
                        {awaits}kong.response.exit(403, "no")
                    except Exception:
                        self.note("except Exception")
                    finally:
                        self.note("finally")
                        {awaits}kong.log.err("in finally")
                except:
                    self.note("bare except")
                for _ in range(3):
                    try:
                        {awaits}kong.log.err("after the end")
                        self.note("a call after the end")
                    except BaseException as error:
                        self.note(type(error).__name__)

            def note(self, text):
                with open(self.path, "a") as file:
                    print(text, file=file)
        """,
    )
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        trail = client.event(client.start("exits", f'{{"path": "{path}"}}'))
        assert [function for function, _ in trail] == [EXIT]
        assert "403" in trail[0][1]
        server.wait_for(lambda: path.exists() and len(path.read_text().split("\n")) > 5)
        assert path.read_text().splitlines() == ["finally", "bare except", *["HandlerExit"] * 3]
        assert is_quiet(server)
        client.event(client.start("hello"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_larger_than_the_buffers_gets_out(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(
        plugins,
        "large",
        """
        class Plugin:
            blocking = True

            def access(self, kong):
                kong.response.exit(200, "x" * 3_000_000)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        ((function, args),) = client.event(client.start("large"))
        assert function == EXIT
        assert args.count("x") >= 3_000_000


def test_a_large_answer_of_an_event_that_waited_for_its_instance_gets_out(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "large",
        """
        import asyncio

        class Plugin:
            blocking = False

            async def start(self):
                await asyncio.sleep(0.2)

            def access(self, kong):
                kong.response.exit(200, "x" * 3_000_000)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        ((function, args),) = client.event(client.start("large"))
        assert function == EXIT
        assert args.count("x") >= 3_000_000


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_answer_to_a_pipelined_call_may_come_in_pieces(
    plugins: Path, short_path: Path, kind: str
) -> None:
    awaits = "await " if kind == "async def" else ""
    sleep = "asyncio.sleep" if kind == "async def" else "time.sleep"
    write(
        plugins,
        "pieces",
        f"""
        import asyncio, time

        class Plugin:
            blocking = True

            {kind} access(self, kong):
                {awaits}kong.response.set_header("a", "1")
                {awaits}{sleep}(0.3)
                {awaits}kong.response.set_header("b", "2")
                {awaits}kong.response.set_header("c", "3")
                {awaits}kong.request.get_method()
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect_protobuf()
        wire.begin(wire.start("pieces"))
        first = wire.read_asked()
        assert first is not None
        wire.socket.sendall(b"\0")  # a quarter of an empty frame
        second = wire.read_asked()
        assert second is not None
        wire.socket.sendall(b"\0\0\0")
        wire.answer(second)
        third = wire.read_asked()
        assert third is not None
        wire.answer(third)
        method = wire.read_asked()
        assert method is not None
        wire.answer(method, "GET")
        assert wire.read_asked() is None


# --- what belongs to an event ------------------------------------------------------------------

CONTEXTS = """
import asyncio, contextvars, logging, threading, time
{attributes}
variable = contextvars.ContextVar("variable", default="none")
local = threading.local()
seen = []

class Filter(logging.Filter):
    def filter(self, record):
        record.request = variable.get()
        return True

class Keeps(logging.Handler):
    def emit(self, record):
        local.logged = record.request

logger = logging.getLogger("contexts")
logger.addFilter(Filter())
logger.addHandler(Keeps())
logger.propagate = False

class Text:
    def __str__(self):
        return variable.get()

class Plugin:
    {blocking}

    def access(self, kong):
        found = variable.get(), getattr(local, "name", "none")
        name = kong.request.get_header("name")
        variable.set(name)
        local.name = name
        for _ in range(3):
            kong.request.get_method()
            logger.warning("x")
            found += variable.get(), local.name, local.logged
        kong.log.notice(" ".join(found))
        kong.log.notice(Text())
"""

ASYNC_CONTEXTS = """
import asyncio, contextvars

variable = contextvars.ContextVar("variable", default="none")

class Text:
    def __str__(self):
        return variable.get()

class Plugin:
    async def access(self, kong):
        found = variable.get(), "none"
        name = await kong.request.get_header("name")
        variable.set(name)
        for _ in range(9):
            await kong.request.get_method()
            found += variable.get(),
        async def part():
            assert variable.get() == name
            variable.set("part")
            await asyncio.sleep(0.01)
            assert await kong.request.get_path() and variable.get() == "part"
        await asyncio.gather(part(), part())
        await asyncio.wait_for(asyncio.create_task(part()), 5)
        await kong.log.notice(" ".join(found))
        await kong.log.notice(Text())
"""


@pytest.mark.parametrize("mode", ["inline", "thread", "async"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_contexts_and_thread_locals_belong_to_the_event(
    plugins: Path, short_path: Path, mode: str, protocol: str
) -> None:
    """Under asyncio context variables do, as everywhere in asyncio."""
    text = CONTEXTS.format(attributes="", blocking=f"blocking = {mode == 'thread'}")
    write(plugins, "contexts", ASYNC_CONTEXTS if mode == "async" else text)
    with serving(plugins, short_path / "k.sock", "--handler-threads", "4") as server:
        instance = Client(server, protocol).start("contexts")

        def answers(name: str, function: str) -> str:
            time.sleep(0.005)
            return name if function == "kong.request.get_header" else "value"

        def run(number: int) -> tuple[str, str]:
            client = Client(server, protocol)
            said = ""
            for turn in range(5):
                name = f"name-{number}-{turn}"
                trail = client.event(instance, answers=partial(answers, name))
                said = told(trail)
                expected = " ".join(["none", "none", *[name] * 9])
                assert expected in said, said
                assert trail[-1][0] == "kong.log.notice"
                assert name in trail[-1][1], "the text was made in the event's context"
            client.close()
            return name, said

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(run, range(12)))
        assert is_quiet(server)


def test_what_dies_with_a_handler_may_still_make_pdk_calls(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "dying",
        """
        import contextvars, threading

        local = threading.local()
        variable = contextvars.ContextVar("variable")

        class Last:
            def __init__(self, kong, word):
                self.kong, self.word = kong, word

            def __del__(self):
                try:
                    self.kong.log.notice(self.word)
                except Exception as error:
                    print("refused", error, flush=True)

        class Plugin:
            blocking = True

            def access(self, kong):
                local.last = Last(kong, "of a local")
                variable.set(Last(kong, "of a variable"))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        for protocol in PROTOCOLS:
            client = Client(server, protocol)
            instance = client.start("dying")
            for _ in range(20):
                trail = client.event(instance)
                assert not failed(trail)
        assert is_quiet(server)
        assert status(server)["EventsHandled"] == 40


def test_pdk_calls_while_another_is_packed_or_logged_are_refused(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "nested",
        """
        from kongps import PDKError

        class Plugin:
            blocking = True

            def access(self, kong):
                class Lazy(list):
                    def __iter__(self):
                        try:
                            kong.request.get_header("host")
                        except PDKError as error:
                            return iter([str(error)])
                        return iter(["it was answered"])

                for _ in range(20):
                    kong.ctx.shared.set("a", Lazy([1]))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        trail = client.event(client.start("nested"))
        assert len(trail) == 20
        assert not any("it was answered" in args for _, args in trail), trail
        assert is_quiet(server)


def test_thousands_of_events_in_threads_leave_nothing(plugins: Path, short_path: Path) -> None:
    write(plugins, "where", where("blocking = True"))
    write(
        plugins,
        "counts",
        """
        import gc, sys

        class Plugin:
            blocking = False

            def access(self, kong):
                gc.collect()
                kinds = [type(each).__name__ for each in gc.get_objects()]
                kong.log.notice(" ".join(
                    f"{kind}={kinds.count(kind)}" for kind in ("Event", "Kong", "Task", "Future")
                ))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client, other = Client(server), Client(server, "protobuf")
        instance, counts = client.start("where"), client.start("counts")

        def run(events: int) -> tuple[int, str]:
            for _ in range(events):
                client.event(instance, answers=lambda _: "GET")
                other.event(instance, answers=lambda _: "GET")
            said = told(client.event(counts))
            return status(server)["Memory"], said

        run(500)
        before, kinds = run(500)
        after, kinds_later = run(4000)
        assert after - before < 3_000_000
        assert kinds == kinds_later  # everything of an event is gone when it is answered
        assert is_quiet(server)


@needs_compiler
def test_native_plugins_run_in_threads(plugins: Path, short_path: Path) -> None:
    (plugins / "hello.py").unlink()
    source = EXAMPLES / "native"
    for each in sorted(source.glob("*.c")):
        built = run("build", str(each), "--output", str(plugins), cwd=plugins)
        assert built.returncode == 0, built.stderr.decode()
    names = [path.name.partition(".")[0] for path in plugins.glob("*.so")]
    assert names
    with serving(plugins, short_path / "k.sock", "--handlers", "thread") as server:
        for protocol in PROTOCOLS:
            for name in names:
                instance = Client(server, protocol).start(name, '{"message": "x"}')
                with at_once(server, instance, 20, protocol) as events:
                    trails = [event.result() for event in events]
                assert all(trail == trails[0] for trail in trails)
                assert "C says x" in str(trails[0])
        assert is_quiet(server)


def test_no_thread_to_be_had_fails_the_events_and_nothing_else(
    plugins: Path, short_path: Path
) -> None:
    write(plugins, "blocks", where("blocking = True"))
    write(
        plugins,
        "breaks",
        """
        import threading

        class Plugin:
            how: str

            def access(self, kong):
                if self.how == "break":
                    self.begin = threading.Thread.start
                    threading._kept = threading.Thread.start
                    def start(thread):
                        raise RuntimeError("can't start new thread")
                    threading.Thread.start = start
                else:
                    threading.Thread.start = threading._kept
        """,
    )
    words = ("--handler-timeout", "1", "--handlers", "inline")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server)
        instance = client.start("blocks")
        client.event(client.start("breaks", '{"how": "break"}'))
        assert failed(client.event(instance))
        assert "no thread can be started for handlers" in server.text()
        assert not failed(client.event(client.start("hello")))
        client.event(client.start("breaks", '{"how": "mend"}'))
        assert not failed(client.event(instance))
        assert is_quiet(server)
