"""Handlers that do not end, or not in time, wherever they run: what becomes of their events."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import msgpack
import pytest
from client import EXIT, PROTOCOLS, Client, at_once, failed, told
from plugin_files import write
from server_process import Process, is_quiet, serving, status

STUCK = """
import asyncio, ctypes, os, signal, threading, time

class Plugin:
    {attributes}
    how: str = ""
    seconds: float = 0.0

    def access(self, kong):
        if self.how == "sleep":
            time.sleep(self.seconds or 600)
        if self.how == "naps":
            time.sleep(self.seconds)
            return
        if self.how == "loop":
            while True:
                pass
        if self.how == "swallow":
            while True:
                try:
                    time.sleep(600)
                except BaseException:
                    pass
        if self.how == "lock":
            # Keeps the GIL: a PyDLL does not release it.
            ctypes.PyDLL(None).usleep(int(self.seconds * 1e6))
        if self.how == "locks":
            for _ in range(1000):
                ctypes.PyDLL(None).usleep(900_000)
        if self.how == "asks":
            kong.request.get_method()
            time.sleep(self.seconds)
            kong.request.get_path()
        kong.log.notice("ended")
"""

ASYNC = """
import asyncio, time

class Plugin:
    how: str = ""
    path: str = ""

    async def access(self, kong):
        if self.path:
            with open(self.path, "a") as file:
                print("begun", file=file)
        try:
            if self.how == "awaits":
                await asyncio.Event().wait()
            if self.how == "blocks":
                time.sleep(4)
            if self.how == "blocks within":
                async def within():
                    time.sleep(4)
                await asyncio.gather(within())
            if self.how == "stubborn":
                for _ in range(20):
                    try:
                        await asyncio.sleep(0.2)
                    except asyncio.CancelledError:
                        pass
            await kong.request.get_method()
        finally:
            if self.path:
                with open(self.path, "a") as file:
                    print("finally", file=file)
