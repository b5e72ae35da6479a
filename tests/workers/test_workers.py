"""Several workers behind one socket: where events live, what a death costs, how all of it ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import msgpack
import pytest
from client import Asked, RPCError, Socket
from plugin_files import write
from server_process import run, serving
from several_workers import alive, finish, one_in_each, workers_of

PLUGIN = """
    import os

    class Plugin:
        name: str = ""

        def access(self, kong):
            host = kong.request.get_header("host")
            kong.response.set_header("x-seen", f"{self.name} {host}")
            kong.request.get_method()

        def log(self, kong):
            kong.request.get_header("host")
"""

EXIT = {
    "Method": "kong.response.exit",
    "Args": [500, {"message": "An unexpected error occurred"}],
}


@pytest.fixture
def directory(short_path: Path) -> Path:
    """A plugins directory with one plugin, `seen`."""
    plugins = short_path / "plugins"
    plugins.mkdir()
    write(plugins, "seen", PLUGIN)
    return plugins


def pid_of(wire: Socket) -> int:
    """The worker that has a connection: the only one whose status comes without a question."""
    pid: int = wire.call("GetStatus", 0)["Workers"][0]["Pid"]
    return pid


def answering(host: str) -> Callable[[Asked], Any]:
    """What Kong answers in an event of `seen`."""
    answers = {"kong.request.get_header": host, "kong.request.get_method": "GET"}
    return lambda asked: answers.get(asked.function)


def test_an_instance_that_one_worker_started_is_known_in_all(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "3") as server:
        wires = one_in_each(server, 3)
        assert len({pid_of(wire) for wire in wires}) == 3
        instance = wires[0].start("seen", '{"name": "one"}')
        for wire in wires:
            finish(wire, wire.event(instance), "one", "h")
            assert wire.call("InstanceStatus", instance)["Config"] == {"name": "one"}


def test_without_an_instance_store_instances_are_known_in_all_and_leave_nothing(
    directory: Path, short_path: Path
) -> None:
    private = short_path / "tmp"
    private.mkdir()
    with serving(
        directory, short_path / "k.sock", "--workers", "2", "--no-instance-store",
        TMPDIR=str(private),
    ) as server:  # fmt: skip
        one, two = one_in_each(server)
        # Larger than what is kept for a restart.
        instance = one.start("seen", '{"name": "one", "more": "' + "m" * 2_000_000 + '"}')
        finish(two, two.event(instance), "one", "h")
        assert list(private.iterdir())
        server.process.terminate()
        assert server.end() == 0
    assert not list(private.iterdir())
    assert not (short_path / "k.sock.d").exists()


def test_an_instance_that_is_closed_in_one_worker_is_closed_in_all(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        instance = one.start("seen")
        finish(two, two.event(instance), "", "h")
        assert one.call("CloseInstance", instance)["Id"] == instance
        server.wait_for(lambda: not one.call("GetStatus", 0)["Instances"])
        for wire in (one, two):
            with pytest.raises(RPCError, match="No plugin instance"):
                wire.event(instance)


def test_steps_may_come_on_connections_of_any_worker(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "3") as server:
        wires = one_in_each(server, 12)
        instances = {name: wires[0].start("seen", f'{{"name": "{name}"}}') for name in "abc"}
        dice = random.Random(7)
        pending = []
        for number in range(300):
            name = dice.choice("abc")
            answer = dice.choice(wires).event(instances[name])
            pending.append((name, f"host-{number}", answer))
        assert len({answer["EventId"] for _, _, answer in pending}) == 300
        assert all(answer["EventId"] < 2**53 for _, _, answer in pending)
        dice.shuffle(pending)
        seen = Counter()
        for name, host, answer in pending:
            answer = dice.choice(wires).step(answer, host)
            assert answer["Data"]["Args"] == ["x-seen", f"{name} {host}"]
            answer = dice.choice(wires).step(answer)
            answer = dice.choice(wires).step(answer, "GET")
            seen[answer["Data"]] += 1
        assert seen == {"ret": 300}
        assert wires[0].call("GetStatus", 0)["Events"] == 0


def test_a_step_that_cannot_be_decoded_costs_its_connection_and_not_the_link_between_workers(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        instance = one.start("seen", '{"name": "n"}')
        answer = one.event(instance)
        third = one_in_each(server)[1]
        assert pid_of(third) == pid_of(two) != pid_of(one)
        # Lua's tables can have tables as keys, as those of kong.ctx.shared.
        bad = msgpack.packb([0, 9, "plugin.Step", [{"EventId": answer["EventId"], "Data": 0}]])
        two.send(bad[:-1] + b"\x81\x90\x01")
        with pytest.raises(ConnectionError):
            two.receive()
        answer = one.event(instance)
        finish(third, answer, "n", "h")


def test_a_large_body_passes_between_workers_unharmed(directory: Path, short_path: Path) -> None:
    write(
        directory,
        "body",
        """
        class Plugin:
            def access(self, kong):
                body = kong.request.get_raw_body()
                kong.service.request.set_raw_body(body[::-1])
        """,
    )
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        body = random.Random(3).randbytes(5_000_000)
        answer = one.event(one.start("body"))
        answer = two.step(answer, body)
        assert answer["Data"]["Args"] == [body[::-1]]
        assert one.step(answer)["Data"] == "ret"


def test_both_protocols_are_spoken_to_all_workers(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        instance = server.connect().start("seen", '{"name": "n"}')
        wires = [server.connect_protobuf() for _ in range(8)]
        for number, wire in enumerate(wires):
            trail = wire.event(instance, answers=answering(f"h{number}"))
            assert f"n h{number}".encode() in trail[1].message


def test_a_killed_worker_fails_the_events_it_held_at_once_and_no_other(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = one_in_each(server, 8)
        instance = wires[0].start("seen", '{"name": "n"}')
        events = [(wire, wire.event(instance)) for wire in wires]
        logs = [wire.event(instance, "log") for wire in wires]
        victim = pid_of(wires[0])
        lost = [wire for wire in wires if pid_of(wire) == victim]
        assert 0 < len(lost) < len(wires)
        os.kill(victim, signal.SIGKILL)
        server.wait_for(lambda: f"worker {victim} was killed by signal 9" in server.text())
        began = time.monotonic()
        for (wire, answer), logged in zip(events, logs):
            if wire in lost:
                assert wire.step(answer, "h")["Data"] == EXIT
                with pytest.raises(RPCError, match="does not exist any more"):
                    wire.step(logged, "h")
            else:
                finish(wire, answer, "n", "h")
                assert wire.step(logged, "h")["Data"] == "ret"
            finish(wire, wire.event(instance), "n", "again")
        assert time.monotonic() - began < 5


def test_a_killed_worker_ends_its_events_over_protobuf_with_an_exit(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = [server.connect_protobuf() for _ in range(8)]
        instance = wires[0].start("seen", '{"name": "n"}')
        asked = []
        for wire in wires:
            wire.begin(instance)
            asked.append(wire.read_asked())
        victim = workers_of(server)[0]
        os.kill(victim, signal.SIGKILL)
        ends = Counter()
        for wire, first in zip(wires, asked):
            assert first is not None
            wire.answer(first, "h")
            second = wire.read_asked()
            assert second is not None
            if second.function == "kong.response.exit":
                assert second.args["status"] == 500
                with pytest.raises((ConnectionError, OSError)):
                    wire.receive()
                ends["exit"] += 1
            else:
                wire.answer(second)
                third = wire.read_asked()
                assert third is not None
                wire.answer(third, "GET")
                assert wire.read_asked() is None
                ends["return"] += 1
        assert ends == {"exit": 4, "return": 4}


def test_a_killed_worker_ends_log_events_over_protobuf_and_the_connection_goes_on(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        wires = [server.connect_protobuf() for _ in range(2)]
        instance = wires[0].start("seen", '{"name": "n"}')
        asked = []
        for wire in wires:
            wire.begin(instance, "log")
            asked.append(wire.read_asked())
        os.kill(workers_of(server)[0], signal.SIGKILL)
        for wire, first in zip(wires, asked):
            assert first is not None
            wire.answer(first, "h")
            assert wire.read_asked() is None
            assert len(wire.event(instance, answers=answering("x"))) == 3


@pytest.mark.parametrize("how", ["closed", "open"])
def test_a_worker_that_dies_in_a_handler_is_answered_for_at_once(
    directory: Path, short_path: Path, how: str
) -> None:
    write(
        directory,
        "fatal",
        """
        import os, signal

        class Plugin:
            def access(self, kong):
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    with serving(directory, short_path / "k.sock", "--workers", "2", "--on-error", how) as server:
        one, two = one_in_each(server)
        instance = one.start("fatal")
        began = time.monotonic()
        assert one.event(instance)["Data"] == (EXIT if how == "closed" else "ret")
        other = server.connect_protobuf()
        other.begin(instance)
        asked = other.read_asked()
        assert (asked.function if asked else None) == (
            "kong.response.exit" if how == "closed" else None
        )
        assert time.monotonic() - began < 5
        fine = two.start("seen")
        finish(two, two.event(fine), "", "h")


