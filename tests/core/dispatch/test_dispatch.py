"""Instances, events, phases and handlers."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
import time
import weakref
from typing import Any

import pytest
from client import Direct, RPCError, dispatcher_with
from core_defaults import new_dispatcher
from made_plugins import plugin_of

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.errors import HandlerExit, KongpsError, PDKError

UNEXPECTED = {
    "Method": "kong.response.exit",
    "Args": [500, {"message": "An unexpected error occurred"}],
}


@pytest.fixture
def dispatcher() -> Dispatcher:
    return new_dispatcher()


def asked(answer: Any) -> tuple[str, list[Any]]:
    return answer["Data"]["Method"], answer["Data"]["Args"]


def test_a_handler_asks_gets_its_answers_and_returns(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        seen.append(kong.request.get_header("host"))
        kong.response.set_header("x", "1")

    wire = dispatcher_with(dispatcher, handler)
    first = wire.event(1)
    assert asked(first) == ("kong.request.get_header", ["host"])
    second = wire.step(first, "example.test")
    assert asked(second) == ("kong.response.set_header", ["x", "1"])
    assert seen == ["example.test"]
    assert wire.step(second)["Data"] == "ret"
    assert dispatcher.live_events == 0
    assert dispatcher.handled == 1


def test_the_steps_of_an_event_may_come_on_any_connection(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        for n in range(5):
            kong.response.set_header("n", str(n))

    answer = dispatcher_with(dispatcher, handler).event(1)
    for n in range(5):
        assert asked(answer) == ("kong.response.set_header", ["n", str(n)])
        answer = Direct(dispatcher).step(answer)
    assert answer["Data"] == "ret"


def test_events_that_are_interleaved_keep_their_own_answers(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        seen.append([kong.request.get_header("a"), kong.request.get_header("b")])

    wire = dispatcher_with(dispatcher, handler)
    events = [wire.event(1) for _ in range(300)]
    assert len({event["EventId"] for event in events}) == 300
    assert dispatcher.live_events == 300
    events = [wire.step(event, f"a{n}") for n, event in enumerate(events)]
    for n, event in reversed(list(enumerate(events))):
        assert wire.step(event, f"b{n}")["Data"] == "ret"
    assert sorted(seen) == sorted([f"a{n}", f"b{n}"] for n in range(300))
    assert dispatcher.live_events == 0


def test_an_error_step_raises_in_the_handler(dispatcher: Dispatcher) -> None:
    seen = []

    def handler(kong: Any) -> None:
        with pytest.raises(PDKError) as caught:
            kong.client.load_consumer("alice", True)
        seen.append(caught.value)

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.step(wire.event(1), "no database", method="StepError")
    assert answer["Data"] == "ret"
    assert (seen[0].function, seen[0].reason) == ("kong.client.load_consumer", "no database")


def test_a_handler_that_raises_ends_the_request_with_a_500(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(kong: Any) -> None:
        kong.request.get_method()
        raise ValueError("oh no")

    wire = dispatcher_with(dispatcher, handler)
    answer = wire.step(wire.event(1), "GET")
    assert wire.failure(answer)["Data"] == UNEXPECTED
    assert dispatcher.live_events == 0
    assert "plugin one, access handler, instance 1" in caplog.text
    assert "ValueError: oh no" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RecursionError()])
def test_no_exception_of_a_handler_gets_out(dispatcher: Dispatcher, error: BaseException) -> None:
    def handler(kong: Any) -> None:
        raise error

    wire = dispatcher_with(dispatcher, handler)
    for _ in range(3):
        assert wire.failure(wire.event(1))["Data"] == UNEXPECTED


def test_a_handler_that_raises_where_no_exit_is_allowed_is_an_error(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        raise ValueError("oh no")

    wire = dispatcher_with(dispatcher, handler, phase="log")
    with pytest.raises(RPCError, match=r"log handler.* raised ValueError: .*ValueError: oh no"):
        wire.event(1, "log")


def test_exit_ends_the_handler(dispatcher: Dispatcher) -> None:
    trail = []

    def handler(kong: Any) -> None:
        try:
            try:
                kong.response.exit(403, "no")
            except Exception:
                trail.append("caught")
            trail.append("went on")
        finally:
            trail.append("finally")
            with pytest.raises(PDKError, match="over"):
                kong.request.get_method()

    wire = dispatcher_with(dispatcher, handler)
    assert asked(wire.event(1)) == ("kong.response.exit", [403, "no"])
    assert trail == ["finally"]
    assert dispatcher.live_events == 0


def test_a_pdk_call_with_a_wrong_argument_is_never_sent(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        with pytest.raises(TypeError, match=r"kong.request.get_header.*'name'.*int"):
            kong.request.get_header(5)
        with pytest.raises(TypeError, match=r"kong.response.set_header"):
            kong.response.set_header("x", object())
        with pytest.raises(TypeError, match=r"kong.response.set_header"):
            kong.response.set_header("x", ["a", 5])
        with pytest.raises(TypeError, match=r"argument 2 of kong.ctx.shared.set.*complex"):
            kong.ctx.shared.set("x", [1j])

    assert dispatcher_with(dispatcher, handler).event(1)["Data"] == "ret"


def test_a_pdk_call_in_a_wrong_phase_is_never_sent(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        with pytest.raises(PDKError, match="cannot be called in the log phase"):
            kong.response.set_header("x", "1")

    assert dispatcher_with(dispatcher, handler, phase="log").event(1, "log")["Data"] == "ret"


def test_a_kong_that_was_kept_is_dead_after_its_event(dispatcher: Dispatcher) -> None:
    kept = []

    def handler(kong: Any) -> None:
        if kept:
            with pytest.raises(PDKError, match="over"):
                kept[0].request.get_method()
        kept.append(kong)

    wire = dispatcher_with(dispatcher, handler)
    assert wire.event(1)["Data"] == "ret"
    assert wire.event(1)["Data"] == "ret"
    assert len(kept) == 2
    with pytest.raises(PDKError):
        kept[0].request.get_method()


def test_a_kong_cannot_be_used_by_another_event(dispatcher: Dispatcher) -> None:
    kept = []

    def handler(kong: Any) -> None:
        kept.append(kong)
        if len(kept) == 1:
            kong.request.get_method()
        else:
            with pytest.raises(PDKError, match="another event"):
                kept[0].request.get_path()

    wire = dispatcher_with(dispatcher, handler)
    first = wire.event(1)
    assert wire.event(1)["Data"] == "ret"
    assert wire.step(first, "GET")["Data"] == "ret"


def test_a_kong_cannot_be_used_by_another_thread(dispatcher: Dispatcher) -> None:
    caught = []

    def handler(kong: Any) -> None:
        def elsewhere() -> None:
            try:
                kong.request.get_method()
            except PDKError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    assert dispatcher_with(dispatcher, handler).event(1)["Data"] == "ret"
    assert "another thread" in caught[0].reason


def test_context_variables_belong_to_the_event(dispatcher: Dispatcher) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    def handler(kong: Any) -> None:
        seen.append(variable.get())
        variable.set(kong.request.get_method())
        kong.request.get_path()
        seen.append(variable.get())

    wire = dispatcher_with(dispatcher, handler)
    one, two = wire.event(1), wire.event(1)
    one, two = wire.step(one, "ONE"), wire.step(two, "TWO")
    wire.step(two, "/")
    wire.step(one, "/")
    wire.step(wire.step(wire.event(1), "THREE"), "/")
    assert seen == ["unset", "unset", "TWO", "ONE", "unset", "THREE"]
    assert variable.get() == "unset"


def test_events_without_a_step_for_long_are_ended(dispatcher: Dispatcher) -> None:
    trail = []

    def handler(kong: Any) -> None:
        try:
            kong.request.get_method()
        except Exception:
            trail.append("caught")
        finally:
            trail.append("finally")

    impatient = new_dispatcher(event_timeout=0.05)
    wire = dispatcher_with(impatient, handler)
    asked_for = wire.event(1)
    time.sleep(0.06)
    assert impatient.abandon_idle_events() == 1
    assert trail == ["finally"]
    assert impatient.live_events == 0
    assert wire.step(asked_for, "GET")["Data"]["Method"] == "kong.response.exit"

    patient = dispatcher_with(dispatcher, handler)
    patient.event(1)
    assert dispatcher.abandon_idle_events() == 0
    assert dispatcher.abandon_all_events() == 1


def test_an_abandoned_handler_that_goes_on_is_harmless(dispatcher: Dispatcher) -> None:
    def handler(kong: Any) -> None:
        while True:
            try:
                kong.request.get_method()
            except HandlerExit:
                break
        with pytest.raises(PDKError):
            kong.request.get_method()

    wire = dispatcher_with(dispatcher, handler)
    wire.event(1)
    assert dispatcher.abandon_all_events() == 1
    assert "Method" in wire.event(1)["Data"]


def test_a_step_for_no_event_is_an_error(dispatcher: Dispatcher) -> None:
    wire = Direct(dispatcher)
    for id in (0, -1):
        with pytest.raises(RPCError, match="No event"):
            wire.step({"EventId": id})


def test_a_step_for_an_event_that_is_lost_ends_the_request(dispatcher: Dispatcher) -> None:
    wire = Direct(dispatcher)
    for id in (1, 64, 2**40):
        answer = wire.step({"EventId": id})
        assert answer["EventId"] == id
        assert answer["Data"]["Method"] == "kong.response.exit"
        assert answer["Data"]["Args"][0] == 500


def test_a_step_for_an_event_that_is_lost_lets_the_request_through_if_told_so() -> None:
    wire = Direct(new_dispatcher(on_error="open"))
    assert wire.step({"EventId": 64})["Data"] == "ret"


def test_an_instance_that_is_not_there_is_named_in_the_words_kong_knows(
    dispatcher: Dispatcher,
) -> None:
    with pytest.raises(RPCError, match="No plugin instance 77"):
        Direct(dispatcher).event(77)
    with pytest.raises(KongpsError, match="No plugin instance 77"):
        dispatcher.remove_instance(77)


def test_a_phase_without_a_handler_is_an_error(dispatcher: Dispatcher) -> None:
    wire = dispatcher_with(dispatcher, lambda kong: None)
    with pytest.raises(RPCError, match="plugin one has no log handler"):
        wire.event(1, "log")
    assert dispatcher.live_events == 0


def test_an_instance_that_failed_to_start_fails_its_events(dispatcher: Dispatcher) -> None:
    dispatcher.add_instance(Instance(5, plugin_of(), {}, 0.0, {}, "it did not start"))
    wire = Direct(dispatcher)
    assert wire.event(5)["Data"] == UNEXPECTED
    with pytest.raises(RPCError, match="it did not start"):
        wire.event(5, "log")


def test_an_instance_taken_out_lets_its_events_end(dispatcher: Dispatcher) -> None:
    wire = dispatcher_with(dispatcher, lambda kong: kong.request.get_method())
    event = wire.event(1)
    dispatcher.remove_instance(1)
    assert wire.step(event, "GET")["Data"] == "ret"


def test_methods_that_are_not_known_are_errors(dispatcher: Dispatcher) -> None:
    with pytest.raises(RPCError, match=r"unknown method plugin.Explode"):
        Direct(dispatcher).call("Explode", 1)


def test_a_command_that_raises_is_an_error_and_hides_what_it_raised(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(argument: Any) -> None:
        raise ValueError("a secret")

    dispatcher.on_command("plugin.Fail", fail)
    dispatcher.on_command("plugin.Unpackable", lambda _: object())
    with pytest.raises(RPCError, match=r"plugin.Fail failed: ValueError$"):
        Direct(dispatcher).call("Fail", 1)
    with pytest.raises(RPCError, match="PackError"):
        Direct(dispatcher).call("Unpackable", 1)


def test_an_event_leaves_nothing_behind(dispatcher: Dispatcher) -> None:
    class Witness:
        pass

    witnesses = []

    def handler(kong: Any) -> None:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        kong.request.get_method()
        raise ValueError(witness)

    wire = dispatcher_with(dispatcher, handler)
    logging.disable(logging.CRITICAL)
    try:
        for _ in range(20):
            wire.failure(wire.step(wire.event(1), "GET"))
            wire.step(wire.event(1), "GET")
            wire.event(1)
        dispatcher.abandon_all_events()
    finally:
        logging.disable(logging.NOTSET)
    gc.collect()
    assert [ref() for ref in witnesses] == [None] * 60
