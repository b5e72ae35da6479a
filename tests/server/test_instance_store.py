"""Instances outlive the server's memory of them: restarts, kills, time; over both protocols."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import stat
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Direct, ProtobufSocket, RPCError, Socket
from core_defaults import new_dispatcher
from server_process import Process, serving

from kongps.plugins.loader import from_object
from kongps.server import instances as instances_module
from kongps.server import store as store_module
from kongps.server.commands import Commands
from kongps.server.instances import Instances
from kongps.server.placement import Placement
from kongps.server.store import InstanceStore, store_path
from kongps.settings import Settings

SECRET = "s3cret-value"


class Telling:
    """Sets a header to its configuration."""

    name: str = ""

    def access(self, kong: Any) -> None:
        kong.response.set_header("x", self.name)

    def close(self) -> None:
        print("closed", self.name, flush=True)


@pytest.fixture
def telling(plugins: Path) -> Path:
    (plugins / "telling.py").write_text(
        textwrap.dedent(
            """
            class Plugin:
                name: str = ""
                def access(self, kong):
                    kong.response.set_header("x", self.name)
                def close(self):
                    print("closed", self.name, flush=True)
            """
        )
    )
    return plugins


@pytest.fixture
def store(tmp_path: Path) -> Iterator[InstanceStore]:
    opened = InstanceStore(str(tmp_path / "k.sock.d" / "instances.sqlite"))
    assert opened.working
    yield opened
    opened.close()


def config(name: str) -> str:
    return json.dumps({"name": name})


def told(server: Process, instance: int, protocol: str) -> Any:
    """Runs an event of the plugin; gives the header that it set."""
    if protocol == "msgpack":
        answer = server.connect().event(instance)
        return answer["Data"]["Args"][-1]
    (asked,) = server.connect_protobuf().event(instance)
    return asked.args


def shows(server: Process, instance: int, protocol: str, name: str) -> bool:
    return name in str(told(server, instance, protocol))


def connect(server: Process, protocol: str) -> Socket | ProtobufSocket:
    return server.connect() if protocol == "msgpack" else server.connect_protobuf()


both = pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])


# --- a running server --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_an_id_goes_on_working_after_a_restart(
    telling: Path, short_path: Path, protocol: str, end: str
) -> None:
    path = short_path / "k.sock"
    with serving(telling, path) as server:
        wire = connect(server, protocol)
        ids = {f"{SECRET}-{n}": wire.start("telling", config(f"{SECRET}-{n}")) for n in range(20)}
        getattr(server.process, end)()
        server.end()
        assert SECRET not in server.text().replace(f"closed {SECRET}", "")
    with serving(telling, path) as server:
        for name, id in ids.items():
            assert shows(server, id, protocol, name)
        assert server.text().count("started again") == 20
        new = [connect(server, protocol).start("telling") for _ in range(20)]
        assert not set(new) & set(ids.values())
        assert SECRET not in server.text()


@both
def test_an_instance_that_is_not_used_is_closed_and_comes_back(
    telling: Path, short_path: Path, protocol: str
) -> None:
    with serving(telling, short_path / "k.sock", "--instance-ttl", "0.5") as server:
        id = connect(server, protocol).start("telling", config("again"))
        server.wait_for(lambda: "closed again" in server.text())
        assert f"instance {id} of plugin telling closed until it is used" in server.text()
        status = server.connect().call("GetStatus", 0)
        assert status["Instances"] == 0
        assert server.connect().call("InstanceStatus", id)["Config"] == {"name": "again"}
        assert shows(server, id, protocol, "again")
        assert server.connect().call("GetStatus", 0)["Instances"] == 1


@both
def test_an_instance_that_kong_closed_stays_closed(
    telling: Path, short_path: Path, protocol: str
) -> None:
    path = short_path / "k.sock"
    with serving(telling, path) as server:
        closed, idle = (server.connect().start("telling", config(SECRET)) for _ in range(2))
        server.connect().call("CloseInstance", closed)
        server.process.kill()
        server.end()
    with serving(telling, path) as server:
        # One that is not in memory can be closed too.
        assert server.connect().call("CloseInstance", idle)["Id"] == idle
        for id in (closed, idle):
            with pytest.raises((RPCError, ConnectionError)):
                told(server, id, protocol)
    # Not even the pages of the database remember the configuration.
    assert SECRET.encode() not in Path(store_path(str(path))).read_bytes()


@both
def test_what_cannot_start_from_the_store_fails_its_events(
    telling: Path, short_path: Path, protocol: str
) -> None:
    path = short_path / "k.sock"
    with serving(telling, path) as server:
        gone = server.connect().start("telling", config(SECRET))
        refused = server.connect().start("hello", '{"message": "x"}')
        server.process.kill()
        server.end()
    (telling / "telling.py").unlink()
    hello = telling / "hello.py"
    hello.write_text(hello.read_text().replace("message: str = ", "message: int = 0  # "))
    with serving(telling, path) as server:
        for id in (gone, refused):
            if protocol == "msgpack":
                assert server.connect().event(id)["Data"]["Method"] == "kong.response.exit"
            else:
                (asked,) = first_of(server.connect_protobuf(), id)
                assert asked == "kong.response.exit"
        assert SECRET not in server.text()


def first_of(wire: ProtobufSocket, id: int) -> list[str]:
    wire.begin(id)
    asked = wire.read_asked()
    return [] if asked is None else [asked.function]


@both
def test_without_the_store_an_id_ends_with_its_server(
    telling: Path, short_path: Path, protocol: str
) -> None:
    path = short_path / "k.sock"
    words = ("--no-instance-store", "--instance-ttl", "0.1")
    with serving(telling, path, *words) as server:
        id = connect(server, protocol).start("telling", config("a"))
        time.sleep(1.5)
        assert shows(server, id, protocol, "a")  # nothing to come back from: it is not closed
        server.process.kill()
        server.end()
    assert not os.path.exists(f"{path}.d")
    with serving(telling, path, *words) as server, pytest.raises((RPCError, ConnectionError)):
        told(server, id, protocol)


def test_the_store_is_for_the_servers_user_alone(telling: Path, short_path: Path) -> None:
    path = short_path / "k.sock"
    old = os.umask(0)
    try:
        with serving(telling, path) as server:
            server.connect().start("telling", config("a"))
            directory = Path(f"{path}.d")
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            modes = {stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}
            assert modes == {0o600}
    finally:
        os.umask(old)


@pytest.mark.parametrize("how", ["garbage", "another version", "directory", "no directory"])
def test_a_store_that_cannot_be_read_never_keeps_the_server_from_serving(
    telling: Path, short_path: Path, how: str
) -> None:
    path = short_path / "k.sock"
    place = Path(store_path(str(path)))
    if how == "no directory":
        place.parent.write_text("a file")
    else:
        place.parent.mkdir(mode=0o700)
    if how == "garbage":
        place.write_bytes(b"garbage" * 1000)
    elif how == "another version":
        with sqlite3.connect(place) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    elif how == "directory":
        place.mkdir()
    replaced = how in ("garbage", "another version")
    with serving(telling, path) as server:
        id = server.connect().start("telling", config("a"))
        assert shows(server, id, "msgpack", "a")
        assert server.text().count("replaced by an empty store") == replaced
        assert server.text().count("instances are not kept") == (not replaced)
        assert "Traceback" not in server.text()
        server.process.kill()
        server.end()
    if replaced:
        with serving(telling, path) as server:
            assert shows(server, id, "msgpack", "a")


def test_a_store_that_breaks_while_the_server_runs_is_replaced(
    telling: Path, short_path: Path
) -> None:
    path = short_path / "k.sock"
    place = Path(store_path(str(path)))
    with serving(telling, path) as server:
        wire = server.connect()
        before = wire.start("telling", config("before"))
        place.write_bytes(b"garbage" * 1000)
        after = wire.start("telling", config("after"))
        assert wire.event(before)["Data"]["Args"] == ["x", "before"]
        assert server.text().count("replaced by an empty store") == 1
        server.process.kill()
        server.end()
    with serving(telling, path) as server:
        assert shows(server, after, "msgpack", "after")


def test_the_store_of_a_live_server_is_left_alone_by_one_that_is_refused(
    telling: Path, short_path: Path
) -> None:
    from server_process import run

    path = short_path / "k.sock"
    with serving(telling, path) as server:
        id = server.connect().start("telling", config("a"))
        place = Path(store_path(str(path)))
        before = place.stat().st_mtime_ns
        refused = run("serve", "--plugins-directory", str(telling), "--socket", str(path))
        assert refused.returncode == 1
        assert place.stat().st_mtime_ns == before
        assert shows(server, id, "msgpack", "a")


# --- instances -------------------------------------------------------------------------------


def instances_with(
    store: InstanceStore | None, max_instances: int = 100, call_later: Any = None
) -> Instances:
    settings = Settings(handlers="inline")
    placement = Placement(None, settings)
    instances = Instances(
        new_dispatcher(placement.inline),
        {"telling": from_object(Telling, name="telling")},
        {},
        placement,
        max_instances=max_instances,
        call_later=call_later,
    )
    instances.store = store
    Commands(instances, int, "")
    return instances


def test_an_instance_with_an_event_under_way_is_not_closed_as_idle(store: InstanceStore) -> None:
    instances = instances_with(store)
    wire = Direct(instances.dispatcher)
    busy, idle = wire.start("telling"), wire.start("telling")
    answer = wire.event(busy)
    instances.close_idle(0.0)
    assert [each.id for each in instances.dispatcher.all_instances()] == [busy]
    wire.step(answer)
    instances.close_idle(60.0)
    assert instances.dispatcher.live_instances == 1
    instances.close_idle(0.0)
    assert instances.dispatcher.live_instances == 0
    for id in (busy, idle):
        wire.event(id)


def test_more_instances_than_may_be_close_the_one_used_least_recently(
    store: InstanceStore,
) -> None:
    for kept in (store, None):
        instances = instances_with(kept, max_instances=3)
        wire = Direct(instances.dispatcher)
        ids = [wire.start("telling", config(f"n{n}")) for n in range(3)]
        time.sleep(0.05)  # the dispatcher's clock is coarse
        wire.step(wire.event(ids[0]))
        ids.append(wire.start("telling", config("n3")))
        here = [each.id for each in instances.dispatcher.all_instances()]
        assert here == [ids[0], *ids[2:]]
        if kept is not None:
            assert wire.event(ids[1])["Data"]["Args"] == ["x", "n1"]
            assert instances.dispatcher.live_instances == 3
        else:
            with pytest.raises(RPCError, match="No plugin instance"):
                wire.event(ids[1])


def test_instances_that_come_back_from_the_store_make_room_before_others(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(store_module, "MAX_CONFIG_SIZE", 100)
    instances = instances_with(store, max_instances=2)
    wire = Direct(instances.dispatcher)
    large = wire.start("telling", config("l" * 100))
    small = wire.start("telling", config("s"))
    assert f"instance {large} of plugin telling is not kept for a restart" in caplog.text
    more = wire.start("telling", config("m" * 100))
    assert [each.id for each in instances.dispatcher.all_instances()] == [large, more]
    assert f"instance {small} of plugin telling closed until it is used: there are 2" in caplog.text
    assert "for good" not in caplog.text
    # Only those are left that do not come back: one of them has to go, and the log says so.
    wire.step(wire.event(small))
    assert instances.dispatcher.live_instances == 2
    text = f"instance {large} of plugin telling closed for good, since the store does not have it"
    assert text in caplog.text
    assert f"{large} of plugin telling closed until" not in caplog.text
    with pytest.raises(RPCError, match="No plugin instance"):
        wire.event(large)


def padded(name: str, size: int) -> str:
    """A configuration of some bytes."""
    return config(name).ljust(size)


def test_configurations_in_memory_are_bounded(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(instances_module, "MAX_CONFIGS_SIZE", 4000)
    instances = instances_with(store)
    wire = Direct(instances.dispatcher)
    ids = [wire.start("telling", padded(f"n{n}", 1000)) for n in range(4)]
    time.sleep(0.05)  # the dispatcher's clock is coarse
    wire.step(wire.event(ids[0]))
    ids.append(wire.start("telling", padded("n4", 1500)))
    assert [each.id for each in instances.dispatcher.all_instances()] == [ids[0], ids[3], ids[4]]
    assert f"{ids[1]} of plugin telling closed until it is used: configurations" in caplog.text
    for n, id in enumerate(ids):
        answer = wire.event(id)
        assert answer["Data"]["Args"] == ["x", f"n{n}"]
        wire.step(answer)
    wire.call("CloseInstance", ids[4])
    assert sum(len(each.config) for each in instances.dispatcher.all_instances()) <= 3
    for _ in range(100):  # what is closed takes no room
        wire.call("CloseInstance", wire.start("telling", padded("n", 3000)))
    assert "did not start" not in caplog.text


@pytest.mark.parametrize("how", ["busy", "not stored", "too large"])
def test_a_configuration_without_room_in_memory_fails_its_events_until_there_is_room(
    store: InstanceStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    monkeypatch.setattr(instances_module, "MAX_CONFIGS_SIZE", 4000)
    monkeypatch.setattr(store_module, "MAX_CONFIG_SIZE", 2500 if how == "not stored" else 1 << 20)
    later: list[Any] = []
    instances = instances_with(store, call_later=lambda seconds, call: later.append(call))
    wire = Direct(instances.dispatcher)
    small = wire.start("telling", padded("small", 1000))
    large = wire.start("telling", padded("large", 2900))
    events = [wire.event(large)] if how == "busy" else []
    failing = wire.start("telling", padded("failing", 4001 if how == "too large" else 2000))
    assert wire.event(failing)["Data"]["Method"] == "kong.response.exit"
    assert "configurations may take 4000 bytes of memory" in caplog.text
    assert "fewer or smaller ones" in caplog.text
    # The others stay as they are: closing them would not have been enough.
    assert instances.dispatcher.live_instances == 3
    assert wire.event(small)["Data"]["Args"] == ["x", "small"]
    for event in events:
        wire.step(event)
    wire.call("CloseInstance", large)
    assert wire.event(failing)["Data"]["Method"] == "kong.response.exit"
    while later:
        later.pop(0)()
    answer = wire.event(failing)["Data"]
    if how == "too large":
        assert answer["Method"] == "kong.response.exit"
    else:
        assert answer["Args"] == ["x", "failing"]


def test_an_id_is_not_given_out_again(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter([5, 5, 6, 5, 6, 7])
    monkeypatch.setattr("kongps.server.instances.secrets.randbelow", lambda _: next(dice))
    instances = instances_with(store)
    wire = Direct(instances.dispatcher)
    assert wire.start("telling", config("a")) == 6
    assert wire.start("telling", config("b")) == 7
    wire.call("CloseInstance", 6)
    instances_again = instances_with(store)
    assert Direct(instances_again.dispatcher).start("telling", config("c")) == 8


def test_a_configuration_of_any_bytes_comes_back_as_it_was(store: InstanceStore) -> None:
    first = instances_with(store)
    id = first.start("telling", b'{"name": "\xc3\xa9"}').id
    broken = first.start("telling", b"\xff\x00").id
    missing = first.start("no", "{}").id
    again = instances_with(store)
    wire = Direct(again.dispatcher)
    assert wire.event(id)["Data"]["Args"] == ["x", "é"]
    for failed in (broken, missing):
        assert wire.event(failed)["Data"]["Method"] == "kong.response.exit"


NO_NAMES = ["\udc80no", "../../etc/passwd", "_no", "n" * 201, "n" * 1_000_000]


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name[:20]))
def test_what_cannot_be_a_plugins_name_is_not_stored(store: InstanceStore, name: str) -> None:
    instances = instances_with(store)
    id = instances.start(name, config(SECRET)).id
    assert Direct(instances.dispatcher).event(id)["Data"]["Method"] == "kong.response.exit"
    assert not store.knows(id)
    assert os.path.getsize(store.path) < 20_000


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name[:20]))
def test_other_workers_fail_the_events_of_what_cannot_be_a_plugins_name(
    tmp_path: Path, name: str
) -> None:
    path = str(tmp_path / "d" / "instances.sqlite")
    stores = [InstanceStore(path, shared=True) for _ in range(2)]
    first, second = (instances_with(store) for store in stores)
    id = first.start(name, config(SECRET)).id
    assert Direct(second.dispatcher).event(id)["Data"]["Method"] == "kong.response.exit"
    assert os.path.getsize(path) < 20_000
    assert SECRET.encode() not in Path(path).read_bytes()
    for store in stores:
        store.close()


# --- the database ------------------------------------------------------------------------------


def test_the_store_forgets_what_was_closed_long_ago_and_nothing_that_kong_may_hold(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in range(1, 5):
        store.add(id, "p", b"{}", 1.0)
    store.close_instance(2)
    monkeypatch.setattr(store_module.time, "time", lambda: 1e10)
    store.close_instance(3)
    store.trim()
    assert [id for id in range(1, 5) if store.knows(id)] == [1, 3, 4]
    again = InstanceStore(store.path)
    assert [id for id in range(1, 5) if again.find(id)] == [1, 4]
    again.close()


@both
def test_an_id_that_kong_has_not_used_for_months_goes_on_working(
    telling: Path, short_path: Path, protocol: str
) -> None:
    path = short_path / "k.sock"
    with serving(telling, path) as server:
        id = connect(server, protocol).start("telling", config("old"))
    with contextlib.closing(sqlite3.connect(store_path(str(path)))) as database, database:
        database.execute("UPDATE instances SET last_used = 1.0")
    with serving(telling, path) as server:
        assert shows(server, id, protocol, "old")


def test_the_store_forgets_what_is_over_the_count(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED", 3)
    clock = iter(range(1, 100))
    monkeypatch.setattr(store_module.time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(store_module, "MAX_AGE", 1000.0)
    for id in range(1, 6):
        store.add(id, "p", b"{}", 1.0)
    store.close_instance(5)
    store.touch([1])
    store.trim()
    assert [id for id in range(1, 6) if store.find(id)] == [1, 3, 4]
    assert not store.knows(5)


def test_the_store_forgets_what_is_over_the_size(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED_SIZE", 1 << 20)
    clock = iter(range(1, 1000))
    monkeypatch.setattr(store_module.time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(store_module, "USED_AGAIN_AFTER", 1000.0)
    for id in range(1, 16):
        store.add(id, "p", bytes(100_000), 1.0)
        store.add(100 + id, "p", b"{}", 1.0)
        store.close_instance(100 + id)
    store.touch([2])
    store.trim()
    kept = [id for id in range(1, 16) if store.find(id)]
    assert kept == [2, *range(15 - len(kept) + 2, 16)]
    assert 8 <= len(kept) <= 10
    assert store.knows(101)  # what has no configuration takes no room
    store.trim()
    assert len([id for id in range(1, 16) if store.find(id)]) == len(kept)


def test_a_store_that_grows_fast_is_trimmed_at_once_and_keeps_what_is_used(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_STORED_SIZE", 1 << 20)
    instances = instances_with(store, max_instances=5)
    wire = Direct(instances.dispatcher)
    used = wire.start("telling", config("used"))
    answer = wire.event(used)
    ids = [wire.start("telling", padded("n", 20_000)) for _ in range(200)]
    assert os.path.getsize(store.path) < (1 << 20) * 5 // 4
    wire.step(answer)
    assert store.find(used) is not None
    assert store.find(ids[-1]) is not None
    assert store.find(ids[0]) is None


def test_a_configuration_that_is_too_large_is_not_kept(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "MAX_CONFIG_SIZE", 10)
    assert not store.add(1, "p", SECRET.encode(), 1.0)
    assert store.find(1) is None
    assert "instance 1 of plugin p is not kept" in caplog.text
    assert SECRET not in caplog.text


def test_a_store_that_another_process_holds_is_used_again_when_it_lets_go(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.3)
    again = InstanceStore(store.path)
    assert again.add(1, "p", b"{}", 1.0)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        before = time.monotonic()
        assert not again.add(2, "p", b"{}", 1.0)
        waited = time.monotonic() - before
        assert 0.2 < waited < 1.5
        for _ in range(20):  # who has waited in vain does not wait again
            assert again.find(1) is None
            assert not again.knows(1)
            again.touch([1])
            again.trim()
        assert time.monotonic() - before < waited + 0.2
    assert again.find(1) is not None
    again.touch([1])
    assert again.add(3, "p", b"{}", 1.0)
    assert store.find(3) is not None
    (record,) = caplog.records
    assert "another process holds" in record.getMessage()


def test_a_reader_of_the_store_that_takes_its_time_does_not_break_it(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.01)
    again = InstanceStore(store.path)
    assert again.add(1, "p", b"{}", 1.0)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM instances").fetchall()
        assert not again.add(2, "p", b"{}", 1.0)
        again.touch([1])
        assert again.find(1) is not None
    assert again.find(2) is None
    again.touch([1])
    assert again.add(2, "p", b"{}", 1.0)


def test_an_instance_that_is_found_again_counts_as_used(
    store: InstanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that are started again more often than they trim must not forget what Kong uses."""
    clock = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: clock)
    monkeypatch.setattr(store_module, "MAX_STORED", 3)
    for id in (1, 2):
        store.add(id, "p", b"{}", 1.0)
    for new in range(10, 15):
        clock += 2 * store_module.USED_AGAIN_AFTER
        store.close()
        store = InstanceStore(store.path)
        assert store.find(1) is not None
        store.add(new, "p", b"{}", 1.0)
    assert store.find(2) is None


def test_configurations_that_come_and_go_do_not_make_the_store_grow(store: InstanceStore) -> None:
    def run(ids: range) -> int:
        for id in ids:
            store.add(id, "p", bytes(5000), 1.0)
            store.close_instance(id)
        return os.path.getsize(store.path)

    first = run(range(1, 100))
    # What is left of one is its id: they are not given out again.
    assert run(range(100, 1100)) - first < 1000 * 80


def test_links_and_files_of_others_are_not_taken_for_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "instances.sqlite").symlink_to(target)
    assert not InstanceStore(str(tmp_path / "d" / "instances.sqlite")).working
    (tmp_path / "linked").symlink_to(tmp_path / "d")
    assert not InstanceStore(str(tmp_path / "linked" / "instances.sqlite")).working
    if os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        os.chown(other, 12345, 12345)
        assert not InstanceStore(str(other / "instances.sqlite")).working
    assert target.read_text() == "precious"


def test_a_stored_instance_does_not_show_its_configuration(store: InstanceStore) -> None:
    store.add(1, "p", SECRET.encode(), 1.0)
    found = store.find(1)
    assert found is not None
    assert found.config == SECRET.encode()
    assert SECRET not in repr(found)
