"""The watchdog over inline handlers: what it tells, and what it changes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from client import PROTOCOLS, Client, at_once, failed, told
from plugin_files import write
from server_process import environment, serving, status

from kongps.core.runners.inline import InlineRunner
from kongps.core.runners.watchdog import Watchdog

BLOCKS = """
import sys
# Not imported: what imports them runs in threads from the start.
threading, time = sys.modules["threading"], sys.modules["time"]

class Plugin:
    {attributes}

    def __init__(self):
        {init}

    def access(self, kong):
        method = kong.request.get_method()
        kong.log.notice(threading.current_thread().name)
        if method == "SLOW":
            time.sleep(0.08)

    def log(self, kong):
        kong.log.notice(threading.current_thread().name)
"""


def blocks(attributes: str = "", init: str = "pass") -> str:
    return BLOCKS.format(attributes=attributes, init=init)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_handler_that_blocks_is_reported_once_and_runs_in_threads(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "blocks", blocks())
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        instance, other = client.start("blocks"), client.start("blocks")
        trail = client.event(instance, answers=lambda _: "SLOW")
        assert "MainThread" in told(trail)
        server.wait_for(lambda: "it runs in threads from now on" in server.text())
        for each in (instance, other, client.start("blocks")):
            for _ in range(3):
                assert "kongps-handler" in told(client.event(each, answers=lambda _: "SLOW"))
        assert "MainThread" in told(client.event(instance, "log")), "its other phases stay"
        lines = [line for line in server.text().splitlines() if "has held the server" in line]
        assert len(lines) == 1
        assert "plugin blocks: the access handler" in lines[0]
        assert "without a PDK call, at line 16 of blocks.py" in lines[0]


def test_it_blocks_once_more_while_it_is_moved(plugins: Path, short_path: Path) -> None:
    write(plugins, "blocks", blocks())
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("blocks")
        # Known to be quick, and then it is not: many events are inline when it begins to block.
        for _ in range(100):
            client.event(instance, answers=lambda _: "GET")
        assert "MainThread" in told(client.event(instance, answers=lambda _: "GET"))
        client.event(instance, answers=lambda _: "SLOW")
        server.wait_for(lambda: "it runs in threads from now on" in server.text())
        assert "kongps-handler" in told(client.event(instance, answers=lambda _: "GET"))


@pytest.mark.parametrize(
    ("attributes", "words", "reason"),
    [
        ("blocking = False", (), "blocking = False"),
        ("", ("--handlers", "inline"), "--handlers inline"),
    ],
)
def test_a_handler_that_is_pinned_stays_and_is_told_of_once(
    plugins: Path, short_path: Path, attributes: str, words: tuple[str, ...], reason: str
) -> None:
    write(plugins, "blocks", blocks(attributes))
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server)
        instance = client.start("blocks")
        for _ in range(3):
            assert "MainThread" in told(client.event(instance, answers=lambda _: "SLOW"))
        server.wait_for(lambda: f"it stays inline, because of {reason}" in server.text())
        assert server.text().count("has held the server") == 1


def test_the_threshold_can_be_set(plugins: Path, short_path: Path) -> None:
    write(plugins, "blocks", blocks())
    for words in (("--block-threshold", "0.5"), ("--block-threshold", "0")):
        with serving(plugins, short_path / "k.sock", *words) as server:
            client = Client(server)
            instance = client.start("blocks")
            for _ in range(3):
                client.event(instance, answers=lambda _: "SLOW")
            time.sleep(0.2)
            assert "has held the server" not in server.text()


def test_a_constructor_that_blocks_is_reported(plugins: Path, short_path: Path) -> None:
    write(plugins, "blocks", blocks("", "time.sleep(0.4)"))
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        assert not failed(client.event(client.start("blocks")))
        server.wait_for(lambda: "the constructor has held the server" in server.text())
        assert "move what takes time to start()" in server.text()


def test_a_block_after_a_quiet_time_is_seen(plugins: Path, short_path: Path) -> None:
    write(plugins, "blocks", blocks())
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("blocks")
        time.sleep(2.5)  # the watchdog dozes
        client.event(instance, answers=lambda _: "SLOW")
        server.wait_for(lambda: "has held the server" in server.text(), 2)


def test_a_server_without_work_hardly_uses_the_processor(plugins: Path, short_path: Path) -> None:
    def ticks() -> int:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        client.event(client.start("hello"))
        time.sleep(2)
        before = ticks()
        time.sleep(3)
        assert ticks() - before <= 3


def test_another_plugin_goes_on_while_one_blocks(plugins: Path, short_path: Path) -> None:
    write(plugins, "sleeps", "import time\nclass Plugin:\n"
          "    def access(self, kong):\n        time.sleep(0.05)\n")  # fmt: skip
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        hello, sleeps = client.start("hello"), client.start("sleeps")
        client.event(sleeps)
        with at_once(server, sleeps, 50):
            worst = 0.0
            for _ in range(20):
                began = time.monotonic()
                client.event(hello)
                worst = max(worst, time.monotonic() - began)
        assert worst < 1.0
        assert status(server)["Events"] == 0


def test_what_the_watchdog_calls_may_raise(capfd: pytest.CaptureFixture[str]) -> None:
    """Then no visit counts as one that has not ended."""
    import ctypes

    def blocked(*args: Any) -> None:
        calls.append(args)
        raise SystemExit("from what was told")

    calls: list[Any] = []
    runner = InlineRunner()
    watchdog = Watchdog(runner.visits, 0.01, 0.3, blocked)
    watchdog.start()
    try:
        for _ in range(3):
            runner.visit("a hook", lambda: time.sleep(0.05))  # the watchdog's thread tells
            runner.visit("a hook", lambda: ctypes.PyDLL(None).usleep(50_000))  # leaving does
        count = len(calls)
        assert count >= 4
        time.sleep(0.8)
        assert len(calls) == count
        runner.visit("a hook", lambda: None)  # it is not interrupted either
    finally:
        watchdog.stop()


def python(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(), stdout=subprocess.PIPE, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def work(seconds: float) -> None:
    """Takes that much of the processor."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_handler_is_not_blamed_while_python_looks_for_garbage() -> None:
    calls: list[Any] = []
    runner = InlineRunner()
    watchdog = Watchdog(runner.visits, 0.02, 10, lambda *args: calls.append(args))
    kept = [[number] for number in range(2_000_000)]  # as of a plugin with much in memory
    watchdog.start()
    try:
        began = time.monotonic()
        runner.visit("collects", lambda: [gc.collect() for _ in range(3)])
        assert time.monotonic() - began > 0.04, "long enough to be blamed"
        assert len(kept) == 2_000_000
        time.sleep(0.1)
        assert not calls
        runner.visit("sleeps", lambda: time.sleep(0.06))
        runner.visit("works", lambda: work(0.06))
        assert [hook for _, hook, *_ in calls] == ["sleeps", "works"]
    finally:
        watchdog.stop()
    assert not [one for one in gc.callbacks if "Watchdog" in repr(one)]


