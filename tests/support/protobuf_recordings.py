"""Reads the ProtoBuf:1 recordings in ``tests/data/captures`` and replays what Kong sent in them."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from client import DirectProtobuf, frame, split_frames
from core_defaults import new_session
from made_plugins import complete
from msgpack_recordings import CAPTURES

from kongps.core.session import Session
from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.tables import MESSAGES, RPCS
from kongps.errors import PDKError, UnpackError
from kongps.pdk.asked_once import ASKED_ONCE
from kongps.plugins.plugin import Plugin
from kongps.server.core import make_dispatcher

COMMANDS_WITH_INSTANCE = (
    "cmd_handle_event",
    "cmd_get_instance_status",
    "cmd_close_instance",
)
COMMAND_FIELDS = {33: "cmd_start_instance", 34: "cmd_get_instance_status",
                  35: "cmd_close_instance", 36: "cmd_handle_event"}  # fmt: skip
WRAPPERS = ("Bool", "Int", "Number", "String", "ByteString")

# Fields that a recorded server left out because they had their default.
DEFAULTS: dict[tuple[str, str], Any] = {
    ("Bool", "v"): False, ("Int", "v"): 0, ("String", "v"): "", ("ByteString", "v"): b"",
    ("Target", "port"): 0, ("ConsumerSpec", "by_username"): False, ("ExitArgs", "status"): 0,
}  # fmt: skip


# Kong 2.8 leaves out false and empty texts; these functions never answer with nil.
NEVER_NIL = {"kong.ip.is_trusted": False, "kong.request.get_raw_query": ""}


def files() -> list[Path]:
    return sorted(CAPTURES.glob("kong-*-protobuf/*.jsonl"))


# --- between messages and what a plugin passes and gets ------------------------------------------


def call_args(function: str, message: Any) -> tuple[Any, ...]:
    """The arguments of a PDK function, from the message that stands for them."""
    kind = RPCS[function][0]
    if kind == "Empty":
        return ()
    if kind == "ListValue":
        return tuple(message)
    if kind == "Struct":
        return (message,)
    names = [part.partition("=")[0] for part in MESSAGES[kind].split(", ")]
    args = [message.get(name, DEFAULTS.get((kind, name))) for name in names]
    while args and args[-1] is None:
        args.pop()
    return tuple(args)


def seen_value(function: str, message: bytes, args: tuple[Any, ...] = ()) -> Any:
    """What a plugin sees of an answer of Kong's: the same as over MsgPack:1."""
    kind = RPCS[function][1]
    if kind == "Empty":
        return None
    value = decode_message(kind, message)
    if kind in WRAPPERS:
        return value.get("v", NEVER_NIL.get(function))
    if kind == "Struct":
        return {
            name: item if isinstance(item, list) else [] if item is True else [item]
            for name, item in value.items()
        }
    if kind == "RawBodyResult":
        return PDKError(function, value["error"]) if "error" in value else value.get("content")
    if kind == "UriCapturesResult" and value:
        unnamed, named = value.get("unnamed", []), value.get("named", {})
        return {
            "unnamed": {n: as_text(item) for n, item in enumerate(unnamed, 1)},
            "named": {name: as_text(item) for name, item in named.items()},
        }
    if kind == "Value":
        return with_empty_lists(value)
    return value or None


def with_empty_lists(value: Any) -> Any:
    """An empty table of Lua arrives as an empty list."""
    if isinstance(value, dict):
        return {name: with_empty_lists(item) for name, item in value.items()} or []
    if isinstance(value, list):
        return [with_empty_lists(item) for item in value]
    return value


def as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def same_message(function: str, one: bytes, other: bytes) -> bool:
    """Whether two messages are the same to Kong, which reads what is left out as its default."""
    kind = RPCS[function][0]

    def read(data: bytes) -> Any:
        message = decode_message(kind, data)
        if not isinstance(message, dict) or kind == "Struct":
            return message
        return {
            name: value
            for name, value in message.items()
            if (kind, name) not in DEFAULTS or value != DEFAULTS[kind, name]
        }

    return bool(read(one) == read(other))


# --- what was recorded ---------------------------------------------------------------------------


@dataclass
class RecordedCall:
    """A PDK call that the recorded plugin made.

    :ivar message: its arguments as they were sent; `args` is None when they are no such message.
    :ivar answer: Kong's message; None when it never answered.
    :ivar known: our server does not send it, for it knows the answer.
    """

    function: str
    message: bytes
    args: tuple[Any, ...] | None
    answer: bytes | None = None
    known: bool = False


