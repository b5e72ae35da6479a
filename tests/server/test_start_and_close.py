"""``start()`` and ``close()`` of a plugin's object."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from client import PROTOCOLS, Client, at_once, failed, told
from plugin_files import write
from server_process import Process, is_quiet, serving, status

HOOKS = """
import asyncio, threading, time

class Plugin:
    {attributes}
    path: str
    takes: float = 0.0
    fails: bool = False
    ends: float = 0.0

    {start} start(self):
        self.note("start begins")
        {await_start}{sleep_start}(self.takes)
        if self.fails:
            raise ValueError("oh no")
        self.note("start")

    {kind} access(self, kong):
        self.note("access")
        {await_access}kong.request.get_method()

    {close} close(self):
        {await_close}{sleep_close}(self.ends)
        self.note("close")

    def note(self, what):
        with open(self.path, "a") as file:
            print(what, threading.current_thread().name.rstrip("0123456789"), file=file)
"""

MAIN, THREAD, ASYNC = "MainThread", "kongps-handler-", "kongps-async-"

MODES = {
    "inline": ("blocking = False", "def", "def", MAIN),
    "thread": ("blocking = True", "def", "def", THREAD),
    "async": ("", "async def", "async def", ASYNC),
    "async, with a plain start": ("", "async def", "def", ASYNC),
    "plain, with an async start": ("blocking = True", "def", "async def", ASYNC),
}


def hooks(mode: str) -> str:
    attributes, kind, hook, _ = MODES[mode]
    return HOOKS.format(
        attributes=attributes,
        kind=kind,
        start=hook,
        close=hook,
        await_access="await " if kind == "async def" else "",
        await_start="await " if hook == "async def" else "",
        await_close="await " if hook == "async def" else "",
        sleep_start="asyncio.sleep" if hook == "async def" else "time.sleep",
        sleep_close="asyncio.sleep" if hook == "async def" else "time.sleep",
    )


def config(path: Path, **more: object) -> str:
    import json

    return json.dumps({"path": str(path), **more})


def notes(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_they_are_called_once_each_where_the_handlers_run(
    plugins: Path, short_path: Path, protocol: str, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    where = MODES[mode][3]
    handlers = THREAD if mode.startswith("plain") else where
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        instance = client.start("hooks", config(path))
        for _ in range(3):
            assert not failed(client.event(instance))
        client.close_instance(instance)
        expected = [f"start begins {where}", f"start {where}", *[f"access {handlers}"] * 3,
                    f"close {where}"]  # fmt: skip
        server.wait_for(lambda: len(notes(path)) >= len(expected))
        server.process.terminate()
        assert server.end() == 0
        assert notes(path) == expected


@pytest.mark.parametrize("mode", MODES)
def test_close_is_called_at_the_servers_end(plugins: Path, short_path: Path, mode: str) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "1") as server:
        client = Client(server)
        for number in range(3):
            instance = client.start("hooks", config(path, takes=0.01, ends=0.1 * number))
            assert not failed(client.event(instance))
        server.process.terminate()
        assert server.end() == 0
        assert [note.split()[0] for note in notes(path)].count("close") == 3
        assert "Traceback" not in server.text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", ["thread", "async"])
def test_events_wait_for_start(plugins: Path, short_path: Path, protocol: str, mode: str) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        began = time.monotonic()
        instance = client.start("hooks", config(path, takes=0.5))
        assert time.monotonic() - began < 0.4, "StartInstance does not wait"
        with at_once(server, instance, 10, protocol) as events:
            time.sleep(0.2)
            assert not failed(client.event(client.start("hello"))), "others do not wait"
            assert not any(failed(event.result()) for event in events)
        assert [note.split()[0] for note in notes(path)] == [
            "start", "start", *["access"] * 10,
        ]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_a_start_that_raises_fails_the_events(
    plugins: Path, short_path: Path, protocol: str, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        instance = client.start("hooks", config(path, takes=0.2, fails=True))
        for _ in range(2):
            assert failed(client.event(instance))
        client.close_instance(instance)
        assert "its start() raised ValueError" in server.text()
        assert "oh no" in server.text()
        assert [note.split()[0] for note in notes(path)] == ["start"]
        assert not failed(client.event(client.start("hooks", config(path))))
        assert is_quiet(server)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_a_start_that_hangs_fails_the_events(
    plugins: Path, short_path: Path, protocol: str, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    words = ("--handler-timeout", "0.6", "--handler-threads", "1")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server, protocol)
        instance = client.start("hooks", config(path, takes=4))
        for _ in range(2):
            assert failed(client.event(instance))
        if "inline" in mode:
            assert "its start() raised HandlerTimeout" in server.text()
        else:
            assert "its start() has not ended in 0.6 s" in server.text()
        if mode == "async, with a plain start":
            server.wait_for(lambda: "the asyncio loop has been blocked" in server.text())
            return
        if mode == "thread":
            server.wait_for(lambda: "start of plugin hooks has not ended in 0.6 s, and is at line"
                            in server.text())  # fmt: skip
        # Neither the only thread nor the asyncio loop is lost with it.
        assert not failed(client.event(client.start("hooks", config(path))))
        assert is_quiet(server)


@pytest.mark.parametrize("mode", ["thread", "async, with a plain start"])
def test_what_starts_after_its_time_is_closed(plugins: Path, short_path: Path, mode: str) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "0.5") as server:
        client = Client(server)
        instance = client.start("hooks", config(path, takes=1.5))
        assert failed(client.event(instance))
        server.wait_for(lambda: len(notes(path)) == 3)
        assert [note.split()[0] for note in notes(path)] == ["start", "start", "close"]
        assert failed(client.event(instance)), "it stays failed"
        client.close_instance(instance)
        server.process.terminate()
        assert server.end() == 0
        assert len(notes(path)) == 3, "closed once"


@pytest.mark.parametrize("mode", ["thread", "async"])
def test_an_instance_that_is_closed_while_it_starts(
    plugins: Path, short_path: Path, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client, other = Client(server), Client(server)
        instance = client.start("hooks", config(path, takes=0.5))
        other.begin(instance)
        time.sleep(0.1)
        client.close_instance(instance)
        assert not failed(other.finish()), "an event under way goes on to its end"
        server.wait_for(lambda: len(notes(path)) == 4)
        assert sorted(note.split()[0] for note in notes(path)) == [
            "access", "close", "start", "start",
        ]  # fmt: skip
        assert is_quiet(server)


@pytest.mark.parametrize("mode", ["thread", "async"])
def test_a_server_that_ends_while_an_instance_starts(
    plugins: Path, short_path: Path, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "3") as server:
        client = Client(server)
        client.start("hooks", config(path, takes=0.5))
        server.process.terminate()
        assert server.end() == 0
        assert [note.split()[0] for note in notes(path)] == ["start", "start", "close"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_that_is_lost_while_its_event_waits_for_start(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(plugins, "hooks", hooks("plain, with an async start").replace("blocking = True", ""))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        client, other = Client(server, protocol), Client(server, protocol)
        instance = client.start("hooks", config(path, takes=0.5))
        other.begin(instance)
        server.wait_for(lambda: status(server)["Events"] == 1)
        other.close()
        server.wait_for(lambda: is_quiet(server), 0.4)
        assert not failed(client.event(instance))
        assert [note.split()[0] for note in notes(path)].count("access") == 1
        assert "Traceback" not in server.text()


@pytest.mark.parametrize("mode", ["thread", "async"])
def test_a_close_that_hangs_or_raises_stays_its_own(
    plugins: Path, short_path: Path, mode: str
) -> None:
    write(plugins, "hooks", hooks(mode))
    path = short_path / "notes"
    words = ("--handler-timeout", "0.5", "--handler-threads", "1", "--shutdown-timeout", "0.5")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server)
        instance = client.start("hooks", config(path, ends=600))
        client.event(instance)
        client.close_instance(instance)
        server.wait_for(lambda: "close of plugin hooks has not ended in 0.5 s, and is at line"
                        in server.text())  # fmt: skip
        instance = client.start("hooks", config(path))
        assert not failed(client.event(instance))
        if mode == "async":
            server.wait_for(lambda: "close of instance" in server.text())
        server.process.terminate()
        assert server.end() == 0


def test_many_instances_start_once_each(plugins: Path, short_path: Path) -> None:
    write(plugins, "hooks", hooks("thread"))
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock", "--handler-threads", "8") as server:

        def run(number: int, server: Process = server) -> None:
            client = Client(server, PROTOCOLS[number % 2])
            for _ in range(5):
                instance = client.start("hooks", config(path, takes=0.01))
                assert not failed(client.event(instance))
                client.close_instance(instance)
            client.close()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.wait_for(lambda: notes(path).count(f"close {THREAD}") == 50)
        assert notes(path).count(f"start {THREAD}") == 50
        assert notes(path).count(f"access {THREAD}") == 50
        assert status(server)["Instances"] == 0


def test_a_plugin_whose_handlers_went_to_threads_starts_there(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "moves",
        """
        import sys

        class Plugin:
            def start(self):
                self._where = sys.modules["threading"].current_thread().name

            def access(self, kong):
                sys.modules["time"].sleep(0.1)
                kong.log.notice(self._where)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        assert "MainThread" in told(client.event(client.start("moves")))
        server.wait_for(lambda: "it runs in threads from now on" in server.text())
        assert "write blocking = True in the plugin" in server.text()
        assert "kongps-handler" in told(client.event(client.start("moves")))
        status_of = status(server)["Plugins"]["moves"]
        assert status_of["RunsIn"] == {"access": "threads"}


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_the_log_says_where_the_handlers_of_each_plugin_run_and_why(
    plugins: Path, short_path: Path, workers: tuple[str, ...]
) -> None:
    write(plugins, "waits", "import socket\nclass Plugin:\n    def access(self, kong): ...\n")
    write(plugins, "awaits", "class Plugin:\n    async def access(self, kong): ...\n")
    path = short_path / "k.sock"
    with serving(plugins, path, *workers) as server:
        runs_in = {name: each["RunsIn"] for name, each in status(server)["Plugins"].items()}
        assert runs_in == {
            "hello": {"access": "inline"},
            "waits": {"access": "threads"},
            "awaits": {"access": "asyncio"},
        }
        lines = [line for line in server.text().splitlines() if "handlers run" in line]
        assert len(lines) == 3
        for words in (
            "plugin hello: its handlers run inline: it uses no module",
            "plugin waits: its handlers run in threads: it uses socket (line 1)",
            "plugin awaits: its handlers run under asyncio",
        ):
            assert sum(words in line for line in lines) == 1, lines
    with serving(plugins, path, "--handlers", "inline", *workers) as server:
        assert status(server)["Plugins"]["waits"]["RunsIn"] == {"access": "inline"}
        assert "plugin waits: its plain handlers run inline: --handlers inline" in server.text()