@pytest.mark.parametrize("lost", [
    "gc.callbacks.clear()",  # a plugin may do that, also in the middle
    "time.sleep(0.06)",
])  # fmt: skip
def test_a_finalizer_that_blocks_is_reported(lost: str) -> None:
    done = python(f"""
        import gc, time
        from kongps.core.runners.inline import InlineRunner
        from kongps.core.runners.watchdog import Watchdog

        class Lost:
            def __init__(self):
                self.itself = self
            def __del__(self):
                {lost}

        calls = []
        runner = InlineRunner()
        watchdog = Watchdog(runner.visits, 0.02, 10, lambda *args: calls.append(args[1]))
        watchdog.start()
        Lost()
        runner.visit("collects", gc.collect)
        runner.visit("sleeps", lambda: time.sleep(0.06))
        time.sleep(0.1)
        print(*calls)
        watchdog.stop()
        """)
    assert done.split() == (["collects"] if "sleep" in lost else []) + ["sleeps"]


def test_a_stop_of_the_process_is_not_taken_off_twice() -> None:
    """A handler that works on for long after it is blamed for that."""
    done = python("""
        import os, signal, subprocess, time
        from kongps.core.runners.inline import InlineRunner
        from kongps.core.runners.watchdog import Watchdog

        def stopped():
            me = os.getpid()
            os.system(f"(sleep 2.5; kill -CONT {me}) & kill -STOP {me}")
            until = time.thread_time() + 1
            while time.thread_time() < until:
                pass

        calls = []
        runner = InlineRunner()
        watchdog = Watchdog(runner.visits, 0.1, 10, lambda *args: calls.append(args[1]))
        watchdog.start()
        time.sleep(0.1)
        runner.visit("stopped", stopped)
        print(*calls)
        """)
    assert done.split() == ["stopped"]


STARVED = """
import os, time
from kongps.core.runners.inline import InlineRunner
from kongps.core.runners.watchdog import Watchdog

def work():
    "Takes 5 ms of the processor."
    until = time.thread_time() + 0.005
    while time.thread_time() < until:
        pass

calls = []
runner = InlineRunner()
watchdog = Watchdog(runner.visits, 0.02, 10, lambda *args: calls.append(args[1]))
watchdog.start()  # its threads have all processors
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.nice(10)
worst = 0.0
while worst < 0.04:  # long enough to be blamed
    began = time.monotonic()
    runner.visit("works", work)
    worst = max(worst, time.monotonic() - began)
    time.sleep(0.01)
runner.visit("sleeps", lambda: time.sleep(0.1))
time.sleep(0.1)
print(*calls)
"""


def test_a_handler_is_not_blamed_while_others_have_the_processor() -> None:
    spins = f"""
        import os
        os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
        while os.getppid() == {os.getpid()}:
            pass
        """
    busy = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(spins)]) for _ in range(3)
    ]  # fmt: skip
    try:
        assert python(STARVED).split() == ["sleeps"]
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_a_signal_of_a_plugin_that_raises_while_the_server_notes_a_block(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "rings",
        """
        import ctypes, signal

        def ring(*_):
            raise TimeoutError("rung")

        class Plugin:
            def access(self, kong):
                signal.signal(signal.SIGALRM, ring)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                ctypes.PyDLL(None).usleep(100_000)
        """,
    )
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server)
        instance = client.start("rings")
        for _ in range(3):
            client.event(instance)
        time.sleep(7)  # longer than the timeout and the grace together
        assert server.process.poll() is None, server.text()
        assert status(server)["Events"] == 0