@dataclass
class Exchange:
    """A call of Kong's, and what became of it."""

    connection: int
    call: dict[str, Any]
    raw: bytes
    cuts: list[int]
    calls: list[RecordedCall] = field(default_factory=list)
    returned: dict[str, Any] | None = None
    sent: bytes = b""  # by our server

    @property
    def command(self) -> str:
        (name,) = (name for name in self.call if name.startswith("cmd_"))
        return name

    @property
    def is_event(self) -> bool:
        return self.command == "cmd_handle_event"

    @property
    def was_handled(self) -> bool:
        """Whether it is an event of an instance that the recorded server had."""
        return self.is_event and (bool(self.calls) or self.returned is not None)


@dataclass
class Answer:
    """A frame with which Kong answered a PDK call."""

    exchange: Exchange
    call: RecordedCall
    raw: bytes
    cuts: list[int]


@dataclass
class Lost:
    """Kong closed a connection."""

    connection: int


@dataclass
class ServerGone:
    """The recorded server closed a connection, or died."""


class Frames:
    """Frames of one direction of a connection, and where the recorder cut them."""

    def __init__(self) -> None:
        self.data = b""
        self.cuts: list[int] = []

    def feed(self, data: bytes) -> Iterator[tuple[bytes, list[int]]]:
        self.data += data
        self.cuts.append(len(self.data))
        frames, rest = split_frames(self.data)
        for found in frames:
            length = 4 + len(found)
            yield found, [cut for cut in self.cuts if cut < length]
            self.cuts = [cut - length for cut in self.cuts if cut > length]
        self.data = rest


