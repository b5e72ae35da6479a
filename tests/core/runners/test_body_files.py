"""A request's body that Kong has left in a file is not read on the loop's thread."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from plugin_files import write
from server_process import is_quiet, serving, status

MODES = ["inline", "thread", "async"]
BODY = "kong.request.get_raw_body"


def reader(directory: Path, mode: str) -> None:
    is_async = mode == "async"
    write(
        directory,
        "reads",
        f"""
        from kongps import PDKError

        class Plugin:
            {"" if is_async else f"blocking = {mode == 'thread'}"}

            {"async " if is_async else ""}def access(self, kong):
                try:
                    body = {"await " if is_async else ""}kong.request.get_raw_body()
                except PDKError as error:
                    body = "x" + error.reason
                {"await " if is_async else ""}kong.log.notice(f"{{len(body)}} {{body[:4]}}")
        """,
    )


def begin(server: Any, path: Path) -> Any:
    """An event whose handler waits for its body, and Kong has answered."""
    wire = server.connect_protobuf()
    wire.begin(wire.start("reads"))
    asked = wire.read_asked()
    assert asked.function == BODY
    wire.answer(asked, {"body_filepath": str(path)})
    return wire


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A file that is not read before the test has written to it."""
    path = tmp_path / "body"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_a_body_that_is_slow_to_read_delays_no_other_event(
    plugins: Path, short_path: Path, slow: Path, mode: str
) -> None:
    reader(plugins, mode)
    with serving(plugins, short_path / "k.sock") as server:
        wire = begin(server, slow)
        other = server.connect()
        assert other.event(other.start("hello"))["Data"]["Method"]
        assert status(server)["Events"] == 2
        slow.write_bytes(b"some" * 1000)
        asked = wire.read_asked()
        assert asked.function == "kong.log.notice"
        assert "4000 b'so" in str(asked.args)
        wire.answer(asked)
        assert wire.read_asked() is None


@pytest.mark.parametrize("mode", MODES)
def test_a_body_that_cannot_be_read_is_an_error_of_the_call(
    plugins: Path, short_path: Path, tmp_path: Path, mode: str
) -> None:
    reader(plugins, mode)
    with serving(plugins, short_path / "k.sock") as server:
        wire = begin(server, tmp_path / "missing")
        assert "xKon" in str(wire.read_asked().args)


@pytest.mark.parametrize("mode", MODES)
def test_kong_leaves_while_a_body_is_read(
    plugins: Path, short_path: Path, slow: Path, mode: str
) -> None:
    reader(plugins, mode)
    with serving(plugins, short_path / "k.sock") as server:
        wire = begin(server, slow)
        time.sleep(0.1)
        wire.socket.close()
        server.wait_for(lambda: status(server)["Events"] == 0)
        slow.write_bytes(b"late")
        assert is_quiet(server)
        assert "Traceback" not in server.text()


def test_a_body_that_is_not_read_in_time_fails_its_event(
    plugins: Path, short_path: Path, slow: Path
) -> None:
    reader(plugins, "inline")
    with serving(plugins, short_path / "k.sock", "--handler-timeout", "1") as server:
        wire = begin(server, slow)
        asked = wire.read_asked()  # first Kong logs why
        assert "reading the request's body" in str(asked.args)
        wire.answer(asked)
        asked = wire.read_asked()
        assert asked.function == "kong.response.exit"
        server.wait_for(lambda: status(server)["Events"] == 0)
        slow.write_bytes(b"late")
        assert is_quiet(server)
        assert "Traceback" not in server.text()


@pytest.mark.parametrize("mode", MODES)
def test_a_body_that_is_never_read_does_not_keep_the_server_from_ending(
    plugins: Path, short_path: Path, slow: Path, mode: str
) -> None:
    reader(plugins, mode)
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "0.5") as server:
        begin(server, slow)
        time.sleep(0.1)
        server.process.terminate()
        assert server.end() == 0
