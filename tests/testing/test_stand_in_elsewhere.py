"""The stand-in runs plugins whose handlers are async or block, in this process."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from paths import EXAMPLES

from kongps.testing import Kong, Request

both = pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])


class Gate(socketserver.ThreadingTCPServer):
    """Answers 200 to paths that begin with /open."""

    daemon_threads = True

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().split()[1]
            status = "200 OK" if path.startswith(b"/open") else "403 Forbidden"
            self.wfile.write(f"HTTP/1.0 {status}\r\n\r\n".encode())

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)


@pytest.fixture
def gate() -> Iterator[int]:
    with Gate() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@both
def test_the_example_that_asks_another_service(gate: int, protocol: str) -> None:
    kong = Kong(plugin=EXAMPLES / "async_gate.py", config={"port": gate}, protocol=protocol)
    paths = ["/open/1", "/shut", "/open/2"]
    results = kong.requests([Request("GET", path) for path in paths])
    assert [result.status for result in results] == [200, 403, 200]


@both
def test_the_example_without_its_service_lets_nothing_through(protocol: str) -> None:
    kong = Kong(plugin=EXAMPLES / "async_gate.py", config={"port": 1}, protocol=protocol)
    result = kong.request()
    assert result.status == 503
    assert "does not answer" in result.logged("err")[0]


@both
def test_a_plugin_that_blocks_runs_in_a_thread(protocol: str) -> None:
    class Blocks:
        blocking = True

        def access(self, kong: Any) -> None:
            kong.response.set_header("x-thread", threading.current_thread().name)

    result = Kong(plugin=Blocks, protocol=protocol).request()
    assert result.headers["x-thread"].startswith("kongps-handler-")


@both
def test_events_wait_for_an_async_start(protocol: str) -> None:
    class Starts:
        async def start(self) -> None:
            await asyncio.sleep(0.01)
            self._ready = True

        async def access(self, kong: Any) -> None:
            await kong.response.set_header("x-ready", str(self._ready))

    assert Kong(plugin=Starts, protocol=protocol).request().headers["x-ready"] == "True"