def test_a_step_that_waits_in_another_worker_fails_with_that_worker(
    directory: Path, short_path: Path
) -> None:
    write(
        directory,
        "fatal",
        """
        import os, signal

        class Plugin:
            def access(self, kong):
                kong.request.get_method()
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        answer = one.event(one.start("fatal"))
        assert two.step(answer, "GET")["Data"] == EXIT


def test_a_worker_that_dies_in_a_constructor_leaves_kong_to_start_again(
    directory: Path, short_path: Path
) -> None:
    write(
        directory,
        "once",
        f"""
        import os, signal
        from dataclasses import dataclass
        from pathlib import Path

        MARK = Path({str(short_path / "mark")!r})

        @dataclass
        class Plugin:
            name: str = ""

            def __post_init__(self):
                if self.name and not MARK.exists():
                    MARK.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            def access(self, kong): ...
        """,
    )
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, _ = one_in_each(server)
        with pytest.raises(RPCError, match="No plugin instance"):
            one.event(one.start("once", '{"name": "n"}'))
        assert one.event(one.start("once", '{"name": "n"}'))["Data"] == "ret"


def test_a_worker_that_dies_is_replaced_and_the_new_one_serves(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        instance = server.connect().start("seen", '{"name": "n"}')
        before = set(workers_of(server))
        os.kill(before.pop(), signal.SIGKILL)
        server.wait_for(lambda: len(workers_of(server)) == 2)
        wires = [server.connect() for _ in range(6)]
        for wire in wires:
            finish(wire, wire.event(instance), "n", "h")
        assert len({pid_of(wire) for wire in wires} - before) == 1


def test_with_one_worker_connections_wait_for_its_replacement(
    directory: Path, short_path: Path
) -> None:
    pytest.importorskip("watchfiles")
    with serving(directory, short_path / "k.sock", "--reload") as server:
        wire = server.connect()
        instance = wire.start("seen", '{"name": "n"}')
        answer = wire.event(instance)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        assert wire.step(answer, "h")["Data"] == EXIT
        finish(wire, wire.event(instance), "n", "h")


def test_a_worker_that_keeps_dying_is_replaced_after_a_pause(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        for _ in range(3):
            server.wait_for(lambda: len(workers_of(server)) == 2)
            os.kill(workers_of(server)[0], signal.SIGKILL)
        server.wait_for(lambda: "the next worker starts in 0.2 s" in server.text())
        assert "the next worker starts in 0.1 s" in server.text()
        server.wait_for(lambda: len(workers_of(server)) == 2)


def test_a_supervisor_ends_on_a_signal_when_the_events_have(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        answer = one.event(one.start("seen", '{"name": "n"}'))
        pids = workers_of(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: not server.socket_path.exists())
        finish(two, answer, "n", "h")  # the worker of this connection has no event of its own
        assert server.end() == 0
        assert not any(alive(pid) for pid in pids)
        assert "had not ended" not in server.text()
        assert "Traceback" not in server.text()


def test_stopping_takes_no_longer_than_it_may(directory: Path, short_path: Path) -> None:
    write(
        directory,
        "stuck",
        """
        class Plugin:
            def access(self, kong):
                print("stuck now", flush=True)
                while True:
                    pass
        """,
    )
    with serving(
        directory, short_path / "k.sock", "--workers", "2", "--shutdown-timeout", "0.3"
    ) as server:
        wire = server.connect()
        instance = wire.start("stuck")
        pids = workers_of(server)
        with ThreadPoolExecutor(1) as pool:
            stuck = pool.submit(wire.event, instance)
            server.wait_for(lambda: "stuck now" in server.text())
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 0
            assert time.monotonic() - began < 8
            with pytest.raises((ConnectionError, OSError)):
                stuck.result()
        assert not any(alive(pid) for pid in pids)


def test_a_killed_supervisor_leaves_no_orphan(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        answer = one.event(one.start("seen", '{"name": "n"}'))
        pids = workers_of(server)
        server.process.kill()
        server.wait_for(lambda: server.text().count("the supervisor is gone") == 2)
        finish(two, answer, "n", "h")
        server.wait_for(lambda: not any(alive(pid) for pid in pids))
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        assert len(workers_of(server)) == 2


def test_a_worker_that_gets_a_stop_signal_passes_back_its_connections(
    directory: Path, short_path: Path
) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        instance = one.start("seen", '{"name": "n"}')
        answer = one.event(instance)
        pid = pid_of(one)
        os.kill(pid, signal.SIGTERM)
        server.wait_for(lambda: pid_of(one) != pid)
        finish(one, answer, "n", "h")
        server.wait_for(lambda: not alive(pid))
        server.wait_for(lambda: len(workers_of(server)) == 2)
        finish(two, two.event(instance), "n", "h")
        assert "the supervisor is gone" not in server.text()


def test_a_plugins_directory_that_is_not_there_is_reported_and_nothing_stays(
    short_path: Path,
) -> None:
    refused = run(
        "serve", "--plugins-directory", str(short_path / "none"),
        "--socket", str(short_path / "k.sock"), "--workers", "2",
    )  # fmt: skip
    assert refused.returncode == 1
    assert b"does not exist" in refused.stderr
    assert not (short_path / "k.sock").exists()


def test_a_socket_of_another_server_is_refused(directory: Path, short_path: Path) -> None:
    path = short_path / "k.sock"
    with serving(directory, path) as first:
        words = ("--plugins-directory", str(directory), "--socket", str(path), "--workers", "2")
        refused = run("serve", *words)
        assert refused.returncode == 1
        assert b"another server listens" in refused.stderr
        assert first.connect().call("GetPluginNames", 0) == ["seen"]


@pytest.mark.parametrize("words", [("0",), ("-1",), ("many",), ("65",)])
def test_a_number_of_workers_that_cannot_be_is_refused(
    directory: Path, short_path: Path, words: tuple[str]
) -> None:
    refused = run(
        "serve", "--plugins-directory", str(directory), "--socket", str(short_path / "k.sock"),
        "--workers", *words,
    )  # fmt: skip
    assert refused.returncode == 2
    assert b"1 to 64, or auto" in refused.stderr


def test_auto_is_a_worker_for_each_core(directory: Path, short_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with serving(directory, short_path / "k.sock", KONGPS_WORKERS="auto") as server:
        status = server.connect().call("GetStatus", 0)
        assert len(status.get("Workers", [0])) == cores


def test_status_and_log_line_tell_of_the_whole_server(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        one, two = one_in_each(server)
        first, second = one.start("seen", '{"name": "a"}'), two.start("seen", '{"name": "b"}')
        held = [one.event(first), two.event(second)]
        for wire in (one, two):
            status = wire.call("GetStatus", 0)
            assert status["Pid"] == server.process.pid
            assert status["Events"] == status["EventsHandled"] == status["Instances"] == 2
            assert status["Connections"] == sum(row["Connections"] for row in status["Workers"])
            assert status["Memory"] > 20e6
            rows = status["Plugins"]["seen"]["Instances"]
            assert {row["Id"] for row in rows} == {first, second}
        for wire, answer, name in zip((two, one), held, "ab"):
            finish(wire, answer, name, "h")
        for number, pid in enumerate([server.process.pid, *workers_of(server)], 1):
            os.kill(pid, signal.SIGUSR1)
            server.wait_for(lambda number=number: server.text().count("live events") == number)
        lines = [line for line in server.text().splitlines() if "live events" in line]
        for line in lines:
            assert "0 live events, 2 instances" in line
            assert "2 events handled, " in line
            assert f"pid {server.process.pid}" in line


def test_kong_cannot_call_what_workers_say_to_each_other(directory: Path, short_path: Path) -> None:
    with serving(directory, short_path / "k.sock", "--workers", "2") as server:
        for method in ("kongps.Status", "kongps.CloseInstance", "kongps.Drained"):
            wire = server.connect()
            wire.send(msgpack.packb([0, 1, method, [0]]))
            assert wire.receive()[2] == f"unknown method {method}"
