"""Servers that are killed, stopped and started again while Kongs send them requests.

Each server is a process of its own. The load comes from ``kongps.testing.Kong`` in the versions
that differ in what they do about a server that is gone, over both protocols: they keep their
connections and the ids of their instances, and react as Kong does to what they find lost. Each has
configurations of its own that change meanwhile, and each response has to say which request it was
for and which configuration answered. The long versions are left to ``make soak``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import msgpack
import pytest
from client import ProtobufSocket, RPCError, Socket
from server_process import environment

from kongps.errors import ServerError
from kongps.server.sockets import SocketFiles
from kongps.server.store import store_path
from kongps.testing import Kong, PluginConfig, Request, Result

# Version and protocol of the Kongs.
KINDS = (
    ("2.0", "msgpack"), ("2.8", "msgpack"), ("3.9", "msgpack"),
    ("2.8", "protobuf"), ("3.9", "protobuf"),
)  # fmt: skip

both = pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])

# A short run for the suite, and a long one.
rounds = pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.soak)])

PLUGIN = """
class Plugin:
    config: str = ""
    size: int = 0

    def access(self, kong):
        asked = kong.request.get_header("x-asked")
        kong.response.set_header("x-way", "not waited for over ProtoBuf:1")
        kong.request.get_method()
        kong.response.set_header("x-{name}", asked + " {name} " + self.config)
        if self.size:
            kong.response.exit(403, "x" * self.size)
"""

PLUGINS = ("steady", "changing", "restless")

# Plugins whose configuration changes, and how often: after so many requests.
CHANGING = {"changing": 3, "restless": 1}

AT_ONCE = 4  # requests that each Kong has under way at the same time

# What no server may say.
UNWANTED = (
    "another server listens",
    "not kept",
    "replaced by an empty store",
    "damaged",
    "removed or replaced",
    "had not ended",
    "closing a connection",
    "Traceback",
    "[error]",
)


class Site:
    """A socket, and the servers that listen there one after the other.

    :ivar turn: odd while something is done to a server, so that requests may be lost.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "k.sock"
        self.plugins = directory / "plugins"
        self.plugins.mkdir()
        for name in PLUGINS:
            (self.plugins / f"{name}.py").write_text(PLUGIN.format(name=name))
        self.words = (
            "serve", "--plugins-directory", str(self.plugins), "--socket", str(self.path)
        )  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        self.turn = 0

    def log(self, number: int) -> Path:
        return self.directory / f"{number}.log"

    def text(self, number: int = -1) -> str:
        """What a server has logged."""
        return self.log(range(len(self.processes))[number]).read_text()

    def unwanted(self) -> list[str]:
        """What servers have logged and must not."""
        lines = (line for n in range(len(self.processes)) for line in self.text(n).splitlines())
        return [line for line in lines if any(words in line for words in UNWANTED)]

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts a server, without waiting for it."""
        with self.log(len(self.processes)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kongps", *self.words, *words],
                env=environment(), stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts a server and waits until it serves."""
        process = self.begin(*words)
        self.wait_until_it_serves(process)
        return process

    def wait_until_it_serves(self, process: subprocess.Popen[bytes]) -> None:
        def serves() -> bool:
            assert process.poll() is None, self.text()
            return self.serving() == process.pid

        self.wait_for(serves)

    def serving(self, path: Path | None = None) -> int | None:
        """The process that answers on the socket."""
        try:
            with contextlib.closing(Socket(path or self.path)) as wire:
                pid: int = wire.call("GetStatus", 0)["Pid"]
                return pid
        except OSError:
            return None

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.005)

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """Requests that are under way during the block may be lost."""
        self.turn += 1
        yield
        self.turn += 1

    def stored(self) -> list[int]:
        """Ids of the instances that the store can bring back."""
        with contextlib.closing(sqlite3.connect(store_path(str(self.path)))) as database:
            found = database.execute("SELECT id FROM instances WHERE config IS NOT NULL")
            return [id for (id,) in found]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    made = Site(short_path)
    yield made
    made.close()


