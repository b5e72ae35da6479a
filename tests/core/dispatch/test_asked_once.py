"""Functions that are asked once within an event, and what drops their answers."""

from __future__ import annotations

from typing import Any

import pytest
from client import dispatcher_with
from core_defaults import new_dispatcher
from msgpack_recordings import Recording, files

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.wire.function import registered
from kongps.errors import PDKError
from kongps.pdk.asked_once import ASKED_ONCE


@pytest.fixture
def dispatcher() -> Dispatcher:
    return new_dispatcher()


def test_a_second_call_is_not_sent(dispatcher: Dispatcher) -> None:
    seen: list[Any] = []

    def handler(kong: Any) -> None:
        for _ in range(3):
            seen.append(kong.request.get_header("host"))
            seen.append(kong.request.get_header("nosuch"))

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.step(wire.event(1), "example.test")
    assert answer["Data"]["Args"] == ["nosuch"]
    assert wire.step(answer)["Data"] == "ret"
    assert seen == ["example.test", None] * 3


def test_another_event_asks_anew(dispatcher: Dispatcher) -> None:
    wire = dispatcher_with(dispatcher, lambda kong: kong.request.get_method())
    for method in ("GET", "POST"):
        assert wire.step(wire.event(1), method)["Data"] == "ret"


def test_a_setter_that_can_change_an_answer_drops_it(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        seen.append(kong.request.get_header("host"))
        seen.append(kong.request.get_method())
        kong.service.request.set_header("host", "other.test")
        seen.append(kong.request.get_method())
        seen.append(kong.request.get_header("host"))

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.event(1)
    for value in ("example.test", "GET", None):
        answer = wire.step(answer, value)
    assert answer["Data"]["Method"] == "kong.request.get_header"
    assert wire.step(answer, "other.test")["Data"] == "ret"
    assert seen == ["example.test", "GET", "GET", "other.test"]


def test_an_answer_that_is_a_table_is_asked_for_again(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        kong.request.get_headers()["x"] = ["changed by the plugin"]
        assert kong.request.get_headers() == {}

    wire = dispatcher_with(dispatcher, handler)
    assert wire.step(wire.step(wire.event(1), {}), {})["Data"] == "ret"


def test_an_answer_is_not_told_after_the_event(dispatcher: Dispatcher) -> None:
    kept: list[Any] = []

    def handler(kong: Any) -> None:
        kept.append(kong)
        kong.request.get_method()

    wire = dispatcher_with(dispatcher, handler)
    wire.step(wire.event(1), "GET")
    with pytest.raises(PDKError):
        kept[0].request.get_method()


def test_an_answer_is_not_told_once_the_event_has_ended(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        try:
            kong.request.get_method()
            kong.response.exit(403)
        finally:
            with pytest.raises(PDKError, match="over"):
                kong.request.get_method()

    wire = dispatcher_with(dispatcher, handler)
    assert wire.step(wire.event(1), "GET")["Data"]["Method"] == "kong.response.exit"


def test_arguments_of_any_type_are_checked_or_sent_as_ever(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        seen.append(kong.request.get_header("host"))
        with pytest.raises(TypeError, match=r"kong.request.get_header: .* not list"):
            kong.request.get_header(["host"])
        seen.append(kong.request.get_header(bytearray(b"host")))

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.step(wire.event(1), "example.test")
    assert wire.step(answer, "again.test")["Data"] == "ret"
    assert seen == ["example.test", "again.test"]


def test_of_nginx_variables_only_the_requests_id_is_kept(dispatcher: Dispatcher) -> None:
    seen: list[Any] = []

    def handler(kong: Any) -> None:
        for name in ("request_id", "uri", "request_id", "uri", bytearray(b"uri")):
            seen.append(kong.nginx.get_var(name))

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.event(1)
    for value in ("an-id", "/a", "/b", "/c"):
        answer = wire.step(answer, value)
    assert answer["Data"] == "ret"
    assert seen == ["an-id", "/a", "an-id", "/b", "/c"]


def test_the_table_names_functions_that_are_there() -> None:
    functions = registered()
    for name, changed_by in ASKED_ONCE.items():
        assert not functions[name].unavailable
        assert all(setter in functions for setter in changed_by)


def test_no_recorded_kong_gave_two_answers_within_a_request() -> None:
    """Within an event the recorded plugins hardly asked twice; over a request's phases they did."""
    order = ("certificate", "rewrite", "access", "response", "log")
    compared: set[str] = set()
    for path in files():
        told: dict[Any, Any] = {}
        last = -1
        for script in Recording(path, all_calls=True).scripts:
            if order.index(script.phase) <= last:
                told.clear()
            last = order.index(script.phase)
            for call in script.calls:
                for known in list(told):
                    if call.function in ASKED_ONCE[known[0]]:
                        del told[known]
                if call.function not in ASKED_ONCE or call.step is None:
                    continue
                if call.step.method == "plugin.StepError":
                    continue
                key = (call.function, tuple(call.args))
                answer = call.step.argument.get("Data")
                if key in told:
                    compared.add(call.function)
                assert told.setdefault(key, answer) == answer, f"{path.name}: {key}"
    assert len(compared) >= 10, sorted(compared)