class ProtobufRecording:
    """One session between a Kong and a plugin server that spoke ProtoBuf:1.

    :ivar steps: what happened, in order.
    :ivar exchanges: the calls of Kong among it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[Exchange | Answer | Lost | ServerGone] = []
        self.open: dict[int, Exchange] = {}
        streams: dict[tuple[int, str], Frames] = {}
        ended: set[int] = set()
        for line in path.read_text().splitlines():
            row = json.loads(line)
            connection = row.get("conn", 0)
            if row["ev"] == "eof" and connection not in ended:
                ended.add(connection)
                self.open.pop(connection, None)
                by_kong = row["dir"] == "k2p"
                self.steps.append(Lost(connection) if by_kong else ServerGone())
            if row["ev"] != "data" or connection in ended:
                continue
            frames = streams.setdefault((connection, row["dir"]), Frames())
            take = self._from_kong if row["dir"] == "k2p" else self._from_server
            for found, cuts in frames.feed(base64.b64decode(row["b64"])):
                take(connection, found, cuts)
        self._mark_known_calls()

    @property
    def exchanges(self) -> list[Exchange]:
        return [step for step in self.steps if isinstance(step, Exchange)]

    def _from_kong(self, connection: int, raw: bytes, cuts: list[int]) -> None:
        exchange = self.open.get(connection)
        if exchange is None:
            exchange = Exchange(connection, decode_message("RpcCall", raw), raw, cuts)
            self.open[connection] = exchange
            self.steps.append(exchange)
            return
        call = next(call for call in exchange.calls if call.answer is None)
        call.answer = raw
        self.steps.append(Answer(exchange, call, raw, cuts))

    def _from_server(self, connection: int, raw: bytes, cuts: list[int]) -> None:
        exchange = self.open[connection]
        state = exchange.__dict__
        if not exchange.is_event or state.get("ending"):
            exchange.returned = decode_message("RpcReturn", raw)
            del self.open[connection]
        elif "named" in state:
            function = state.pop("named")
            args: tuple[Any, ...] | None = ()
            if function in RPCS:
                try:
                    args = call_args(function, decode_message(RPCS[function][0], raw))
                except UnpackError:
                    args = None
            exchange.calls.append(RecordedCall(function, raw, args))
        elif raw:
            state["named"] = raw.decode()
        else:
            state["ending"] = True

    def _mark_known_calls(self) -> None:
        for exchange in self.exchanges:
            answered: set[tuple[str, str]] = set()
            for call in exchange.calls:
                answered = {
                    known for known in answered if call.function not in ASKED_ONCE[known[0]]
                }
                key = (call.function, repr(call.args))
                call.known = key in answered
                if call.function in ASKED_ONCE:
                    answered.add(key)


# --- replaying it --------------------------------------------------------------------------------


class ProtobufReplayedPlugin(Plugin):
    """A plugin that does what the recorded one did, event by event, and notes what it saw."""

    def __init__(self, events: list[Exchange], pipelined: bool) -> None:
        complete(self, "replayed", pipelined=pipelined)
        self.events = deque(events)
        self.seen: list[tuple[RecordedCall, Any]] = []
        self.refused: list[tuple[RecordedCall, Exception]] = []

    def new(self, config: dict[str, Any]) -> dict[str, Callable[[Any], None]]:
        phases = ("certificate", "rewrite", "access", "response", "preread", "log")
        return dict.fromkeys(phases, self.handle)

    def handle(self, kong: Any) -> None:
        exchange = self.events.popleft()
        for call in exchange.calls:
            if call.args is None:
                return  # what our PDK cannot express
            try:
                value = kong._call(call.function, *call.args)
            except (PDKError, TypeError, ValueError) as error:
                self.refused.append((call, error))
                if call.answer is None:
                    return  # nor did Kong go on
                continue
            self.seen.append((call, value))


def split_fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The fields of a message: the number, the bytes, and what is in it if it is a run."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value, at

    start = 0
    while start < len(data):
        tag, at = varint(start)
        end = at
        content = b""
        if tag & 7 == 0:
            _, end = varint(at)
        else:
            assert tag & 7 == 2
            length, at = varint(at)
            end = at + length
            content = data[at:end]
        yield tag >> 3, data[start:end], content
        start = end


def replace_instance(raw: bytes, number: int) -> bytes:
    """Puts another instance into a call, and leaves all else as Kong sent it."""
    out = b""
    for field_number, whole, content in split_fields(raw):
        name = COMMAND_FIELDS.get(field_number)
        if name in COMMANDS_WITH_INSTANCE:
            inner = encode_message("CmdCloseInstance", {"instance_id": number})
            found = False
            kept = b""
            for inner_number, inner_whole, _ in split_fields(content):
                found = found or inner_number == 1
                kept += inner if inner_number == 1 else inner_whole
            content = kept if found else inner + kept
            out += whole[:2] + bytes([len(content)]) + content
        else:
            out += whole
    return out


Cut = Callable[[bytes, list[int]], Iterator[bytes]]


class ProtobufReplay:
    """Replays a recording against our server, without sockets.

    :ivar plugin: what it saw.
    """

    def __init__(self, recording: ProtobufRecording, cut: Cut, *, pipelined: bool) -> None:
        self.recording = recording
        self.cut = cut
        events = [exchange for exchange in recording.exchanges if exchange.was_handled]
        self.plugin = ProtobufReplayedPlugin(events, pipelined)
        self.restarted = False
        self._new_server()

    def _new_server(self) -> None:
        names = {
            exchange.call["cmd_start_instance"].get("name", "")
            for exchange in self.recording.exchanges
            if exchange.command == "cmd_start_instance"
        }
        plugins: Any = dict.fromkeys(names | {"replayed"}, self.plugin)
        self.dispatcher = make_dispatcher(plugins)
        self.sessions: dict[int, Session] = {}
        self.instances: dict[int, int] = {}
        self.current: dict[int, Exchange] = {}

    def run(self) -> ProtobufReplay:
        for step in self.recording.steps:
            if isinstance(step, Exchange):
                self._call(step)
            elif isinstance(step, Answer):
                self._answer(step)
            elif isinstance(step, Lost):
                session = self.sessions.pop(step.connection, None)
                if session is not None:
                    session.connection_lost()
            else:
                for session in self.sessions.values():
                    session.connection_lost()
                self.restarted = True
                self._new_server()
        for session in self.sessions.values():
            session.connection_lost()
        return self

    def _feed(self, exchange: Exchange, raw: bytes, cuts: list[int]) -> None:
        session = self.sessions.setdefault(exchange.connection, new_session(self.dispatcher))
        for piece in self.cut(frame(raw), cuts):
            session.receive_data(piece)
            exchange.sent += session.data_to_send()

    def _call(self, exchange: Exchange) -> None:
        raw = exchange.raw
        if exchange.command in COMMANDS_WITH_INSTANCE:
            recorded = exchange.call[exchange.command].get("instance_id", 0)
            raw = replace_instance(raw, self._instance(recorded))
        self._feed(exchange, raw, exchange.cuts)
        if exchange.command == "cmd_start_instance" and exchange.returned:
            recorded = exchange.returned["instance_status"].get("instance_id", 0)
            (found,), _ = split_frames(exchange.sent)
            ours = decode_message("RpcReturn", found)["instance_status"]["instance_id"]
            self.instances[recorded] = ours

    def _answer(self, step: Answer) -> None:
        session = self.sessions[step.exchange.connection]
        refused = any(call is step.call for call, _ in self.plugin.refused)
        if step.call.known or refused or session.closing:
            return
        raw = step.raw
        if step.call.function == "kong.request.get_query_arg":
            # We ask for all arguments in its place.
            value = decode_message("String", raw)
            assert step.call.args is not None
            raw = encode_message("Struct", {step.call.args[0]: value["v"]} if value else {})
        self._feed(step.exchange, raw, step.cuts)

    def _instance(self, recorded: int) -> int:
        if recorded not in self.instances and not self.restarted:
            # The recording starts in the middle of a session.
            self.instances[recorded] = DirectProtobuf(self.dispatcher).start("replayed")
        return self.instances.get(recorded, 0)  # 0 is never an instance's id
