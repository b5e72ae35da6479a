"""Handlers that block: what they cost the others, and how many run at once.

    python benchmarks/blocking.py [--seconds 3] [--rounds 3]

1. hello with 16 connections alone, and beside a plugin that sleeps 50 ms in each of 50 concurrent
   events, from one second after that begins: the p99 may at most double.
2. That plugin under 50 concurrent events against one at a time: at least 40 times the events.
3. A plugin of kong-python-pdk's layout that asks an HTTP service which takes 200 ms, with
   `requests`: the time of 50 requests at once over that of one, right after the server has started.

Exit status: 1 when a figure is not reached or an event failed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from harness import TOOLS, build_tools, load, run_directory
from harness import Server as Running
from peers.base import HERE, workload_file

from kongps.testing import Kong, Request

SLEEPS = """
import time


class Plugin:
    def access(self, kong):
        time.sleep(0.05)
        kong.response.set_header("x-slept", "yes")
"""

ASKS = """
import requests

Schema = [{{"url": {{"type": "string"}}}}]
version = "1.0.0"
priority = 0


class Plugin(object):
    def __init__(self, config):
        self.config = config

    def access(self, kong):
        requests.get("http://127.0.0.1:{port}/", timeout=10)
        kong.response.set_header("x-asked", "yes")
"""

SERVICE_SECONDS = 0.2


@contextmanager
def serving(plugins: dict[str, str], *flags: str) -> Iterator[Running]:
    """A kongps server with plugins from texts."""
    with run_directory() as run:
        directory = run / "plugins"
        directory.mkdir()
        for name, text in plugins.items():
            (directory / f"{name}.py").write_text(textwrap.dedent(text))
        socket = run / "kongps.sock"
        command = [sys.executable, "-m", "kongps", "serve", "--plugins-directory", str(directory)]
        command += ["--socket", str(socket), "--log-level", "error", *flags]
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=HERE.parent)
        try:
            while not socket.exists():
                if process.poll() is not None:
                    raise SystemExit("kongps has not started")
                time.sleep(0.01)
            yield Running(process.pid, socket, "hello", "msgpack", "access", started)
        finally:
            process.terminate()
            process.wait()


def run(server: Running, plugin: str, protocol: str, *words: str) -> dict[str, Any]:
    server.plugin, server.protocol = plugin, protocol
    report = load(server, words)
    if report["errors"] or report["failed_events"]:
        raise SystemExit(f"{plugin}: {report['failed_events']} events failed, {report['errors']}")
    return report


def p99_beside_sleepers(protocol: str, seconds: float, rounds: int) -> float:
    """p99 of hello beside sleeping handlers over its p99 alone."""
    found = []
    hello = workload_file("hello", "kongps", ".py").read_text()
    words = ("--connections", "16", "--seconds", str(seconds))
    for _ in range(rounds):
        with serving({"hello": hello, "sleeps": SLEEPS}) as server:
            alone = run(server, "hello", protocol, *words)["latency_us"]["p99"]
            other = Running(**{**vars(server), "plugin": "sleeps", "protocol": protocol})
            beside = Thread(
                target=load, args=(other, ("--connections", "50", "--seconds", str(seconds + 3)))
            )
            beside.start()
            time.sleep(1.5)  # a process of its own starts within half a second
            both = run(server, "hello", protocol, *words)["latency_us"]["p99"]
            beside.join()
        print(f"  {protocol}: hello's p99 alone {alone:,.0f} us, beside sleepers {both:,.0f} us")
        found.append(both / alone)
    return statistics.median(found)


def sleepers_at_once(protocol: str, seconds: float) -> float:
    """Events per second of a handler that sleeps, 50 at once over one at a time."""
    with serving({"sleeps": SLEEPS}) as server:
        words = ("--seconds", str(seconds), "--warmup", "1")
        one = run(server, "sleeps", protocol, "--connections", "1", *words)["events_per_second"]
        many = run(server, "sleeps", protocol, "--connections", "50", *words)["events_per_second"]
    print(f"  {protocol}: one at a time {one:,.1f} events/s, 50 at once {many:,.1f}")
    return float(many / one)


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(SERVICE_SECONDS)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Backlog(ThreadingHTTPServer):
    request_queue_size = 256


def requests_at_once() -> float:
    """The time of 50 requests at once, the first of a server, over that of one, the last."""
    service = Backlog(("127.0.0.1", 0), Service)
    Thread(target=service.serve_forever, daemon=True).start()
    with serving({"asks": ASKS.format(port=service.server_address[1])}) as server:
        kong = Kong(server.socket, plugins=["asks"], protocol="msgpack", version="2.8")
        times = []
        for count in (50, 1):
            started = time.perf_counter()
            results = kong.requests([Request("GET", "/") for _ in range(count)])
            times.append(time.perf_counter() - started)
            assert all(result.headers.get("x-asked") == "yes" for result in results)
        kong.close()
    service.shutdown()
    print(f"  50 requests at once {times[0] * 1000:,.0f} ms, one {times[1] * 1000:,.0f} ms")
    return times[0] / times[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of the first figure (3)")
    options = parser.parse_args()
    build_tools()
    assert (TOOLS / "load").exists()
    reached = True

    def judge(what: str, found: float, reach: bool) -> None:
        nonlocal reached
        reached = reached and reach
        print(f"{what}: {found:.2f}{'' if reach else ', NOT REACHED'}")

    for protocol in ("msgpack", "protobuf"):
        found = p99_beside_sleepers(protocol, options.seconds, options.rounds)
        judge(f"hello's p99 beside sleepers over alone, {protocol}, at most 2", found, found <= 2)
        found = sleepers_at_once(protocol, options.seconds)
        judge(f"sleepers, 50 at once over one, {protocol}, at least 40", found, found >= 40)
    found = requests_at_once()
    judge(
        "kong-python-pdk's layout with requests, 50 at once over one, at most 2", found, found <= 2
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
