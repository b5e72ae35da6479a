"""What becomes of a request whose handler fails: closed or open, and what Kong's log gets."""

from __future__ import annotations

import json
import logging
import textwrap
from pathlib import Path
from typing import Any, Callable

import pytest
from client import Client, DirectProtobuf, RPCError, dispatcher_with, failed, protobuf_with
from core_defaults import new_dispatcher
from made_plugins import plugin_of
from plugin_files import write
from server_process import run, serving

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.core.report import LONGEST_TOLD, traceback_of
from kongps.errors import PluginError
from kongps.plugins.loader import from_object

UNEXPECTED = [500, {"message": "An unexpected error occurred"}]


def raising(kong: Any) -> None:
    raise ValueError("oh no")


def asked_raising(kong: Any) -> None:
    kong.request.get_method()
    raise ValueError("oh no")


def dispatcher(on_error: str = "closed", **options: Any) -> Dispatcher:
    return new_dispatcher(on_error=on_error, **options)


def failing(
    dispatcher: Dispatcher,
    handler: Callable[[Any], Any] | None,
    on_error: str | None,
    phase: str = "access",
) -> None:
    """Gives it an instance 1 of a plugin that says what its failures end in."""
    plugin = plugin_of(on_error=on_error)
    handlers = {} if handler is None else {phase: handler}
    failure = "it did not start" if handler is None else None
    dispatcher.add_instance(Instance(1, plugin, {}, 0.0, handlers, failure))


# --- what Kong's log gets ----------------------------------------------------------------------


def test_kong_logs_the_traceback_before_the_request_ends() -> None:
    served = dispatcher()
    wire = dispatcher_with(served, asked_raising)
    answer = wire.step(wire.event(1), "GET")
    assert answer["Data"]["Method"] == "kong.log.err"
    (text,) = answer["Data"]["Args"]
    for part in ("plugin one, access handler, instance 1", "test_failing.py", "ValueError: oh no"):
        assert part in text
    assert "\n" not in text
    assert served.live_events == 1
    answer = wire.step(answer)
    assert answer["Data"] == {"Method": "kong.response.exit", "Args": UNEXPECTED}
    assert served.live_events == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda kong: kong.nginx.get_var("request_id"),
        lambda kong: kong.nginx.get_var("kong_request_id"),
        lambda kong: kong.request.get_header("X-Request-ID"),
        lambda kong: kong.request.get_header("kong-request-id"),
    ],
)
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0123456789abcdef0123456789abcdef", True),
        ("a line\n[error] of its own", False),
        ("x" * 1000, False),
        ("\x1b[31m", False),
        ("", False),
        (None, False),
    ],
)
def test_logs_name_the_request_when_the_handler_has_asked_for_its_id(
    ask: Callable[[Any], Any], value: str | None, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(kong: Any) -> None:
        ask(kong)
        kong.request.get_header("host")
        raise ValueError("oh no")

    wire = dispatcher_with(dispatcher(), handler)
    answer = wire.step(wire.step(wire.event(1), value), "x-request-id.test")
    assert answer["Data"]["Method"] == "kong.log.err"
    for text in (answer["Data"]["Args"][0], caplog.text):
        assert (f", request {value} raised ValueError" in text) == shown
        assert ", request " in text if shown else ", request " not in text


SECRETS = {
    "a word": "hunter2secret",
    "a long text": "hunter2" + "x" * 400 + "end",
    "what is escaped": "hunter2 'secret\" \\ \n é",
    "in a list": "hunter2secret",
}

# Each fails with its key in the exception's text, and in that of the exception before it.
TELLING = {
    "constructor": """
        Schema = ({"key": {"type": "string"}},)

        class Plugin:
            def __init__(self, config):
                try:
                    int(config["key"])
                except ValueError:
                    raise KeyError(config["key"])

            def access(self, kong): pass
        """,
    "start": """
        class Plugin:
            key: str = ""

            def start(self):
                int(self.key)

            def access(self, kong): pass
        """,
    "handler": """
        class Plugin:
            key: str = ""

            def access(self, kong):
                int(self.key)

            log = access
        """,
    "thread": """
        class Plugin:
            blocking = True
            key: str = ""

            def access(self, kong):
                raise RuntimeError({"key": [self.key]}) from ValueError(self.key)
        """,
    "async": """
        class Plugin:
            keys: list[str] = []

            async def access(self, kong):
                await kong.log.notice("now")
                {}[self.keys[0]]
        """,
    "close": """
        class Plugin:
            key: str = ""

            def access(self, kong): raise ValueError("not this")

            def close(self):
                int(self.key)
        """,
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])
def test_no_log_shows_a_value_of_the_configuration(
    plugins: Path, short_path: Path, protocol: str, form: str, secret: str
) -> None:
    for name, code in TELLING.items():
        write(plugins, name, code)
    value = SECRETS[secret]
    words = ("--log-format", form, "--log-level", "debug")
    with serving(plugins, short_path / "k.sock", *words) as server:
        client = Client(server, protocol)
        told = ""
        for name in TELLING:
            config = {"keys": [value]} if name == "async" else {"key": value}
            instance = client.start(name, json.dumps(config))
            trail = client.event(instance)
            assert failed(trail)
            told += str(trail)
            if name == "handler":
                told += told_in_log(client, instance)
            client.close_instance(instance)
        server.wait_for(lambda: "close of instance" in server.text())
        for text in (told, server.text()):
            assert "hunter2" not in text
            assert "xxx" not in text
            assert "***" in text
        assert server.text().count("***") >= len(TELLING)