"""


def stuck(attributes: str = "") -> str:
    return STUCK.format(attributes=attributes)


def how(word: str, **more: object) -> str:
    import json

    return json.dumps({"how": word, **more})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_thread_that_never_returns_fails_its_event_and_is_replaced(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    with serving(
        plugins, short_path / "k.sock", "--handler-timeout", "1", "--handler-threads", "2"
    ) as server:
        client = Client(server, protocol)
        fine, hangs = client.start("stuck"), client.start("stuck", how("sleep"))
        with at_once(server, hangs, 2, protocol) as events:
            trails = [event.result() for event in events]
        assert all(failed(trail) for trail in trails)
        assert all(
            "has not ended in 1 s, and is at line 11 of stuck.py" in told(trail) for trail in trails
        )
        assert "and is at line 11 of stuck.py in" in server.text()
        assert "ended" in told(client.event(fine))
        # Two more, and there are no threads left: events wait, and fail at their deadline.
        with at_once(server, hangs, 2, protocol) as events:
            assert all(failed(event.result()) for event in events)
        began = time.monotonic()
        trail = client.event(fine)
        assert failed(trail)
        assert "no thread: all were taken" in told(trail)
        assert 0.9 < time.monotonic() - began < 4
        assert "threads are stuck in handlers, and no more are started" in server.text()
        assert not failed(client.event(client.start("hello")))
        assert is_quiet(server)


def test_threads_that_come_back_are_used_again(plugins: Path, short_path: Path) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    with serving(
        plugins, short_path / "k.sock", "--handler-timeout", "0.5", "--handler-threads", "2"
    ) as server:
        client = Client(server)
        fine, late = client.start("stuck"), client.start("stuck", how("sleep", seconds=1.5))
        threads = Path(f"/proc/{server.process.pid}/task")
        for _ in range(2):
            with at_once(server, late, 4) as events:
                assert all(failed(event.result()) for event in events)
            server.wait_for(lambda: not failed(client.event(fine)))
            # The pool has its size again when all are back.
            server.wait_for(lambda: len(list(threads.iterdir())) <= 1 + 2 + 2)
        with at_once(server, fine, 20) as events:
            assert not any(failed(event.result()) for event in events)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_events_wait_for_a_full_pool_and_fail_at_their_deadline(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    with serving(
        plugins, short_path / "k.sock", "--handler-timeout", "2", "--handler-threads", "2"
    ) as server:
        client = Client(server, protocol)
        instance = client.start("stuck", how("sleep", seconds=0.3))
        with at_once(server, instance, 6, protocol) as events:
            assert not any(failed(event.result()) for event in events), "three rounds are in time"
        instance = client.start("stuck", how("sleep", seconds=1.2))
        with at_once(server, instance, 8, protocol) as events:
            trails = [event.result() for event in events]
        assert 2 <= sum(failed(trail) for trail in trails) <= 6
        assert is_quiet(server)
        assert not failed(client.event(client.start("stuck")))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("attributes", ["blocking = True", "blocking = False"])
def test_a_step_that_comes_after_the_deadline(
    plugins: Path, short_path: Path, protocol: str, attributes: str
) -> None:
    write(plugins, "stuck", stuck(attributes))
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server, protocol)
        instance = client.start("stuck", how("asks"))
        trail = client.event(instance, answers=lambda _: time.sleep(0.8))
        assert failed(trail)
        assert "a PDK call that has taken its time" in told(trail)
        assert [function for function, _ in trail].count("kong.request.get_path") == 0
        assert is_quiet(server)


@pytest.mark.parametrize("word", ["loop", "sleep"])
def test_an_inline_handler_that_never_returns_is_interrupted(
    plugins: Path, short_path: Path, word: str
) -> None:
    write(plugins, "stuck", stuck("blocking = False"))
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.6") as server:
        for protocol in PROTOCOLS:
            client = Client(server, protocol)
            trail = client.event(client.start("stuck", how(word)))
            assert failed(trail)
            assert "HandlerTimeout" in told(trail)
            assert "stuck.py" in told(trail)
            assert not failed(client.event(client.start("stuck")))
        assert is_quiet(server)


def ended_with(server: Process, timeout: float = 30.0) -> str:
    assert server.end(timeout) == 1
    return server.text()


def test_an_inline_handler_that_cannot_be_interrupted_ends_the_process(
    plugins: Path, short_path: Path
) -> None:
    write(plugins, "stuck", stuck("blocking = False"))
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server)
        client.begin(client.start("stuck", how("swallow")))
        assert "cannot be interrupted; ending the process" in ended_with(server)


@pytest.mark.parametrize("attributes", ["blocking = True", "blocking = False"])
@pytest.mark.parametrize("word", ["lock", "locks"])
def test_c_code_that_keeps_pythons_lock_for_ever_ends_the_process(
    plugins: Path, short_path: Path, attributes: str, word: str
) -> None:
    write(plugins, "stuck", stuck(attributes))
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server)
        instance = client.start("stuck", how(word, seconds=600))
        time.sleep(1.5)  # the watchdog dozes
        client.begin(instance)
        if word == "lock":
            text = ended_with(server)
            assert "ending the process, to be started again" in text
        elif attributes == "blocking = False":  # interrupted when the lock comes free
            assert failed(client.finish())
        else:
            assert failed(client.finish())
            assert "stuck.py" in server.text()


def test_c_code_that_keeps_pythons_lock_for_a_while_is_reported(
    plugins: Path, short_path: Path
) -> None:
    write(plugins, "stuck", stuck("blocking = False"))
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        assert not failed(client.event(client.start("stuck", how("lock", seconds=0.3))))
        server.wait_for(
            lambda: "plugin stuck: the access handler has held the server" in server.text()
        )


def test_a_server_that_was_stopped_for_long_is_not_taken_for_one_that_hangs(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server)
        instance = client.start("hello")
        client.begin(instance)
        time.sleep(1.5)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        assert server.process.poll() is None, server.text()
        assert not failed(Client(server).event(instance))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("word", ["awaits", "stubborn"])
def test_a_coroutine_that_never_ends_is_cancelled(
    plugins: Path, short_path: Path, protocol: str, word: str
) -> None:
    write(plugins, "stuck", ASYNC)
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.8") as server:
        client = Client(server, protocol)
        trail = client.event(client.start("stuck", how(word, path=str(path))))
        assert failed(trail)
        assert "of stuck.py" in told(trail), told(trail)
        server.wait_for(lambda: "finally" in path.read_text())
        assert not failed(client.event(client.start("stuck")))
        assert is_quiet(server)
        assert "Task was destroyed" not in server.text()


@pytest.mark.parametrize("word", ["blocks", "blocks within"])
@pytest.mark.parametrize("leaves", [False, True])
def test_an_async_handler_that_blocks_its_loop_is_left_behind(
    plugins: Path, short_path: Path, word: str, leaves: bool
) -> None:
    write(plugins, "stuck", ASYNC)
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "1") as server:
        client, blocks = Client(server), Client(server)
        fine = client.start("stuck")
        blocks.begin(client.start("stuck", how(word)))
        if leaves:  # Kong gives it up: nobody waits for the event that blocks
            time.sleep(0.1)
            blocks.close()
        began = time.monotonic()
        server.wait_for(lambda: not failed(client.event(fine)))
        assert time.monotonic() - began < 3.9, "it took until the handler came back"
        if not leaves:
            assert failed(blocks.finish())
        assert "stuck.py" in server.text()
        assert "must await everything that takes time" in server.text() or not leaves
        time.sleep(4)
        assert not failed(client.event(fine))
        threads = [
            Path(f"{each}/comm").read_text()
            for each in Path(f"/proc/{server.process.pid}/task").iterdir()
        ]
        assert is_quiet(server)
        assert len(threads) <= 5, threads


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["thread", "async", "waiting"])
def test_a_connection_that_is_lost_while_its_handler_runs_elsewhere(
    plugins: Path, short_path: Path, protocol: str, kind: str
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    write(plugins, "awaits", ASYNC)
    path = short_path / "notes"
    words = ("--handler-timeout", "2", "--handler-threads", "2")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server, protocol)
        if kind == "async":
            instance = client.start("awaits", how("awaits", path=str(path)))
        else:
            instance = client.start("stuck", how("sleep"))
        count = 2 if kind == "thread" else 5
        others = [Client(server, protocol) for _ in range(count)]
        for other in others:
            other.begin(instance)
        server.wait_for(lambda: status(server)["Events"] == count)
        if kind == "async":
            server.wait_for(lambda: path.exists() and path.read_text().count("begun") == count)
        for other in others:
            other.close()
        server.wait_for(lambda: is_quiet(server), 5)
        if kind == "async":
            server.wait_for(lambda: path.exists() and path.read_text().count("finally") == 5)
        else:
            # The threads hang all the same, and are found out although nobody waits.
            fine = client.start("stuck")
            server.wait_for(lambda: not failed(client.event(fine)), 8)
            assert "has not ended in 2 s, and is at line 11 of stuck.py" in server.text()
        assert "after its event was over" not in server.text()


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_kong_gives_up_an_event_whose_handler_runs_elsewhere(
    plugins: Path, short_path: Path, kind: str
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    write(plugins, "awaits", ASYNC)
    path = short_path / "notes"
    words = ("--event-timeout", "0.5", "--handler-timeout", "30")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server)
        if kind == "async":
            instance = client.start("awaits", how("awaits", path=str(path)))
        else:
            instance = client.start("stuck", how("asks", seconds=2.0))
        with pytest.raises((ConnectionError, OSError)):
            client.event(instance, answers=lambda _: "GET")
        assert "Kong has abandoned it" in server.text()
        assert is_quiet(server)
        if kind == "async":
            server.wait_for(lambda: "finally" in path.read_text())


@pytest.mark.parametrize("kind", ["thread", "async"])
@pytest.mark.parametrize("seconds", [1.0, 600])
def test_sigterm_while_handlers_run_elsewhere(
    plugins: Path, short_path: Path, kind: str, seconds: float
) -> None:
    text = """
        import asyncio, time

        class Plugin:
            blocking = True
            seconds: float

            KIND access(self, kong):
                SLEEP(self.seconds)
                AWAIT kong.response.exit(204)
        """
    is_async = kind == "async"
    text = text.replace("KIND", "async def" if is_async else "def")
    text = text.replace("SLEEP", "await asyncio.sleep" if is_async else "time.sleep")
    write(plugins, "slow", text.replace("AWAIT ", "await " if is_async else ""))
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "2") as server:
        client = Client(server)
        instance = client.start("slow", f'{{"seconds": {seconds}}}')
        client.begin(instance)
        server.wait_for(lambda: status(server)["Events"] == 1)
        server.process.terminate()
        if seconds == 1.0:
            assert client.finish()[-1][0] == EXIT
        began = time.monotonic()
        assert server.end(10) == 0, server.text()
        assert time.monotonic() - began < 6
        assert ("had not ended in time" in server.text()) is (seconds == 600)
        assert "Task was destroyed" not in server.text()
        assert "Traceback" not in server.text()


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_second_sigterm_does_not_wait(plugins: Path, short_path: Path, kind: str) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    write(plugins, "awaits", ASYNC)
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "60") as server:
        client = Client(server)
        if kind == "async":
            client.begin(client.start("awaits", how("awaits")))
        else:
            client.begin(client.start("stuck", how("sleep")))
        server.wait_for(lambda: status(server)["Events"] == 1)
        server.process.terminate()
        server.wait_for(lambda: "stopping; 1 events" in server.text())
        server.process.terminate()
        began = time.monotonic()
        assert server.end(10) == 0, server.text()
        assert time.monotonic() - began < 4
        assert "not waiting" in server.text()


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("returns", [True, False])
def test_a_child_that_a_handler_elsewhere_forks_ends_by_itself(
    plugins: Path, short_path: Path, kind: str, returns: bool
) -> None:
    awaits = "await " if kind == "async def" else ""
    write(
        plugins,
        "forks",
        f"""
        import os, time

        class Plugin:
            blocking = True

            {kind} access(self, kong):
                child = os.fork()
                if child == 0 and {not returns}:
                    time.sleep(0.2)
                    {awaits}kong.log.notice("from the child")
                    time.sleep(60)
                {awaits}kong.log.notice(str(child))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, "protobuf")
        instance = client.start("forks")
        for _ in range(3):
            trail = client.event(instance)
            assert len(trail) == 1, "the child has spoken"
            child = int(trail[0][1].strip("[]'"))
            assert child > 0

            def gone(pid: int = child) -> bool:
                try:
                    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    return True
                return state == "Z"

            try:
                server.wait_for(gone, 8)
            finally:
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
        assert is_quiet(server)