class Load:
    """A Kong that sends requests until `stop` is set, in a thread of its own.

    :ivar served: events with the right answer.
    :ivar lost: how many others there were that no server had begun, and why.
    :ivar broken_off: those that a server had begun and not ended.
    :ivar wrong: all that must not be.
    :ivar ids: of the instance whose configuration does not change.
    """

    def __init__(self, site: Site, number: int, version: str, protocol: str) -> None:
        self.site = site
        self.name = f"{number}-{version}-{protocol}"
        # Over ProtoBuf:1 Kong 3.9 starts an instance again when it loses a connection.
        self.keeps_ids = (version, protocol) != ("3.9", "protobuf")
        self.configs = dict.fromkeys(PLUGINS, f"{self.name}-0")
        self.kong = Kong(
            site.path, version=version, protocol=protocol, timeout=30.0,
            plugins=[PluginConfig(name, {"config": self.configs[name]}) for name in PLUGINS],
        )  # fmt: skip
        self.served = self.rounds = self.changes = 0
        self.lost: Counter[str] = Counter()
        self.broken_off: list[str] = []
        self.wrong: list[str] = []
        self.ids: set[int] = set()
        self.stop = False
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            while not self.stop and not self.wrong:
                self.round()
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def round(self) -> None:
        """Some requests at once."""
        self.rounds += 1
        turn = self.site.turn
        for name, often in CHANGING.items():
            if self.rounds % often == 0:
                self.changes += 1
                self.configs[name] = f"{self.name}-{self.changes}"
                self.kong.configure(name, {"config": self.configs[name]})
        asked = [f"{self.name}-{self.rounds}-{number}" for number in range(AT_ONCE)]
        results = self.kong.requests([Request("GET", "/", {"x-asked": text}) for text in asked])
        calm = turn % 2 == 0 and turn == self.site.turn
        lost_before = sum(self.lost.values())
        for text, result in zip(asked, results):
            for name in PLUGINS:
                self.check(result, name, f"{text} {name} {self.configs[name]}", calm)
        if calm:
            self.ids |= self.held("steady")
        elif sum(self.lost.values()) > lost_before:
            time.sleep(0.01)  # nobody listens: let the others start

    def check(self, result: Result, name: str, expected: str, calm: bool) -> None:
        found = result.headers.get(f"x-{name}")
        if found == expected:
            self.served += 1
        elif found is not None or calm:
            self.wrong.append(f"not {expected!r}:\n{result.describe()}")
        elif any(call.plugin == name for call in result.calls):
            self.broken_off.append(result.describe())
        else:
            self.lost[" / ".join(line.message for line in result.log if line.level == "err")] += 1

    def held(self, name: str = "") -> set[int]:
        """The ids that Kong holds."""
        (worker,) = self.kong.workers
        held = worker.instances.items()
        return {one.id for key, one in held if one.id is not None and f":{name}" in key}


class Loads:
    """Several of them, each another Kong."""

    def __init__(self, site: Site, kinds: Iterable[tuple[str, str]] = KINDS) -> None:
        self.site = site
        self.loads = [Load(site, number, *kind) for number, kind in enumerate(kinds)]

    def __enter__(self) -> Loads:
        for load in self.loads:
            load.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for load in self.loads:
            load.stop = True
        for load in self.loads:
            load.thread.join(60)
            load.kong.close()
        self.check()

    def check(self) -> None:
        assert [wrong for load in self.loads for wrong in load.wrong] == []

    def more(self, count: int = 36) -> None:
        """Waits until each has had that many more events served."""
        goals = [load.served + count for load in self.loads]
        self.site.wait_for(
            lambda: all(each.served >= goal or each.wrong for each, goal in zip(self.loads, goals))
        )
        self.check()

    def held(self) -> set[int]:
        return {id for load in self.loads for id in load.held()}

    def broken_off(self) -> list[str]:
        return [event for load in self.loads for event in load.broken_off]

    def tell(self) -> None:
        """Shows what was done: ``pytest -s``."""
        served = sum(load.served for load in self.loads)
        changes = sum(load.changes for load in self.loads)
        lost = sum((load.lost for load in self.loads), Counter())
        print(
            f"\n{served} events served, {changes} configurations, {len(self.broken_off())} events "
            f"broken off, {sum(lost.values())} not begun: {dict(lost)}"
        )


