"""Runs one handler against the real core, with a script for Kong's side of the connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable

from client import Direct, DirectProtobuf, RPCError
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.errors import HandlerExit
from kongps.pdk import Kong
from kongps.server.core import make_dispatcher


class Failed(str):
    """An answer of Kong's that is an error (StepError)."""


@dataclass
class Outcome:
    """What became of a handler.

    ``sent`` holds the PDK calls that Kong was asked for; ``value`` what the handler returned, or
    ``error`` what it raised; ``last`` is ``"ret"`` when the event has ended, and ``rpc_error`` the
    error in the last answer.
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


def run(
    handler: Callable[[Any], Any],
    phase: str = "access",
    answers: Iterable[Any] = (),
    kong: type[Any] = Kong,
) -> Outcome:
    """Sends the event `phase` as Kong does, and answers the calls of `handler` with `answers`."""
    outcome, dispatcher = _served(handler, phase, kong)
    wire = Direct(dispatcher)
    wire.begin(7, phase)
    replies = iter(answers)
    try:
        while (asked := wire.read_asked()) is not None:
            outcome.sent.append((asked.function, asked.args))
            answer = next(replies, _NO_ANSWER)
            if answer is _NO_ANSWER:
                break
            wire.answer(asked, answer, "StepError" if isinstance(answer, Failed) else "Step")
        else:
            outcome.last = "ret"
    except RPCError as error:
        outcome.rpc_error = str(error)
    dispatcher.abandon_all_events()
    return outcome


def run_protobuf(
    handler: Callable[[Any], Any],
    phase: str = "access",
    answers: Iterable[bytes] = (),
    kong: type[Any] = Kong,
) -> Outcome:
    """The same over ProtoBuf:1; `answers` are messages, and a function's arguments one too."""
    outcome, dispatcher = _served(handler, phase, kong)
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
            wire.answer(asked, answer)
    dispatcher.abandon_all_events()
    return outcome


_NO_ANSWER = object()


def _served(
    handler: Callable[[Any], Any], phase: str, kong: type[Any]
) -> tuple[Outcome, Dispatcher]:
    """A dispatcher with the handler in its instance 7, and what becomes of the handler there."""
    outcome = Outcome()

    def handle(kong: Any) -> None:
        try:
            outcome.value = handler(kong)
        except BaseException as error:
            outcome.error = error
            raise

    dispatcher = make_dispatcher({})
    plugin = plugin_of("survey", kong=kong)
    dispatcher.add_instance(Instance(7, plugin, {}, 0.0, {phase: handle}))
    return outcome, dispatcher


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