@pytest.mark.parametrize("attributes", ["blocking = True", "blocking = False"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_threads_that_a_handler_starts_cannot_call_the_pdk(
    plugins: Path, short_path: Path, protocol: str, attributes: str
) -> None:
    write(
        plugins,
        "starts",
        f"""
        import threading, time

        class Plugin:
            {attributes}
            path: str

            def access(self, kong):
                during = threading.Thread(target=self.call, args=(kong, 0))
                during.start()
                after = threading.Thread(target=self.call, args=(kong, 0.3))
                after.start()
                during.join()
                kong.log.notice("from the handler")

            def call(self, kong, delay):
                time.sleep(delay)
                functions = kong.request.get_method, kong.response.exit, kong.request.get_path
                for function in functions:
                    try:
                        function(*[200] * (function.__name__ == "exit"))
                    except Exception as error:
                        with open(self.path, "a") as file:
                            print(type(error).__name__, error, file=file)
        """,
    )
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        instance = client.start("starts", f'{{"path": "{path}"}}')
        for count in (1, 2):
            trail = client.event(instance)
            assert [function for function, _ in trail] == ["kong.log.notice"]

            def written(lines: int = 6 * count) -> bool:
                return path.exists() and path.read_text().count("\n") >= lines

            server.wait_for(written)
        for line in path.read_text().splitlines():
            assert line.startswith("PDKError")
            assert "outside the handler" in line
            assert "the event is over" in line
        assert not failed(client.event(client.start("hello")))


def test_a_peer_that_sends_thousands_of_events_and_does_not_read(
    plugins: Path, short_path: Path
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    write(plugins, "awaits", ASYNC)
    with serving(plugins, short_path / "k.sock", "--handler-threads", "4") as server:
        client = Client(server)
        slow, quick = client.start("stuck", how("naps", seconds=0.2)), client.start("awaits")
        before = status(server)["Memory"]
        greedy = server.connect()
        greedy.socket.settimeout(1)
        sent = 0
        with contextlib.suppress(socket.timeout, TimeoutError):
            for number in range(200_000):
                argument = {"InstanceId": (slow, quick)[number % 2], "EventName": "access"}
                greedy.socket.sendall(
                    msgpack.packb([0, number % 100, "plugin.HandleEvent", [argument]])
                )
                sent += 1
        assert sent < 200_000, "it is read without end"
        assert status(server)["Memory"] - before < 20_000_000
        assert not failed(client.event(quick))
        greedy.close()
        server.wait_for(lambda: not failed(client.event(slow)))


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_frame_that_answers_nothing_while_a_handler_runs_elsewhere(
    plugins: Path, short_path: Path, kind: str
) -> None:
    write(plugins, "stuck", stuck("blocking = True"))
    write(plugins, "awaits", ASYNC)
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect_protobuf()
        if kind == "async":
            instance = wire.start("awaits", how("awaits"))
        else:
            instance = wire.start("stuck", how("asks", seconds=0.5))
        wire.begin(instance)
        if kind == "thread":
            asked = wire.read_asked()
            assert asked is not None
            wire.answer(asked, "GET")
        time.sleep(0.1)
        wire.begin(instance)
        with pytest.raises((ConnectionError, OSError)):
            wire.receive()
        server.wait_for(lambda: is_quiet(server))
        assert "while an event is under way" in server.text()
        assert not failed(Client(server).event(Client(server).start("hello")))