# --- killed ------------------------------------------------------------------------------------


@rounds
def test_after_a_kill_each_request_is_served_by_its_own_configuration(
    site: Site, rounds: int
) -> None:
    server = site.start()
    with Loads(site) as loads:
        for _ in range(rounds):
            loads.more()
            with site.disturbed():
                server.kill()
                server = site.start()
        loads.more()
    loads.tell()
    for load in loads.loads:
        if load.keeps_ids:
            assert len(load.ids) == 1, "the id that Kong held was no longer good"
    assert site.unwanted() == []
    # What Kong holds is there. More is only what was started or to be closed at a kill.
    stored = set(site.stored())
    assert loads.held() <= stored
    assert len(stored - loads.held()) <= rounds * len(KINDS) * len(PLUGINS) * 2
    status = Socket(site.path).call("GetStatus", 0)
    assert status["Events"] == 0
    assert sorted(os.listdir(site.path.parent)) == sorted(
        ["k.sock", "k.sock.d", "plugins", *(f"{n}.log" for n in range(rounds + 1))]
    )


@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_a_kill_in_the_middle_of_writing_loses_nothing_that_kong_was_answered(
    site: Site, rounds: int
) -> None:
    dice = random.Random(rounds)
    lock = threading.Lock()
    started: dict[int, str] = {}
    closed: set[int] = set()
    number = journals = 0

    def client() -> None:
        """Starts and closes instances until the server is gone."""
        nonlocal number
        wire: Any = dice.choice([Socket, ProtobufSocket])(site.path)
        with contextlib.suppress(OSError), contextlib.closing(wire.socket):
            while True:
                with lock:
                    number += 1
                    config = f"c{number}"
                    name = dice.choice(PLUGINS)
                    old = dice.choice([*started, 0])
                    told = started.pop(old, None) if dice.random() < 0.7 else None
                more = "m" * dice.choice([10, 1_000, 100_000])
                id = wire.start(name, json.dumps({"config": config, "__key__": more}))
                with lock:
                    assert id not in started
                    assert id not in closed
                    started[id] = f"{name} {config}"
                if told is None:
                    continue
                # From here on it may be closed already, or not yet.
                if isinstance(wire, Socket):
                    wire.call("CloseInstance", old)
                else:
                    wire.call("cmd_close_instance", instance_id=old)
                with lock:
                    closed.add(old)

    server = site.start("--log-level", "warning")
    for _ in range(rounds):
        before = number
        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(client) for _ in range(3)]
            goal = before + dice.randrange(20, 200)
            site.wait_for(lambda goal=goal: number >= goal)  # type: ignore[misc]
            server.kill()
            server.wait()
            for one in clients:
                one.result(30)
        journal = Path(store_path(str(site.path)) + "-journal")
        journals += journal.exists() and journal.stat().st_size > 0
        server = site.start("--log-level", "warning")
        wire = Socket(site.path)
        for id, told in dice.sample(sorted(started.items()), min(40, len(started))):
            assert answer_of(wire, id) == told
        for id in dice.sample(sorted(closed), min(20, len(closed))):
            with pytest.raises(RPCError, match="No plugin instance"):
                wire.event(id)
        wire.close()
    print(f"\n{number} instances, {len(closed)} closed, {rounds} kills, {journals} in a write")
    assert site.unwanted() == []