def told_in_log(client: Client, instance: int) -> str:
    """What Kong is told when the plugin's log handler fails."""
    if client.protocol == "protobuf":
        return str(client.event(instance, phase="log"))
    with pytest.raises(RPCError) as caught:
        client.server.connect().event(instance, "log")
    return str(caught.value)


def test_a_traceback_hides_values_in_what_an_exception_says_and_nowhere_else() -> None:
    config = {"word": "raise", "short": "no", "number": 12345, "deep": [{"a": "deep secret"}]}
    try:
        raise ValueError("raise no 12345 deep secret")
    except ValueError as error:
        text = traceback_of(error, error.__traceback__, config)
    assert text.splitlines()[-1] == "ValueError: *** no 12345 ***"
    assert 'raise ValueError("raise no 12345 deep secret")' in text


@pytest.mark.parametrize(("plugin", "end"), [("None", "ret"), ("'closed'", "kong.response.exit")])
def test_a_lost_event_is_let_through_when_no_plugin_objects(
    plugins: Path, short_path: Path, plugin: str, end: str
) -> None:
    write(plugins, "one", f"class Plugin:\n on_error = {plugin}\n def access(self, kong): pass\n")
    if plugin == "None":
        write(plugins, "one", "class Plugin:\n def access(self, kong): pass\n")
    with serving(plugins, short_path / "k.sock", "--on-error", "open") as server:
        answer = server.connect().call("Step", {"EventId": 123456, "Data": None})
        assert answer["Data"] == "ret" if end == "ret" else answer["Data"]["Method"] == end


def test_kong_logs_the_traceback_and_ends_the_request_in_one_write_over_protobuf() -> None:
    served = dispatcher()
    wire = protobuf_with(served, raising)
    wire.begin(1)
    told, exited = wire.waiting()
    assert told is not None
    assert exited is not None
    assert told.function == "kong.log.err"
    assert "ValueError: oh no" in told.args[0]
    assert exited.function == "kong.response.exit"
    assert served.live_events == 0


@pytest.mark.parametrize("phase", ["certificate", "log"])
def test_kong_logs_the_traceback_of_phases_that_cannot_end_the_request(phase: str) -> None:
    wire = protobuf_with(dispatcher(), raising, phase)
    wire.begin(1, phase)
    told, end = wire.waiting()
    assert told is not None
    assert "ValueError: oh no" in told.args[0]
    assert end is None
    # Over MsgPack:1 the error answer itself gets into Kong's log.
    with pytest.raises(RPCError, match="raised ValueError"):
        dispatcher_with(dispatcher(), raising, phase).event(1, phase)


def test_kong_is_waited_for_where_pipelining_is_off() -> None:
    served = dispatcher(pipelining=False)
    wire = protobuf_with(served, raising)
    trail = wire_until_closed(wire)
    assert trail == ["kong.log.err", "kong.response.exit"]
    assert served.live_events == 0


def wire_until_closed(wire: DirectProtobuf) -> list[str]:
    wire.begin(1)
    trail = []
    while wire.frames:
        (asked,) = wire.waiting()
        assert asked is not None
        trail.append(asked.function)
        if asked.function != "kong.response.exit":
            wire.answer(asked)
    return trail


