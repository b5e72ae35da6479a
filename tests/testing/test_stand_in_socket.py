"""The stand-in and a real server, over a real socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

from kongps.testing import Kong, Request


class Served:
    def __init__(self, place: Path) -> None:
        self.socket = str(place / "k.sock")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kongps", "serve", "--socket", self.socket),
                *("--plugins-directory", str(ROOT / "examples")),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        deadline = time.monotonic() + 20
        while not os.path.exists(self.socket):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.unlink(self.socket)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path)
    yield server
    server.process.terminate()
    assert server.process.wait(15) == 0


def test_many_requests_over_many_connections(served: Served) -> None:
    for order, protocol in (("lifo", "msgpack"), ("lifo", "protobuf"), ("fifo", "msgpack")):
        with Kong(
            served.socket,
            protocol=protocol,
            plugins={"hello": {"message": "hi"}},
            workers=2,
            connections=3,
            pool_order=order,
        ) as kong:
            for _ in range(3):
                results = kong.requests(Request("GET", f"/{i}") for i in range(30))
                assert {result.headers["x-hello-from-python"] for result in results} == {
                    "Python says hi to localhost:8000"
                }
    status = Kong(served.socket, plugins=[]).call("plugin.GetStatus", 0)
    assert status["Events"] == 0
    # Two workers of three gateways, of which none has closed its instance.
    assert len(status["Plugins"]["hello"]["Instances"]) == 6


def test_a_server_that_is_killed_and_comes_back(served: Served) -> None:
    with Kong(served.socket, plugins=["hello", "key_gate"], consumers=["alice"]) as kong:
        assert kong.request().status == 401
        assert kong.request(headers={"x-key": "alice"}).status == 200
        served.kill()
        result = kong.request()
        # Kong lets requests pass while nobody is there.
        assert result.status == 200
        assert [event.outcome for event in result.events] == ["error", "error"]
        served.start()
        assert kong.request().status == 401
        result = kong.request(headers={"x-key": "alice"})
        assert result.status == 200
        assert "x-hello-from-python" in result.headers


def test_a_server_that_is_killed_and_comes_back_over_protobuf(served: Served) -> None:
    with Kong(served.socket, plugins=["hello"], protocol="protobuf") as kong:
        assert "x-hello-from-python" in kong.request().headers
        served.kill()
        assert kong.request().status == 500
        served.start()
        result = kong.request()
        assert result.status == 200
        assert "x-hello-from-python" in result.headers


def test_both_protocols_at_once(served: Served) -> None:
    kongs = [
        Kong(served.socket, plugins=["hello"], protocol=protocol, connections=16)
        for protocol in ("msgpack", "protobuf")
    ]
    for _ in range(3):
        for kong in kongs:
            results = kong.requests(Request("GET", f"/{i}") for i in range(16))
            assert all("x-hello-from-python" in result.headers for result in results)
    for kong in kongs:
        kong.close()