def answer_of(wire: Socket, id: int) -> str:
    """Runs an event over MsgPack:1; gives the plugin and the configuration that answered."""
    answer = wire.event(id)
    told = ""
    while answer["Data"] != "ret":
        method, args = answer["Data"]["Method"], answer["Data"]["Args"]
        assert method != "kong.response.exit"
        told = args[-1] if args else told
        answer = wire.step(answer, {"kong.request.get_header": "asked"}.get(method))
    asked, _, told = told.partition(" ")
    assert asked == "asked"
    return told


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def fill_with_zeros(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 + 2048)
        file.write(bytes(path.stat().st_size - file.tell()))


def change_a_letter(path: Path) -> None:
    """What SQLite does not see: one configuration becomes another."""
    before = path.read_bytes()
    assert b'"config":"0-2.0-msgpack-' in before
    path.write_bytes(before.replace(b'"config":"0-2.0-', b'"config":"0-2.1-'))


def leave_a_journal(path: Path) -> None:
    Path(f"{path}-journal").write_bytes(random.Random(1).randbytes(9000))


@pytest.mark.parametrize(
    "damage", [truncate, empty, fill_with_zeros, change_a_letter, leave_a_journal]
)
def test_a_store_that_was_damaged_gives_no_request_to_another_configuration(
    site: Site, damage: Callable[[Path], None]
) -> None:
    # Kong 2.8 over ProtoBuf:1 cannot start an instance again.
    kinds = [kind for kind in KINDS if kind != ("2.8", "protobuf")]
    server = site.start()
    with Loads(site, kinds) as loads:
        loads.more(12)
        with site.disturbed():
            server.kill()
            server.wait()
            damage(Path(store_path(str(site.path))))
            site.start()
        loads.more(12)
    assert "Traceback" not in site.text()
    assert "not kept" not in site.text()


# --- stop signals ------------------------------------------------------------------------------


