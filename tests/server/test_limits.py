"""Limits with flags, and the numbers that a server tells of itself; over both protocols."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from client import Direct, DirectProtobuf, dispatcher_with
from core_defaults import new_dispatcher
from made_plugins import plugin_of
from server_process import run, serving

from kongps.core.dispatch.instance import Instance


def test_a_signal_has_the_server_tell_what_it_holds(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock") as server:
        wire, other = server.connect(), server.connect_protobuf()
        instance = wire.start("hello")
        other.start("hello")
        wire.event(instance)
        other.begin(instance)
        other.read_asked()
        status = wire.call("GetStatus", 0)
        assert (status["Events"], status["EventsHandled"]) == (2, 2)
        assert (status["Instances"], status["Connections"]) == (2, 2)
        assert 1e6 < status["Memory"] < 1e9
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for(lambda: "live events" in server.text())
        (line,) = [each for each in server.text().splitlines() if "live events" in each]
        assert "2 live events, 2 instances, 2 connections, 2 events handled" in line
        assert line.endswith(f"bytes of memory, pid {server.process.pid}")
        other.close()
        server.wait_for(lambda: wire.call("GetStatus", 0)["Connections"] == 1)
        assert wire.call("GetStatus", 0)["Events"] == 1


def test_connections_beyond_the_limit_wait(plugins: Path, short_path: Path) -> None:
    with serving(plugins, short_path / "k.sock", "--max-connections", "3") as server:
        wires = [server.connect() for _ in range(3)]
        for wire in wires:
            wire.call("GetStatus", 0)
        waiting = server.connect()
        waiting.timeout = 0.3
        with pytest.raises(TimeoutError):
            waiting.call("GetStatus", 0)
        assert wires[0].call("GetStatus", 0)["Connections"] == 3
        assert server.text().count("--max-connections allows no more") == 1
        wires[1].close()
        waiting.timeout = 10
        assert waiting.receive()[3]["Connections"] == 3


@pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])
def test_events_beyond_the_limit_fail(protocol: str) -> None:
    served = new_dispatcher(max_events=2)
    wire = dispatcher_with(served, lambda kong: kong.request.get_method())
    events = [wire.event(1) for _ in range(2)]
    if protocol == "msgpack":
        assert wire.event(1)["Data"]["Method"] == "kong.response.exit"
    else:
        third = DirectProtobuf(served)
        third.begin(1)
        (asked,) = third.waiting()
        assert asked is not None
        assert asked.function == "kong.response.exit"
    assert wire.step(events[0], "GET")["Data"] == "ret"
    assert wire.event(1)["Data"]["Method"] == "kong.request.get_method"


def test_events_beyond_the_limit_pass_where_failing_is_open() -> None:
    served = new_dispatcher(max_events=1, on_error="open")
    wire = dispatcher_with(served, lambda kong: kong.request.get_method())
    wire.event(1)
    assert wire.event(1)["Data"] == "ret"


def half(protocol: str, size: int) -> bytes:
    """The first part of a message with `size` bytes of its body."""
    if protocol == "msgpack":
        whole = msgpack.packb([0, 1, "plugin.GetStatus", [b"x" * 2 * size]])
        return bytes(whole[:size])
    return (2 * size).to_bytes(4, sys.byteorder) + b"\x08" * size


@pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])
def test_unfinished_messages_are_bounded_over_all_connections(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    with serving(plugins, short_path / "k.sock", "--max-unfinished", "1000000") as server:
        wire = server.connect()
        instance = wire.start("hello")
        small, large, late = (server.connect() for _ in range(3))
        small.socket.sendall(half(protocol, 1000))
        large.socket.sendall(half(protocol, 600_000))
        time.sleep(0.2)
        # A message that comes whole is no part of it.
        assert wire.call("InstanceStatus", instance)["Id"] == instance
        late.socket.sendall(half(protocol, 500_000))
        with pytest.raises((ConnectionError, OSError)):
            large.receive()
        assert "closing a connection that holds" in server.text()
        # What was closed counts no more, and the others are whole.
        again = server.connect()
        again.socket.sendall(half(protocol, 400_000))
        time.sleep(0.2)
        assert server.text().count("closing a connection") == 1
        assert wire.call("GetStatus", 0)["Connections"] == 4
        small.timeout = 0.1
        with pytest.raises(TimeoutError):
            small.receive()


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])
def test_a_message_beyond_the_limit_closes_its_connection(
    plugins: Path, short_path: Path, protocol: str, workers: tuple[str, ...]
) -> None:
    def config(size: int) -> str:
        return '{"message": "' + "x" * size + '"}'

    words = ("--max-message", "10000", *workers)
    with serving(plugins, short_path / "k.sock", *words) as server:
        connect: Any = server.connect if protocol == "msgpack" else server.connect_protobuf
        small, large = connect(), connect()
        assert small.start("hello", config(9000))
        with pytest.raises(ConnectionError):
            large.start("hello", config(11000))
        assert "--max-message" in server.text()
        assert small.start("hello", config(9000))


def test_the_longest_message_that_is_taken_is_of_a_size_that_makes_sense() -> None:
    for text in ("4095", "4294967296", "-1", "64M"):
        refused = run("serve", "--max-message", text)
        assert refused.returncode == 2
        assert b"is not a whole number, 4096 to 4294967295" in refused.stderr


def test_instances_beyond_the_limit_take_the_place_of_idle_ones(
    plugins: Path, short_path: Path
) -> None:
    with serving(plugins, short_path / "k.sock", "--max-instances", "5") as server:
        wire = server.connect()
        ids = [wire.start("hello") for _ in range(20)]
        assert wire.call("GetStatus", 0)["Instances"] == 5
        for id in ids:
            assert wire.event(id)["Data"]["Method"] == "kong.request.get_header"
        # All have an event under way: none of them may be closed.
        assert wire.call("GetStatus", 0)["Instances"] == 20


@pytest.mark.parametrize(
    "flag", ["--max-connections", "--max-events", "--max-instances", "--max-unfinished"]
)
def test_a_limit_is_a_whole_number(flag: str) -> None:
    for text in ("0", "-1", "x", "1.5"):
        refused = run("serve", flag, text)
        assert refused.returncode == 2
        assert b"is not a whole number, 1 or more" in refused.stderr


def test_a_lookup_that_fails_is_an_instance_that_is_not_there() -> None:
    served = new_dispatcher()
    found: Any = Instance(7, plugin_of(), {}, 0.0, {"access": lambda kong: None})

    def find(id: int) -> Any:
        if id == 7:
            return found
        raise ValueError

    served.on_missing_instance(find)
    wire = Direct(served)
    assert wire.event(7)["Data"] == "ret"
    with pytest.raises(Exception, match="No plugin instance 8"):
        wire.event(8)
