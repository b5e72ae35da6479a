"""New code in a running server: SIGHUP and --reload."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from paths import SRC
from plugin_files import write
from server_process import Process, run, serving
from several_workers import alive, finish, one_in_each, workers_of

OLD = """
    class Plugin:
        name: str = ""

        def access(self, kong):
            host = kong.request.get_header("host")
            kong.response.set_header("x-seen", f"{self.name} {host}")
            kong.request.get_method()
"""
NEW = OLD.replace("{self.name} {host}", "new {self.name} {host}")


@pytest.fixture
def directory(short_path: Path) -> Path:
    plugins = short_path / "plugins"
    plugins.mkdir()
    write(plugins, "seen", OLD)
    return plugins


def reload(server: Process, outcome: str = "the new code serves") -> None:
    before = server.text().count(outcome)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.text().count(outcome) > before)


def test_a_reload_brings_new_code_to_connections_and_instances_that_were_there(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = one_in_each(server, 4)
        others = [server.connect_protobuf() for _ in range(4)]
        instance = wires[0].start("seen", '{"name": "n"}')
        finish(wires[0], wires[0].event(instance), "n", "h")
        old = workers_of(server)
        write(directory, "seen", "import socket\n" + textwrap.dedent(NEW))
        reload(server)
        assert server.text().count("plugin seen: its handlers run in threads") == 1
        server.wait_for(lambda: not any(alive(pid) for pid in old))
        for wire in wires:
            finish(wire, wire.event(instance), "new n", "h")
        answers = {"kong.request.get_header": "h", "kong.request.get_method": "GET"}
        for other in others:
            trail = other.event(instance, answers=lambda asked: answers.get(asked.function))
            assert b"new n h" in trail[1].message
        assert "Traceback" not in server.text()


def test_events_that_are_under_way_finish_with_the_old_code(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = one_in_each(server, 4)
        instance = wires[0].start("seen", '{"name": "n"}')
        events = [wire.event(instance) for wire in wires]
        other = server.connect_protobuf()
        other.begin(instance)
        asked = other.read_asked()
        old = workers_of(server)
        write(directory, "seen", NEW)
        reload(server)
        finish(server.connect(), server.connect().event(instance), "new n", "h")
        for wire, answer in zip(reversed(wires), events):
            finish(wire, answer, "n", "h")
        assert all(alive(pid) for pid in old[:1])
        assert asked is not None
        other.answer(asked, "h")
        asked = other.read_asked()
        assert asked is not None
        assert b"n h" in asked.message
        assert b"new" not in asked.message
        other.answer(asked)
        asked = other.read_asked()
        assert asked is not None
        other.answer(asked, "GET")
        assert other.read_asked() is None
        server.wait_for(lambda: not any(alive(pid) for pid in old))


def test_a_connection_of_a_dead_worker_outlives_a_reload_before_kong_has_answered(
    directory: Path, short_path: Path
) -> None:
    write(
        directory,
        "logs",
        """
        class Plugin:
            def log(self, kong):
                kong.log.notice("a")
                kong.log.notice("b")
                kong.request.get_header("host")
        """,
    )
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = [server.connect_protobuf() for _ in range(2)]
        instance = wires[0].start("logs")
        asked = []
        for wire in wires:
            wire.begin(instance, "log")
            asked.append([wire.read_asked() for _ in range(3)])
        os.kill(workers_of(server)[0], signal.SIGKILL)
        server.wait_for(lambda: len(workers_of(server)) == 2)
        old = workers_of(server)
        reload(server)
        for wire, calls in zip(wires, asked):
            for one in calls:
                assert one is not None
                wire.answer(one, "h" if one.function == "kong.request.get_header" else None)
                time.sleep(0.1)
            assert wire.read_asked() is None
            assert len(wire.event(instance, "log")) == 3
        server.wait_for(lambda: not any(alive(pid) for pid in old))


def test_a_plugin_that_no_longer_loads_keeps_the_old_code(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wire = server.connect()
        instance = wire.start("seen", '{"name": "n"}')
        before = set(workers_of(server))
        write(directory, "seen", "import nothing_like_that\n")
        reload(server, "the old code goes on")
        line = next(one for one in server.text().splitlines() if "the old code goes on" in one)
        assert "nothing_like_that" in line
        finish(wire, wire.event(instance), "n", "h")
        assert set(workers_of(server)) == before
        write(directory, "seen", NEW)
        reload(server)
        server.wait_for(lambda: not set(workers_of(server)) & before)
        assert "the supervisor is gone" not in server.text()
        finish(wire, wire.event(instance), "new n", "h")


def test_new_code_that_kills_its_process_keeps_the_old(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wire = server.connect()
        instance = wire.start("seen", '{"name": "n"}')
        write(directory, "seen", "import os\nos.kill(os.getpid(), 9)\n")
        reload(server, "the old code goes on")
        assert "was killed by signal 9" in server.text()
        finish(wire, wire.event(instance), "n", "h")


def test_no_request_is_lost_during_a_reload(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        instance = server.connect().start("seen", '{"name": "n"}')
        done = threading.Event()
        failures: list[BaseException] = []
        counts = [0] * 6

        def client(number: int) -> None:
            try:
                wire = server.connect()
                other = server.connect_protobuf()
                answers = {"kong.request.get_header": "h", "kong.request.get_method": "GET"}
                while not done.is_set():
                    answer = wire.step(wire.event(instance), f"h{number}")
                    assert answer["Data"]["Args"][1].endswith(f"n h{number}")
                    assert wire.step(wire.step(answer), "GET")["Data"] == "ret"
                    trail = other.event(instance, answers=lambda one: answers.get(one.function))
                    assert len(trail) == 3
                    counts[number] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                old = workers_of(server)
                reload(server)
                server.wait_for(lambda old=old: not any(alive(pid) for pid in old))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert min(counts) > 3


def test_hanging_up_on_a_server_without_a_supervisor_does_not_end_it(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock") as server:
        wire = server.connect()
        wire.call("GetStatus", 0)  # it runs, and takes signals
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "SIGHUP" in server.text())
        assert "--workers 2 or more, or --reload" in server.text()
        assert wire.call("GetStatus", 0)["Pid"] == server.process.pid


def test_a_file_that_changes_is_reloaded(directory: Path, short_path: Path) -> None:
    pytest.importorskip("watchfiles")
    with serving(directory, short_path / "k.sock", "--reload") as server:
        wire = server.connect()
        instance = wire.start("seen", '{"name": "n"}')
        finish(wire, wire.event(instance), "n", "h")
        server.wait_for(lambda: "watching" in server.text())
        write(directory, "seen", NEW)
        server.wait_for(lambda: "the new code serves" in server.text())
        finish(wire, wire.event(instance), "new n", "h")


def test_reload_without_watchfiles_says_what_to_install(directory: Path, short_path: Path) -> None:
    hidden = short_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'watchfiles' else find(name, *rest)\n"
    )
    refused = run(
        "serve", "--plugins-directory", str(directory), "--socket", str(short_path / "k.sock"),
        "--reload", PYTHONPATH=os.pathsep.join([str(hidden), *sys.path[:0], source()]),
    )  # fmt: skip
    assert refused.returncode == 2
    assert b"pip install 'kongps[reload]'" in refused.stderr


def source() -> str:
    return str(SRC)
