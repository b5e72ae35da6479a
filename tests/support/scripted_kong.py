"""Runs one handler against the real core, with a script for Kong's side of the connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable

import msgpack
from client import DirectProtobuf, frame
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import HandlerExit, Instance
from kongps.core.session import Session
from kongps.pdk import Kong
from kongps.server.server import make_dispatcher


class Failed(str):
    """An answer of Kong's that is an error (StepError)."""


@dataclass
class Outcome:
    """What became of a handler.

    ``sent`` holds the PDK calls that Kong was asked for; ``value`` what the handler returned, or
    ``error`` what it raised; ``last`` the last answer's Data, ``rpc_error`` its error.
    """

    sent: list[tuple[str, list[Any]]] = field(default_factory=list)
    value: Any = None
    error: BaseException | None = None
    last: Any = None
    rpc_error: Any = None

    @property
    def asked(self) -> list[tuple[str, list[Any]]]:
        """``sent`` without what the server asks for when a handler has raised.

        That is a line in Kong's log, and an exit where the phase allows it.
        """
        if self.error is None or isinstance(self.error, HandlerExit):
            return self.sent
        asked = list(self.sent)
        for function in ("kong.response.exit", "kong.log.err"):
            if asked and asked[-1][0] == function:
                asked.pop()
        return asked


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape")
    return packed


def run(
    handler: Callable[[Any], Any],
    phase: str = "access",
    answers: Iterable[Any] = (),
    kong: type[Any] = Kong,
) -> Outcome:
    """Has Kong send the event `phase`, and answer the calls of `handler` with `answers`."""
    outcome = Outcome()

    def handle(kong: Any) -> None:
        try:
            outcome.value = handler(kong)
        except BaseException as error:
            outcome.error = error
            raise

    dispatcher = make_dispatcher({})
    dispatcher.add_instance(Instance(7, plugin_of(kong=kong), {}, 0.0, {phase: handle}))
    session = Session(dispatcher)
    unpacker = msgpack.Unpacker(
        raw=False, strict_map_key=False, unicode_errors="surrogateescape", use_list=True
    )
    event = {"InstanceId": 7, "EventName": phase}
    session.receive_data(pack([0, 1, "plugin.HandleEvent", [event]]))
    replies = iter(answers)
    while True:
        unpacker.feed(session.data_to_send())
        results = [message for message in unpacker if message[0] == 1]
        assert len(results) == 1, "one answer to each request"
        _, number, outcome.rpc_error, result = results[0]
        if outcome.rpc_error is not None:
            break
        outcome.last = result["Data"]
        if outcome.last == "ret":
            break
        outcome.sent.append((outcome.last["Method"], list(outcome.last["Args"])))
        try:
            answer = next(replies)
        except StopIteration:
            break
        method = "plugin.StepError" if isinstance(answer, Failed) else "plugin.Step"
        step = {"EventId": result["EventId"]}
        if answer is not None:
            step["Data"] = answer
        session.receive_data(pack([0, number + 1, method, [step]]))
    dispatcher.abandon_all_events()
    return outcome


def run_protobuf(
    handler: Callable[[Any], Any],
    phase: str = "access",
    answers: Iterable[bytes] = (),
    kong: type[Any] = Kong,
) -> Outcome:
    """The same over ProtoBuf:1; `answers` are messages, and a function's arguments one too.

    ``last`` is ``"ret"`` when the event has ended.
    """
    outcome = Outcome()

    def handle(kong: Any) -> None:
        try:
            outcome.value = handler(kong)
        except BaseException as error:
            outcome.error = error
            raise

    dispatcher = make_dispatcher({})
    dispatcher.add_instance(Instance(7, plugin_of(kong=kong), {}, 0.0, {phase: handle}))
    wire = DirectProtobuf(dispatcher)
    wire.begin(7, phase)
    replies = iter(answers)
    while wire.frames:
        asked = wire.read_asked()
        if asked is None:
            outcome.last = "ret"
            break
        outcome.sent.append((asked.function, [asked.message]))
        answer = next(replies, None)
        if answer is not None:
            wire.send(frame(answer))
    dispatcher.abandon_all_events()
    return outcome


# --- the recorded surveys of the PDK -------------------------------------------------------------


def decoded(value: Any) -> Any:
    """A recorded value as it was on the wire."""
    if isinstance(value, dict):
        if value.keys() == {"__bytes__"}:
            return value["__bytes__"].encode("latin-1")
        return {name: decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def wire_answer(function: str, value: Any) -> Any:
    value = decoded(value)
    if function == "kong.request.get_uri_captures" and value["unnamed"]:
        # JSON has text for keys where MessagePack has numbers.
        value["unnamed"] = {int(index): text for index, text in value["unnamed"].items()}
    return value


def was_unknown(row: dict[str, Any]) -> bool:
    return any("could not find pdk method" in line for line in row["log"])


def was_refused(row: dict[str, Any]) -> bool:
    if row["result"] is None:
        return True
    return bool(row["result"]["terminal"]) and any("rpc/mp_rpc.lua" in line for line in row["log"])
