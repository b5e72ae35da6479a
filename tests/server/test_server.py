"""A running server: its socket, signals, shutdown, and peers of all kinds."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest
from client import RPCError, Socket
from server_process import Process, environment, run, serving


def hello(wire: Socket, instance: int, host: str = "example.test") -> str:
    """Runs one event of the hello example; gives the header that it set."""
    answer = wire.event(instance)
    assert answer["Data"] == {"Method": "kong.request.get_header", "Args": ["host"]}
    answer = wire.step(answer, host)
    name, value = answer["Data"]["Args"]
    assert name == "x-hello-from-python"
    answer = wire.step(answer)
    assert answer["Data"]["Args"][0] == "x-python-pid"
    assert wire.step(answer)["Data"] == "ret"
    text: str = value
    return text


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


def test_serves_events_on_its_socket(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("hello", '{"message": "hi", "__key__": "k", "service_id": null}')
        assert hello(wire, instance) == "Python says hi to example.test"
        assert f"instance {instance} of plugin hello started" in server.text()


def test_the_socket_is_for_its_owner_unless_set_otherwise(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "a.sock") as server:
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o600
    with serving(plugins, short_path / "b.sock", "--socket-mode", "0660") as server:
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o660


def test_the_socket_of_a_dead_server_is_replaced(plugins: Path, short_path: Path) -> None:
    path = short_path / "k.sock"
    with serving(plugins, path) as server:
        server.process.send_signal(signal.SIGKILL)
        server.end()
    assert path.exists()
    with serving(plugins, path) as server:
        assert server.connect().call("GetStatus", 0)["Pid"] == server.process.pid


def test_the_socket_of_a_live_server_is_refused(plugins: Path, short_path: Path) -> None:
    path = short_path / "k.sock"
    with serving(plugins, path) as server:
        refused = run("serve", "--plugins-directory", str(plugins), "--socket", str(path))
        assert refused.returncode == 1
        assert b"another server listens on" in refused.stderr
        assert refused.stderr.count(b"\n") == 1
        assert server.connect().call("GetStatus", 0)["Pid"] == server.process.pid


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("a file"), b"is not a socket"),
        (lambda path: path.mkdir(), b"is not a socket"),
    ],
)
def test_what_is_no_socket_is_left_alone(
    plugins: Path, short_path: Path, make: object, words: bytes
) -> None:
    path = short_path / "k.sock"
    make(path)  # type: ignore[operator]
    refused = run("serve", "--plugins-directory", str(plugins), "--socket", str(path))
    assert refused.returncode == 1
    assert words in refused.stderr
    assert path.exists()


def test_paths_that_cannot_be_sockets_say_why(plugins: Path, short_path: Path) -> None:
    for path, words in (
        (short_path / "missing" / "k.sock", b"does not exist; create it"),
        (short_path / ("x" * 120), b"107 bytes"),
    ):
        refused = run("serve", "--plugins-directory", str(plugins), "--socket", str(path))
        assert refused.returncode == 1
        assert words in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_an_idle_server_at_once(
    plugins: Path, short_path: Path, number: signal.Signals
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        wire.start("hello")
        started = time.monotonic()
        server.process.send_signal(number)
        assert server.end() == 0
        assert time.monotonic() - started < 5
        assert not server.socket_path.exists()
        assert "Traceback" not in server.text()


def test_running_events_finish_before_the_server_ends(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        answer = wire.event(wire.start("hello"))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: not server.socket_path.exists())
        with pytest.raises(FileNotFoundError):
            server.connect()
        for value in ("host", None, None):
            answer = wire.step(answer, value)
        assert answer["Data"] == "ret"
        assert server.end() == 0
        assert "had not ended" not in server.text()


def test_events_that_do_not_finish_are_cut_off(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "0.3") as server:
        wire = server.connect()
        wire.event(wire.start("hello"))
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert "1 events had not ended in time" in server.text()


def test_a_second_signal_does_not_wait(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "60") as server:
        wire = server.connect()
        wire.event(wire.start("hello"))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: not server.socket_path.exists())
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_signal_while_a_handler_runs_waits_for_it(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "slow",
        """
        import time
        class Plugin:
            def access(self, kong):
                print("slow begins", flush=True)
                time.sleep(0.5)
                kong.log.notice("done")
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("slow")
        with ThreadPoolExecutor(1) as pool:
            event = pool.submit(wire.event, instance)
            server.wait_for(lambda: "slow begins" in server.text())
            server.process.send_signal(signal.SIGTERM)
            assert event.result()["Data"]["Method"] == "kong.log.notice"
        assert wire.step(event.result())["Data"] == "ret"
        assert server.end() == 0


