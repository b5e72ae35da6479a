"""A plugin file that is a server of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from client import Socket
from paths import EXAMPLES, SRC
from server_process import Process, environment, run

RUN = """

if __name__ == "__main__":
    import kongps
    import sys

    sys.exit(kongps.run())
"""

OLD_FILE = """
import kong_pdk.pdk.kong as kong

Schema = ({"message": {"type": "string"}},)
version = "0.1.0"
priority = 0


class Plugin(object):
    def __init__(self, config):
        self.config = config

    def access(self, kong: kong.kong):
        host, err = kong.request.get_header("host")
        kong.response.set_header("x-old", host)


if __name__ == "__main__":
    from kong_pdk.cli import start_dedicated_server

    start_dedicated_server("old-hello", Plugin, version, priority, Schema)
"""


def python(path: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(path), *words], env=environment(), capture_output=True, timeout=30
    )


@pytest.fixture
def hello(short_path: Path) -> Path:
    path = short_path / "hello.py"
    path.write_text((EXAMPLES / "hello.py").read_text() + textwrap.dedent(RUN))
    return path


def test_a_file_dumps_its_plugin(hello: Path) -> None:
    for flag in ("-dump", "--dump"):
        done = python(hello, "-kong-prefix", "/kong", flag)
        assert done.returncode == 0, done.stderr
        dumped = json.loads(done.stdout)
        assert dumped["Protocol"] == "ProtoBuf:1"
        assert dumped["SocketPath"] == "/kong/hello.socket"
        assert [plugin["Name"] for plugin in dumped["Plugins"]] == ["hello"]


def test_a_file_serves_its_plugin(hello: Path, short_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, str(hello), "-kong-prefix", str(short_path)],
        env=environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wire = _connected(server, short_path / "hello.socket")
        answer = wire.event(wire.start("hello"))
        assert answer["Data"]["Method"] == "kong.request.get_header"
        wire.step(wire.step(wire.step(answer, "h")))
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()


def _connected(server: subprocess.Popen[bytes], path: Path) -> Socket:
    import time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            return Socket(path)
        except OSError:
            time.sleep(0.01)
    raise AssertionError("the server did not start")


def test_a_file_without_a_line_for_it_is_run_by_the_command(short_path: Path) -> None:
    path = short_path / "plain.py"
    shutil.copy(EXAMPLES / "hello.py", path)
    done = run("run", str(path), "--dump")
    assert done.returncode == 0, done.stderr
    assert [plugin["Name"] for plugin in json.loads(done.stdout)["Plugins"]] == ["plain"]


def test_a_file_that_runs_itself_is_run_once(hello: Path) -> None:
    done = run("run", str(hello), "--dump")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_file_of_kong_python_pdk_runs_where_that_is_not_installed(short_path: Path) -> None:
    path = short_path / "old.py"
    path.write_text(OLD_FILE)
    done = run("run", str(path), "--dump")
    assert done.returncode == 0, done.stderr
    (info,) = json.loads(done.stdout)
    assert (info["Name"], info["Version"]) == ("old-hello", "0.1.0")
    server = Process(short_path / "old-hello.sock", "run", str(path), "-p", str(short_path))
    try:
        wire = server.connect()
        answer = wire.step(wire.event(wire.start("old-hello")), "example.test")
        assert answer["Data"]["Args"] == ["x-old", "example.test"]
    finally:
        server.process.kill()
        server.end()


def test_wrong_flags_exit_with_2(hello: Path) -> None:
    assert python(hello, "--fly").returncode == 2


def test_the_headers_are_where_get_include_says() -> None:
    import kongps

    assert (Path(kongps.get_include()) / "kongps" / "phases.h").is_file()
    assert SRC.parent in Path(kongps.get_include()).resolve().parents
