"""Reads the recordings in ``tests/data/captures`` and replays what Kong sent in them."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import msgpack
from client import Direct
from core_defaults import new_session
from made_plugins import complete
from paths import DATA

from kongps.core.session import Session
from kongps.core.wire.function import registered
from kongps.pdk.asked_once import ASKED_ONCE
from kongps.plugins.plugin import Plugin
from kongps.server.core import make_dispatcher
from kongps.testing.values import unpacker

CAPTURES = DATA / "captures"

STEPS = ("plugin.Step", "plugin.StepMultiMap", "plugin.StepCredential", "plugin.StepRoute",
         "plugin.StepService", "plugin.StepConsumer", "plugin.StepMemoryStats",
         "plugin.StepPlugin", "plugin.StepError")  # fmt: skip

# Kong has it for TCP alone; over HTTP it logs that there is no such function and answers nothing.
ONLY_IN_STREAM = "kong.service.request.disable_tls"


def files() -> list[Path]:
    return sorted(CAPTURES.glob("kong-*-msgpack/*.jsonl"))


@dataclass
class Request:
    """A request that Kong sent."""

    connection: int
    raw: bytes
    sequence: int
    method: str
    argument: Any
    answer: list[Any] | None = None


@dataclass
class Restart:
    """The plugin server went away."""


@dataclass
class PDKCall:
    """A PDK call that the recorded plugin made, and the step that brought its answer."""

    function: str
    args: list[Any]
    step: Request | None = None


@dataclass
class Script:
    """What the recorded handler of one event did."""

    phase: str
    calls: list[PDKCall] = field(default_factory=list)
    returned: bool = False


def unpack_all(data: bytes) -> list[Any]:
    feed = unpacker()
    feed.feed(data)
    return list(feed)


class Recording:
    """One session between a Kong and a plugin server.

    :param all_calls: also those PDK calls that our server would not send.
    :ivar steps: its requests and restarts, in order.
    :ivar scripts: what the plugin did in each event, in the order of their HandleEvents.
    """

    def __init__(self, path: Path, *, all_calls: bool = False) -> None:
        self.path = path
        self.steps: list[Request | Restart] = []
        self.scripts: list[Script] = []
        self._read()
        if not all_calls:
            self._leave_out_calls_that_are_not_sent()
        self._make_scripts()

    def _read(self) -> None:
        waiting: dict[tuple[int, int], Request] = {}
        streams: dict[tuple[int, str], Any] = {}
        # Bytes of a connection's stream that were not yet made into messages.
        pending: dict[tuple[int, str], bytes] = {}
        closed_by_kong: set[int] = set()
        for line in self.path.read_text().splitlines():
            row = json.loads(line)
            if row["ev"] in ("eof", "error"):
                if row.get("dir") == "k2p":
                    closed_by_kong.add(row["conn"])
                elif row["conn"] not in closed_by_kong and isinstance(self.steps[-1], Request):
                    self.steps.append(Restart())
                continue
            if row["ev"] != "data":
                continue
            key = (row["conn"], row["dir"])
            feed = streams.setdefault(key, unpacker())
            data = base64.b64decode(row["b64"])
            pending[key] = pending.get(key, b"") + data
            base = feed.tell()
            feed.feed(data)
            for message in feed:
                length = feed.tell() - base
                raw, pending[key] = pending[key][:length], pending[key][length:]
                base = feed.tell()
                if row["dir"] == "k2p":
                    _, sequence, method, arguments = message
                    request = Request(row["conn"], raw, sequence, method, arguments[0])
                    waiting[row["conn"], sequence] = request
                    self.steps.append(request)
                elif message[0] == 1:
                    waiting.pop((row["conn"], message[1])).answer = message

    def _leave_out_calls_that_are_not_sent(self) -> None:
        """Makes the session one in which the plugin never made a call that our PDK does not send.

        Either Kong answers such a call with nothing, or the answer is known already: the step
        goes, and its answer with it.
        """
        asked: dict[int, Request] = {}
        answered: dict[int, set[tuple[str, str]]] = {}
        kept: list[Request | Restart] = []
        for step in self.steps:
            if isinstance(step, Request):
                event = step.argument.get("EventId") if step.method in STEPS else None
                before = asked.pop(event, None) if event is not None else None
                if before is not None:
                    before.answer, step = step.answer, before
                else:
                    kept.append(step)
                if step.answer and step.answer[2] is None and "Data" in (step.answer[3] or {}):
                    event, data = step.answer[3]["EventId"], step.answer[3]["Data"]
                    if step.method == "plugin.HandleEvent":
                        answered[event] = set()
                    if data != "ret" and not self._is_sent(data, answered.setdefault(event, set())):
                        asked[event] = step
            else:
                kept.append(step)
        for step in asked.values():
            step.answer = None  # Kong never stepped it
        self.steps = kept

    @staticmethod
    def _is_sent(call: dict[str, Any], answered: set[tuple[str, str]]) -> bool:
        name = call["Method"]
        row = registered().get(name)
        if row is not None and (row.unavailable or name == ONLY_IN_STREAM):
            return False
        for known in list(answered):
            if name in ASKED_ONCE[known[0]]:
                answered.remove(known)
        key = (name, repr(call["Args"]))
        if key in answered:
            return False
        if name in ASKED_ONCE:
            answered.add(key)
        return True

    def _make_scripts(self) -> None:
        open_scripts: dict[int, Script] = {}
        for step in self.steps:
            if isinstance(step, Restart):
                open_scripts.clear()
                continue
            script: Script | None = None
            if step.method == "plugin.HandleEvent":
                if step.answer is not None and step.answer[2] is not None:
                    continue  # no handler ran
                script = Script(step.argument.get("EventName", ""))
                self.scripts.append(script)
            elif step.method in STEPS:
                script = open_scripts.get(step.argument["EventId"])
                if script is not None:
                    script.calls[-1].step = step
            if script is None or step.answer is None or step.answer[2] is not None:
                continue
            result = step.answer[3]
            if result["Data"] == "ret":
                script.returned = True
            else:
                script.calls.append(PDKCall(result["Data"]["Method"], result["Data"]["Args"] or []))
                open_scripts[result["EventId"]] = script


class ReplayedPlugin(Plugin):
    """A plugin that does what the recorded one did, event by event, and notes what it saw."""

    def __init__(self, scripts: list[Script]) -> None:
        complete(self, "replayed")
        self.scripts = deque(scripts)
        self.seen: list[tuple[PDKCall, Any]] = []
        self.refused: list[tuple[PDKCall, Exception]] = []

    def new(self, config: dict[str, Any]) -> dict[str, Callable[[Any], None]]:
        phases = ("certificate", "rewrite", "access", "response", "preread", "log")
        return dict.fromkeys(phases, self.handle)

    def handle(self, kong: Any) -> None:
        script = self.scripts.popleft()
        for call in script.calls:
            try:
                value = kong._call(call.function, *call.args)
            except (TypeError, ValueError) as error:
                self.refused.append((call, error))
                return
            except Exception as error:
                if call.step is None:  # Kong refused the call; so did we, before it was sent
                    self.refused.append((call, error))
                    return
                value = error
            self.seen.append((call, value))
        if not script.returned:
            raise RuntimeError("the recorded handler never answered")


def replace_number(raw: bytes, key: bytes, number: int) -> bytes:
    """Puts another number behind a key, and leaves every other byte as Kong sent it."""
    start = raw.index(key) + len(key)
    feed = unpacker()
    feed.feed(raw[start:])
    feed.skip()
    return raw[:start] + msgpack.packb(number) + raw[start + feed.tell() :]


class Replay:
    """Replays a recording against our server, without sockets."""

    def __init__(self, recording: Recording, cut: Callable[[bytes], Iterator[bytes]]) -> None:
        self.recording = recording
        self.cut = cut
        self.plugin = ReplayedPlugin(recording.scripts)
        self.answers: list[tuple[Request, list[Any]]] = []
        self.restarted = False
        self._new_server()

    def _new_server(self) -> None:
        names = {
            step.argument["Name"]
            for step in self.recording.steps
            if isinstance(step, Request) and step.method == "plugin.StartInstance"
        }
        plugins: Any = dict.fromkeys(names | {"replayed"}, self.plugin)
        self.dispatcher = make_dispatcher(plugins)
        self.sessions: dict[int, Session] = {}
        self.instances: dict[int, int] = {}
        self.events: dict[int, int] = {}

    def run(self) -> None:
        for step in self.recording.steps:
            if isinstance(step, Restart):
                self.restarted = True
                self._new_server()
            else:
                self._send(step)

    def _exchange(self, connection: int, raw: bytes) -> list[Any]:
        session = self.sessions.setdefault(connection, new_session(self.dispatcher))
        out = b""
        for piece in self.cut(raw):
            assert out == b"", "answered before the request was whole"
            session.receive_data(piece)
            out += session.data_to_send()
        answers = unpack_all(out)
        assert len(answers) == 1, f"{len(answers)} answers to {raw!r}"
        answer: list[Any] = answers[0]
        return answer

    def _send(self, step: Request) -> None:
        raw = step.raw
        if step.method == "plugin.HandleEvent" and "InstanceId" in step.argument:
            raw = replace_number(raw, b"InstanceId", self._instance(step.argument["InstanceId"]))
        elif step.method in ("plugin.CloseInstance", "plugin.InstanceStatus"):
            raw = replace_number(raw, step.method.encode() + b"\x91", self._instance(step.argument))
        elif step.method in STEPS:
            if step.argument["EventId"] not in self.events:
                return  # of an event that our PDK ended before the refused call was sent
            raw = replace_number(raw, b"EventId", self.events[step.argument["EventId"]])
        answer = self._exchange(step.connection, raw)
        self.answers.append((step, answer))
        result = answer[3]
        recorded = step.answer[3] if step.answer else None
        if answer[2] is None and recorded:
            if step.method == "plugin.StartInstance":
                self.instances[recorded["Id"]] = result["Id"]
            elif step.method == "plugin.HandleEvent":
                self.events[recorded["EventId"]] = result["EventId"]

    def _instance(self, recorded: int) -> int:
        if recorded not in self.instances and not self.restarted:
            # The recording starts in the middle of a session.
            self.instances[recorded] = Direct(self.dispatcher).start("replayed")
        return self.instances.get(recorded, 0)  # 0 is never an instance's id