def test_instances_are_closed_at_the_end_and_by_kong(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "closing",
        """
        class Plugin:
            name: str = ""
            def access(self, kong): ...
            def close(self):
                print("closed", self.name, flush=True)
                raise ValueError("in close")
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        one, two = (
            wire.start("closing", '{"name": "one"}'),
            wire.start("closing", '{"name": "two"}'),
        )
        assert wire.call("CloseInstance", one)["Id"] == one
        with pytest.raises(RPCError, match="No plugin instance"):
            wire.call("CloseInstance", one)
        server.wait_for(lambda: "closed one" in server.text())
        assert wire.call("InstanceStatus", two)["Config"] == {"name": "two"}
        server.process.terminate()
        assert server.end() == 0
        assert "closed two" in server.text()
        assert "close of instance" in server.text()


def test_the_server_ends_with_the_process_that_started_it(plugins: Path, short_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True);"
            "sys.stdin.read()",
            *(sys.executable, "-m", "kongps", "-kong-prefix", str(short_path)),
            *("-plugins-directory", str(plugins)),
        ],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    path = short_path / "go_pluginserver.sock"
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Socket(path).call("GetStatus", 0)["Pid"] == child
    parent.kill()
    parent.communicate()
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not path.exists()


def test_a_broken_plugin_does_not_keep_the_others_away(plugins: Path, short_path: Path) -> None:
    write(plugins, "broken", "import nothing_like_that\n")
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        assert "broken.py" in server.text()
        assert "line 1" in server.text() or ":1" in server.text()
        hello(wire, wire.start("hello"))
        failed = wire.start("broken")
        answer = wire.event(failed)
        assert answer["Data"]["Method"] == "kong.response.exit"
        with pytest.raises(RPCError, match="nothing_like_that"):
            wire.call("GetPluginInfo", "broken")


def test_a_configuration_that_is_refused_starts_a_failed_instance(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        for config in ('{"message": {"my": "secret"}}', "not json, secret", "[1]"):
            answer = wire.event(wire.start("hello", config))
            assert answer["Data"]["Args"][0] == 500
        assert "config.message" in server.text()
        assert "secret" not in server.text()


def test_status_tells_what_is_loaded_and_running(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("hello", '{"message": "x"}')
        status = wire.call("GetStatus", 0)
        assert status["Pid"] == server.process.pid
        plugin = status["Plugins"]["hello"]
        assert [row["Id"] for row in plugin["Instances"]] == [instance]
        assert plugin["LastStartInstance"] > plugin["LoadTime"] > plugin["Modtime"] > 0
        info = wire.call("GetPluginInfo", "hello")
        assert info["Phases"] == ["access"]
        assert {"Name", "Version", "Priority", "Schema", "ModTime", "LoadTime"} <= set(info)
        assert wire.call("SetPluginDir", str(plugins)) == "ok"
        with pytest.raises(RPCError, match="command line"):
            wire.call("SetPluginDir", "/etc")
        for name in ("../x", "/etc/passwd", "", 5, None):
            with pytest.raises(RPCError, match="no plugin"):
                wire.call("GetPluginInfo", name)


def test_garbage_closes_its_connection_and_no_other(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        instance = wire.start("hello")
        dice = random.Random(5)
        for size in (3, 10, 1000, 100_000):  # 4 bytes tell the protocols apart
            bad = server.connect()
            bad.socket.sendall(b"\xc1" + dice.randbytes(size))
            with pytest.raises(ConnectionError):
                bad.receive()
        hello(wire, instance)
        assert "closing a connection" in server.text()


def test_a_call_before_garbage_is_still_answered(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        wire.socket.sendall(msgpack.packb([0, 1, "plugin.GetStatus", [0]]) + b"\xc1")
        assert wire.receive()[1] == 1


def test_many_connections_at_once(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        instance = server.connect().start("hello")
        wires = [server.connect() for _ in range(400)]
        answers = [wire.event(instance) for wire in wires]
        for step in ("host", None, None):
            answers = [wire.step(answer, step) for wire, answer in zip(wires, answers)]
        assert all(answer["Data"] == "ret" for answer in answers)
        for wire in wires:
            wire.close()
        hello(server.connect(), instance)


def test_more_connections_than_file_descriptors_are_taken_later(
    plugins: Path, short_path: Path
) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40));"
    limited += "from kongps.cli.main import main; sys.exit(main())"
    path = short_path / "k.sock"
    server = subprocess.Popen(
        [sys.executable, "-c", limited, "serve", "--plugins-directory", str(plugins),
         "--socket", str(path)],
        env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        wires = [Socket(path) for _ in range(60)]
        instance = wires[0].start("hello")
        hello(wires[0], instance)
        for wire in wires[1:40]:
            wire.close()
        hello(wires[59], instance)
    finally:
        server.kill()
        _, log = server.communicate()
    assert log.count(b"connections have to wait") == 1


def test_a_peer_that_does_not_read_is_not_read_from(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        other = server.connect()
        instance = other.start("hello", '{"message": "' + "x" * 100_000 + '"}')
        greedy = server.connect()
        greedy.socket.setblocking(False)
        question = msgpack.packb([0, 1, "plugin.InstanceStatus", [instance]]) * 100
        sent = 0
        for _ in range(200):
            try:
                sent += greedy.socket.send(question)
            except BlockingIOError:
                time.sleep(0.005)
        hello(other, instance)
        memory = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
        assert memory < 100e6
        # What it asked is answered as soon as it reads.
        greedy.socket.settimeout(10)
        feed = msgpack.Unpacker(max_buffer_size=0)
        answers = 0
        while answers < sent // (len(question) // 100):
            feed.feed(greedy.socket.recv(1 << 20))
            answers += sum(1 for _ in feed)
        assert answers > 100


def test_a_client_that_goes_away_does_not_stop_the_event(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        first, second = server.connect(), server.connect()
        answer = first.event(first.start("hello"))
        first.close()
        time.sleep(0.05)
        assert second.step(answer, "host")["Data"]["Method"] == "kong.response.set_header"


def test_a_client_that_hangs_up_before_its_answer_is_harmless(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        instance = server.connect().start("hello", '{"message": "' + "x" * 100_000 + '"}')
        for _ in range(50):
            wire = server.connect()
            wire.socket.sendall(msgpack.packb([0, 1, "plugin.InstanceStatus", [instance]]) * 20)
            wire.close()
        hello(server.connect(), instance)


def test_two_workers_of_kong_have_instances_of_their_own(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        config = '{"message": "same"}'

        def worker(number: int) -> set[str]:
            wire = server.connect()
            instance = wire.start("hello", config)
            return {hello(wire, instance, f"w{number}") for _ in range(100)}

        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(worker, range(8)))
        assert seen == [{f"Python says same to w{number}"} for number in range(8)]
        status = server.connect().call("GetStatus", 0)
        assert len({row["Id"] for row in status["Plugins"]["hello"]["Instances"]}) == 8


def test_without_a_store_an_instance_id_of_a_server_that_was_killed_finds_nothing_in_the_next(
    plugins: Path, short_path: Path
) -> None:
    path = short_path / "k.sock"
    with serving(plugins, path, "--no-instance-store") as server:
        wire = server.connect()
        old = [wire.start("hello") for _ in range(20)]
    with serving(plugins, path, "--no-instance-store") as server:
        wire = server.connect()
        new = [wire.start("hello") for _ in range(20)]
        assert not set(old) & set(new)
        for instance in old:
            with pytest.raises(RPCError, match="No plugin instance"):
                wire.event(instance)


def test_events_given_up_by_kong_are_ended_by_a_running_server(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock", "--event-timeout", "0.2") as server:
        wire = server.connect()
        answer = wire.event(wire.start("hello"))
        server.wait_for(lambda: "Kong has abandoned it" in server.text())
        assert wire.step(answer, "host")["Data"]["Method"] == "kong.response.exit"


def test_log_lines_are_single_lines_of_text_or_json(plugins: Path, short_path: Path) -> None:
    import json

    write(
        plugins,
        "raises",
        "class Plugin:\n    def access(self, kong): raise ValueError('two\\nlines')\n",
    )
    for form in ("text", "json"):
        with serving(plugins, short_path / f"{form}.sock", KONGPS_LOG_FORMAT=form) as server:
            wire = server.connect()
            wire.event(wire.start("raises"))
            wire.close()
            server.process.terminate()
            server.end()
            lines = server.text().splitlines()
            (failure,) = [line for line in lines if "ValueError" in line]
            assert "plugin raises, access handler" in failure
            assert "raises.py" in failure
            if form == "json":
                assert {json.loads(line)["level"] for line in lines} >= {"info", "error"}


def test_a_server_runs_in_a_thread_too(plugins: Path, short_path: Path) -> None:
    from kongps.server.server import Server
    from kongps.settings import Settings

    server = Server(Settings(plugins_directory=str(plugins), socket=str(short_path / "k.sock")))
    server.open()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wire = Socket(short_path / "k.sock")
        hello(wire, wire.start("hello"))
        assert server.loop.streams == 1
        called = threading.Event()
        server.loop.call_soon_threadsafe(called.set)
        assert called.wait(5)
    finally:
        server.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert not os.path.exists(short_path / "k.sock")


def test_200_000_events_leave_no_memory_behind_in_short(plugins: Path, short_path: Path) -> None:
    """The short version; `make bench-memory` shows it for 200,000."""
    write(plugins, "mixed", """
        class Plugin:
            count = 0
            def access(self, kong):
                self.count += 1
                if self.count % 10 == 3:
                    raise ValueError("now and then")
                if self.count % 10 == 7:
                    kong.response.exit(403, {"m": "no"})
                kong.response.set_header("x", kong.request.get_header("host") * 10)
        """)  # fmt: skip

    with serving(plugins, short_path / "k.sock", "--log-level", "critical") as server:
        wire = server.connect()
        instance = wire.start("mixed")

        def rounds(count: int) -> int:
            for _ in range(count):
                answer = wire.event(instance)
                if answer["Data"]["Method"] == "kong.request.get_header":
                    wire.step(wire.step(answer, "h" * 100))
                elif answer["Data"]["Method"] == "kong.log.err":
                    wire.step(answer)
            return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096

        first = rounds(3000)
        assert rounds(6000) - first < 300_000
        assert wire.call("GetStatus", 0)["Events"] == 0


def test_the_process_class_of_these_tests_reports_a_server_that_does_not_start(
    plugins: Path, short_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="does not exist"):
        Process(short_path / "x.sock", "serve", "--plugins-directory", str(plugins),
                "--socket", str(short_path / "no" / "x.sock"))  # fmt: skip