class Half:
    """An event on a connection of its own, of which Kong has done the first half.

    :param name: the plugin.
    :param config: what its instance is to answer.
    """

    def __init__(
        self, path: Path, protocol: str, name: str = "steady", config: str = "", **more: Any
    ) -> None:
        self.name = name
        self.expected = f"asked {name} {config}"
        self.wire: Any = Socket(path) if protocol == "msgpack" else ProtobufSocket(path)
        self.id = self.wire.start(name, json.dumps({"config": config, **more}))

    @property
    def is_msgpack(self) -> bool:
        return isinstance(self.wire, Socket)

    def connect(self, path: Path) -> None:
        """Another connection, from now on."""
        self.wire = type(self.wire)(path)

    def send(self) -> None:
        self.wire.begin(self.id)

    def read(self) -> None:
        """Reads what the server asks first."""
        if self.is_msgpack:
            _, _, error, self.asked = self.wire.receive()
            assert error is None, error
            assert self.asked["Data"]["Method"] == "kong.request.get_header"
        else:
            self.asked = self.wire.read_asked()
            assert self.asked.function == "kong.request.get_header"

    def begin(self) -> Half:
        self.send()
        self.read()
        return self

    def finish(self) -> None:
        """The second half: everything else, and the right answer."""
        told = None
        while not self.is_over():
            method, args = self.call()
            if method == "kong.response.set_header" and args[0] == f"x-{self.name}":
                told = args[1]
            self.answer({"kong.request.get_header": "asked"}.get(method))
        assert told == self.expected

    def is_over(self) -> bool:
        over: bool = self.asked["Data"] == "ret" if self.is_msgpack else self.asked is None
        return over

    def call(self) -> tuple[str, list[Any]]:
        if self.is_msgpack:
            return self.asked["Data"]["Method"], self.asked["Data"]["Args"]
        args = self.asked.args
        if self.asked.function == "kong.response.set_header":
            return self.asked.function, [args["k"], args["v"]]
        return self.asked.function, []

    def answer(self, value: Any) -> None:
        if self.is_msgpack:
            self.asked = self.wire.step(self.asked, value)
        else:
            self.wire.answer(self.asked, value)
            self.asked = self.wire.read_asked()

    def run(self) -> None:
        self.begin().finish()

    def run_until_closed(self) -> None:
        """As Kong does with a connection from its pool, until the server has had enough of it."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.run()

    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        self.wire.socket.settimeout(10)
        return bool(self.wire.socket.recv(1) == b"")


@contextlib.contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Keeps a server from doing anything."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    yield
    process.send_signal(signal.SIGCONT)


@both
def test_events_under_way_finish_when_the_server_stops(site: Site, protocol: str) -> None:
    old = site.start()
    halves = [
        Half(site.path, protocol, name, f"{name}-{number}").begin()
        for number in range(5)
        for name in PLUGINS
    ]
    old.terminate()
    new = site.start()
    # Who connects now gets the new server, also with an id from the old one.
    other = Half(site.path, protocol, "steady", "other")
    other.run()
    halves[0].finish()
    halves[0].connect(site.path)
    halves[0].run()
    assert old.poll() is None
    for half in reversed(halves[1:]):
        half.finish()
    assert old.wait(20) == 0
    assert site.serving() == new.pid
    assert site.unwanted() == []


@both
def test_what_was_sent_before_the_stop_signal_is_answered(site: Site, protocol: str) -> None:
    """More than it accepts, or reads, at a time; and nothing else is under way."""
    old = site.start()
    halves = [Half(site.path, protocol, "steady", f"c{number}") for number in range(300)]
    for half in halves:
        half.run()
    with paused(old):
        for half in halves[::2]:
            half.connect(site.path)
        for half in halves:
            half.send()
        old.terminate()
    for half in halves:
        half.read()
    site.start()
    for half in halves:
        half.finish()
    assert old.wait(20) == 0
    assert site.unwanted() == []


def test_an_answer_that_kong_reads_slowly_comes_whole(site: Site) -> None:
    old = site.start()
    half = Half(site.path, "msgpack", "steady", "c", size=5_000_000).begin()
    for value in ("asked", None, "GET"):
        half.answer(value)
    half.wire.socket.sendall(
        msgpack.packb([0, 9, "plugin.Step", [{"EventId": half.asked["EventId"]}]])
    )
    # The event is over: its last answer waits in the server.
    site.wait_for(lambda: Socket(site.path).call("GetStatus", 0)["Events"] == 0)
    old.terminate()
    site.start()
    _, _, error, result = half.wire.receive()
    assert error is None
    assert result["Data"]["Method"] == "kong.response.exit"
    assert result["Data"]["Args"] == [403, "x" * 5_000_000]
    assert old.wait(20) == 0
    assert site.unwanted() == []


@pytest.mark.parametrize("size", [0, 1000])
def test_answers_to_calls_that_were_not_waited_for_are_still_read(site: Site, size: int) -> None:
    """Over ProtoBuf:1 an event is over before Kong has done all that it asked for."""
    old = site.start()
    half = Half(site.path, "protobuf", "steady", "c", size=size).begin()
    half.answer("asked")
    assert half.call() == ("kong.response.set_header", ["x-way", "not waited for over ProtoBuf:1"])
    half.answer(None)
    half.answer("GET")
    assert half.call() == ("kong.response.set_header", ["x-steady", "asked steady c"])
    assert Socket(site.path).call("GetStatus", 0)["Events"] == 0
    old.terminate()
    site.start()
    half.answer(None)
    if size:
        assert half.asked.function == "kong.response.exit"
    else:
        assert half.is_over()
    assert half.is_closed()
    assert old.wait(20) == 0
    assert site.unwanted() == []


@both
def test_kongs_pool_is_served_by_the_old_server_until_the_new_one_listens(
    site: Site, protocol: str
) -> None:
    old = site.start()
    waiting = Half(site.path, protocol, "changing", "waiting").begin()
    pooled = [Half(site.path, protocol, "steady", f"c{number}") for number in range(4)]
    old.terminate()
    site.wait_for(lambda: not site.path.exists())
    for _ in range(3):
        for half in pooled:
            half.run()
    site.start()
    scout = pooled.pop()
    scout.run_until_closed()
    # From now on each is closed when what came on it is answered, and no earlier.
    last = pooled[0].begin()
    for half in pooled[1:]:
        half.run()
        assert half.is_closed()
        half.connect(site.path)
        half.run()
    last.finish()
    assert last.is_closed()
    assert old.poll() is None
    waiting.finish()
    assert waiting.is_closed()
    assert old.wait(20) == 0
    assert site.unwanted() == []


def test_an_event_that_kong_has_left_does_not_keep_a_server_without_connections(
    site: Site,
) -> None:
    old = site.start("--shutdown-timeout", "60")
    left = Half(site.path, "msgpack").begin()
    other = Half(site.path, "msgpack").begin()
    left.wire.close()
    old.terminate()
    site.start()
    other.finish()
    other.run_until_closed()
    # Nobody can bring the step that the first event waits for.
    assert old.wait(20) == 0
    assert "1 events had not ended in time" in site.text(0)


@both
def test_a_configuration_that_changes_while_two_servers_share_the_store(
    site: Site, protocol: str
) -> None:
    old = site.start()
    before = Half(site.path, protocol, "steady", "before").begin()
    changed = Half(site.path, protocol, "steady", "unused")
    old.terminate()
    site.wait_for(lambda: not site.path.exists())
    # The new instance is started on a connection that Kong has in its pool.
    wire = changed.wire
    changed.id = wire.start("steady", '{"config": "changed"}')
    changed.expected = "asked steady changed"
    site.start()
    changed.connect(site.path)
    changed.run()
    # The old one is closed by the new server, which does not know it, while the old one has an
    # event of it under way.
    if protocol == "msgpack":
        Socket(site.path).call("CloseInstance", before.id)
    else:
        ProtobufSocket(site.path).call("cmd_close_instance", instance_id=before.id)
    before.finish()
    assert old.wait(20) == 0
    assert before.id not in site.stored()
    assert changed.id in site.stored()
    before.connect(site.path)
    with pytest.raises((AssertionError, ConnectionError), match=r"No plugin instance|closed"):
        before.begin()
    changed.run()
    assert site.unwanted() == []


# --- one after the other ------------------------------------------------------------------------


@rounds
def test_a_server_that_is_started_as_its_predecessor_stops(site: Site, rounds: int) -> None:
    server = site.start()
    with Loads(site) as loads:
        for _ in range(rounds):
            loads.more()
            with site.disturbed():
                old = server
                old.terminate()
                server = site.begin()
                site.wait_until_it_serves(server)
                assert old.wait(30) == 0
        loads.more()
    loads.tell()
    assert loads.broken_off() == []
    assert site.unwanted() == []
    for load in loads.loads:
        assert len(load.ids) == 1 or not load.keeps_ids
    assert loads.held() <= set(site.stored())


def test_a_server_waits_for_one_that_is_busy_and_gets_both_its_sockets(site: Site) -> None:
    (site.plugins / "tells.py").write_text(
        "print('imported', flush=True)\nclass Plugin:\n    def access(self, kong): ...\n"
    )
    site.words = ("-p", str(site.directory), "-d", str(site.plugins))
    site.path, second = (site.directory / f"{name}_pluginserver.sock" for name in ("go", "python"))
    old = site.start()
    half = Half(site.path, "msgpack").begin()
    with paused(old):
        old.terminate()
        new = site.begin()
        site.wait_for(lambda: "imported" in site.text())
        with pytest.raises(subprocess.TimeoutExpired):
            new.wait(0.5)
    site.wait_until_it_serves(new)
    assert site.serving(second) == new.pid
    half.finish()
    assert old.wait(20) == 0
    assert site.serving(second) == site.serving() == new.pid
    assert site.unwanted() == []


def test_kong_2_0_that_is_killed_and_started_again(site: Site) -> None:
    """Its old server has yet to see that it is gone when the new one starts."""
    site.words = ("-p", str(site.directory), "-d", str(site.plugins))
    site.path = site.directory / "go_pluginserver.sock"
    start = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); sys.stdin.read()"
    kong = subprocess.Popen(
        [sys.executable, "-c", start, sys.executable, "-m", "kongps", *site.words],
        env=environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with kong:
        site.wait_for(lambda: site.serving() is not None)
        old = site.serving()
        half = Half(site.path, "msgpack", "steady", "kept")
        kong.kill()
    new = site.begin()
    site.wait_until_it_serves(new)
    assert old != new.pid
    half.connect(site.path)
    half.run()
    assert site.unwanted() == []


def test_a_server_takes_a_socket_away_only_once(site: Site) -> None:
    """The next server's file may have the number that the last one's had."""
    old = site.start()
    half = Half(site.path, "msgpack").begin()
    link = site.directory / "link"
    os.link(site.path, link)
    old.terminate()
    site.wait_for(lambda: not site.path.exists())
    os.link(link, site.path)
    half.finish()
    assert old.wait(20) == 0
    assert site.path.exists()


def test_a_server_never_offers_or_removes_the_socket_of_another(short_path: Path) -> None:
    path = str(short_path / "k.sock")
    old, new, third = SocketFiles(), SocketFiles(), SocketFiles()
    with contextlib.ExitStack() as stack:
        stack.enter_context(old.open(path, 0o660, 8, 0.0))
        with pytest.raises(ServerError, match="another server listens"):
            new.open(path, 0o660, 8, 0.0)
        assert not old.replaced
        old.offer()
        assert not old.replaced
        stack.enter_context(new.open(path, 0o660, 8, 0.0))
        assert old.replaced
        old.offer()  # a second signal
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with pytest.raises(ServerError, match="another server listens"):
            third.open(path, 0o660, 8, 0.0)
        old.remove()
        assert os.path.exists(path)
        new.remove()
        assert not os.path.exists(path)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_directory_that_is_locked_keeps_no_server_from_ending(
    site: Site, workers: tuple[str, ...]
) -> None:
    server = site.start(*workers)
    handle = os.open(site.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        server.terminate()
        assert server.wait(5) == 0
        assert not site.path.exists()
    finally:
        os.close(handle)


@both
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_nobody_who_connects_during_a_restart_finds_no_server(
    site: Site, protocol: str, workers: tuple[str, ...]
) -> None:
    old = site.start(*workers)
    pooled = Half(site.path, protocol)  # what tells the server that Kong is there
    begun, go = site.directory / "begun", site.directory / "go"
    (site.plugins / "slow.py").write_text(
        f"import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.005)\n"
        f"{PLUGIN.format(name='slow')}"
    )
    new = site.begin(*workers)
    site.wait_for(begun.exists)
    old.terminate()
    for number in range(5):
        Half(site.path, protocol, "steady", f"c{number}").run()
    go.touch()
    server = old.pid
    while server != new.pid:
        wire = Socket(site.path)
        # The old one may close what it had taken, when the new one has come.
        with contextlib.suppress(ConnectionError), contextlib.closing(wire):
            server = wire.call("GetStatus", 0)["Pid"]
    pooled.run_until_closed()
    assert old.wait(20) == 0
    assert site.unwanted() == []


@both
def test_a_server_that_takes_long_to_import_its_plugins(site: Site, protocol: str) -> None:
    """Until it listens, the one before it serves those who are connected."""
    old = site.start()
    half = Half(site.path, protocol).begin()
    pooled = Half(site.path, protocol, "steady", "pooled")
    slow = site.plugins / "slow.py"
    fifo = site.directory / "fifo"
    os.mkfifo(fifo)
    slow.write_text(f"open({str(fifo)!r}).read()\n{PLUGIN.format(name='slow')}")
    old.terminate()
    new = site.begin()
    with fifo.open("w"):  # it is in the middle of its import now
        site.wait_for(lambda: not site.path.exists())
        with pytest.raises(OSError, match="No such file"):
            Half(site.path, protocol)
        pooled.run()
    site.wait_until_it_serves(new)
    pooled.run_until_closed()
    pooled.connect(site.path)
    pooled.run()
    half.finish()
    assert old.wait(20) == 0
    assert site.unwanted() == []


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_restarts_and_changes_leave_nothing_behind(site: Site, rounds: int) -> None:
    """Memory, instances, files and the store are as large after many restarts as after one."""
    store = Path(store_path(str(site.path)))
    changes = 100
    held = {("steady", number): 0 for number in range(5)}
    readings = []
    for round in range(rounds + 1):
        server = site.start("--log-level", "warning")
        wires: list[Any] = [Socket(site.path), ProtobufSocket(site.path)]
        for change in range(changes):
            key = ("steady", change % len(held))
            config = json.dumps({"config": f"{round}-{change}", "__key__": "k" * 5000})
            new = wires[change % 2].start("steady", config)
            if held[key]:
                Socket(site.path).call("CloseInstance", held[key])
            held[key] = new
        for id in held.values():
            assert answer_of(wires[0], id).startswith(f"steady {round}-")
        status = wires[0].call("GetStatus", 0)
        assert status["Instances"] == len(held)
        assert set(site.stored()) == set(held.values())
        readings.append((status["Memory"], store.stat().st_size))
        for wire in wires:
            wire.close()
        if round % 2:
            server.kill()
        else:
            server.terminate()
        server.wait(20)
    print(f"\n{rounds} restarts, {rounds * changes} changes: {readings[0]} -> {readings[-1]}")
    memory, size = (max(reading) for reading in zip(*readings[1:]))
    assert memory - readings[0][0] < 1_000_000
    # The ids stay for a while, so as not to be used again.
    assert size - readings[0][1] < rounds * changes * 200
    names = {path.name for path in site.directory.iterdir() if path.suffix != ".log"}
    assert names <= {"k.sock", "k.sock.d", "plugins"}
    assert {path.name for path in store.parent.iterdir()} <= {store.name, f"{store.name}-journal"}
    assert site.unwanted() == []


@pytest.mark.soak
def test_anything_may_be_done_to_servers_at_any_time(site: Site) -> None:
    """Killed or stopped while they start, run or stop; several at once; held up; in any order."""
    dice = random.Random(7)
    done: Counter[str] = Counter()
    server = site.start()
    with Loads(site) as loads:
        for _ in range(60):
            loads.more(12)
            with site.disturbed():
                for _ in range(dice.randrange(1, 4)):
                    how = dice.choice(["kill", "stop", "hold up", "start twice"])
                    done[how] += 1
                    if how == "hold up":
                        with paused(server):
                            server.send_signal(dice.choice([signal.SIGTERM, signal.SIGKILL]))
                            server = site.begin()
                            time.sleep(dice.random() * 0.5)
                    else:
                        server.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
                        if how == "start twice":
                            site.begin()
                        server = site.begin()
                    time.sleep(dice.choice([0.0, 0.05, 0.1, 0.2, 0.3]))
                one_serves(site)
                server = next(each for each in site.processes if each.poll() is None)
        loads.more()
    loads.tell()
    print(dict(done), sorted(os.listdir(site.directory))[:10])
    assert [line for line in site.unwanted() if "another server listens" not in line] == []


def one_serves(site: Site) -> None:
    """Waits until one server is left; starts one when none is."""

    def alive() -> list[subprocess.Popen[bytes]]:
        return [each for each in site.processes if each.poll() is None]

    site.wait_for(lambda: len(alive()) <= 1)
    if not alive():
        site.begin()
    (left,) = alive()
    site.wait_until_it_serves(left)