def test_a_long_traceback_is_cut_at_its_end_that_says_most() -> None:
    def deep(kong: Any) -> None:
        raise ValueError("x" * 10_000 + "the end")

    text = dispatcher_with(dispatcher(), deep).event(1)["Data"]["Args"][0]
    assert text.endswith("the end")
    assert len(text) < LONGEST_TOLD + 200


def test_an_exception_that_cannot_be_shown_still_ends_the_request() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise SystemExit

    def handler(kong: Any) -> None:
        raise Hostile("\ud800")

    def surrogate(kong: Any) -> None:
        raise ValueError("\ud800")

    logging.disable(logging.CRITICAL)  # pytest-xdist cannot carry such text
    try:
        for each in (handler, surrogate):
            wire = dispatcher_with(dispatcher(), each)
            assert wire.failure(wire.event(1))["Data"]["Args"] == UNEXPECTED
            pipelined = protobuf_with(dispatcher(), each)
            pipelined.begin(1)
            asked = [each and each.function for each in pipelined.waiting()]
            assert asked == ["kong.log.err", "kong.response.exit"]
    finally:
        logging.disable(logging.NOTSET)


def test_an_event_whose_failure_kong_does_not_log_is_given_up() -> None:
    served = dispatcher()
    wire = dispatcher_with(served, raising)
    answer = wire.event(1)
    assert served.abandon_all_events() == 1
    assert wire.step(answer)["Data"]["Method"] == "kong.response.exit"


# --- open --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "plugin", "passes"),
    [
        ("closed", None, False),
        ("open", None, True),
        ("closed", "open", True),
        ("open", "closed", False),
    ],
)
def test_a_failed_handler_lets_the_request_through_where_that_is_wanted(
    server: str, plugin: str | None, passes: bool
) -> None:
    for handler in (raising, None):
        served = dispatcher(server)
        failing(served, handler, plugin)
        wire = dispatcher_with(served, raising, id=2)
        answer = wire.event(1)
        if handler is not None:
            answer = wire.failure(answer)
        assert answer["Data"] == "ret" if passes else answer["Data"]["Args"] == UNEXPECTED
        assert served.live_events == 0

        pipelined = DirectProtobuf(served)
        pipelined.begin(1)
        asked = [each and each.function for each in pipelined.waiting()]
        assert asked[-1] == (None if passes else "kong.response.exit")
        assert pipelined.session.closing is (not passes and handler is None)


def test_what_a_plugin_says_of_its_failures_is_read_from_class_or_module() -> None:
    class Plugin:
        on_error = "open"

        def access(self, kong: Any) -> None: ...

    class Silent:
        def access(self, kong: Any) -> None: ...

    class Wrong:
        on_error = "ajar"

        def access(self, kong: Any) -> None: ...

    assert from_object(Plugin).on_error == "open"
    assert from_object(Silent).on_error is None
    with pytest.raises(PluginError, match=r"on_error is 'ajar'; it must be 'closed' or 'open'"):
        from_object(Wrong)


def test_a_server_told_to_fail_open_does(plugins: Path, short_path: Path) -> None:
    for name, attribute in (("module", 'on_error = "closed"'), ("silent", "")):
        (plugins / f"{name}.py").write_text(
            textwrap.dedent(f"""
            {attribute}
            class Plugin:
                number: int = 0
                def access(self, kong):
                    raise ValueError
            """)
        )
    with serving(plugins, short_path / "k.sock", "--on-error", "open") as server:
        wire = server.connect()
        assert wire.failure(wire.event(wire.start("silent")))["Data"] == "ret"
        assert wire.event(wire.start("silent", '{"number": "x"}'))["Data"] == "ret"
        assert wire.event(wire.start("missing"))["Data"] == "ret"
        assert wire.failure(wire.event(wire.start("module")))["Data"]["Args"] == UNEXPECTED
        other = server.connect_protobuf()
        trail = other.event(other.start("silent"))
        assert [asked.function for asked in trail] == ["kong.log.err"]
    refused = run("serve", "--plugins-directory", ".", "--socket", "s", KONGPS_ON_ERROR="ajar")
    assert refused.returncode == 2
    assert b"is not one of closed, open" in refused.stderr
