"""What the PDK's methods do with arguments and answers beyond what the recording shows."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from scripted_kong import Failed, run

from kongps.errors import HandlerExit, PDKError
from kongps.kong_pdk.pdk import LuaStyleKong, PlainKong

Handler = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("phase", "handler", "sent"),
    [
        (
            "certificate",
            lambda kong: kong.client.tls.request_client_certificate(),
            ("kong.client.tls.request_client_certificate", []),
        ),
        (
            "certificate",
            lambda kong: kong.client.tls.disable_session_reuse(),
            ("kong.client.tls.disable_session_reuse", []),
        ),
        ("preread", lambda kong: kong.client.get_ip(), ("kong.client.get_ip", [])),
        (
            "preread",
            lambda kong: kong.service.request.disable_tls(),
            ("kong.service.request.disable_tls", []),
        ),
        (
            "preread",
            lambda kong: kong.service.set_target("10.0.0.1", 443),
            ("kong.service.set_target", ["10.0.0.1", 443]),
        ),
        (
            "access",
            lambda kong: kong.vault.warmup({"key": "{vault://env/x}"}),
            ("kong.vault.warmup", [{"key": "{vault://env/x}"}]),
        ),
        (
            "access",
            lambda kong: kong.client.authenticate(None, {"id": "c"}),
            ("kong.client.authenticate", [None, {"id": "c"}]),
        ),
        (
            "access",
            lambda kong: kong.service.request.set_header("x-raw", b"\xff\x00"),
            ("kong.service.request.set_header", ["x-raw", b"\xff\x00"]),
        ),
        (
            "access",
            lambda kong: kong.log.set_serialize_value("my.field", None),
            ("kong.log.set_serialize_value", ["my.field"]),
        ),
        (
            "log",
            lambda kong: kong.telemetry.log("p", {}, "t"),
            ("kong.telemetry.log", ["p", {}, "t"]),
        ),
        (
            "access",
            lambda kong: kong.log.deprecation("old", after="2.5.0", removal="3.0.0"),
            ("kong.log.deprecation", ["old", {"after": "2.5.0", "removal": "3.0.0"}]),
        ),
        (
            "rewrite",
            lambda kong: kong.service.request.set_body(
                {"a": ["b", True]}, "application/x-www-form-urlencoded; charset=utf-8"
            ),
            (
                "kong.service.request.set_body",
                [{"a": ["b", True]}, "application/x-www-form-urlencoded; charset=utf-8"],
            ),
        ),
    ],
)
def test_calls_that_the_recording_lacks(
    phase: str, handler: Handler, sent: tuple[str, list[Any]]
) -> None:
    outcome = run(handler, phase, [True])
    assert outcome.error is None
    assert outcome.sent == [sent]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda kong: kong.request.get_headers(1001), "kong.request.get_headers: .*'max_headers'"),
        (lambda kong: kong.request.get_headers(1.5), "kong.request.get_headers: .*'max_headers'"),
        (lambda kong: kong.request.get_query(0), "kong.request.get_query: .*'max_args'"),
        (lambda kong: kong.request.get_body(None, -1), "kong.request.get_body: .*'max_args'"),
        (lambda kong: kong.response.set_status(600), "kong.response.set_status: .*'status'"),
        (lambda kong: kong.response.set_status(float("nan")), "kong.response.set_status: .*nan"),
        (lambda kong: kong.response.exit(99.5), "kong.response.exit: .*'status'"),
        (lambda kong: kong.response.error(399), "kong.response.error: .*from 400 to 599"),
        (lambda kong: kong.service.set_target("h", 65536), "kong.service.set_target: .*'port'"),
        (lambda kong: kong.service.set_retries(-1), "kong.service.set_retries: .*'retries'"),
        (
            lambda kong: kong.service.set_timeouts(1, 0, 1),
            "kong.service.set_timeouts: .*'write_timeout'",
        ),
        (
            lambda kong: kong.service.set_tls_verify_depth(-1),
            "kong.service.set_tls_verify_depth: .*'depth'",
        ),
        (
            lambda kong: kong.service.request.set_scheme("HTTP"),
            "kong.service.request.set_scheme: .*'scheme'",
        ),
        (lambda kong: kong.service.request.set_path(""), "set_path: .*start with /"),
        (lambda kong: kong.service.request.set_path(b"x"), "set_path: .*start with /"),
        (
            lambda kong: kong.service.request.set_method(b"get"),
            "kong.service.request.set_method: .*'method'",
        ),
        (
            lambda kong: kong.service.request.set_body({}, "text/plain"),
            "kong.service.request.set_body: .*'mimetype'",
        ),
        (
            lambda kong: kong.node.get_memory_stats("kb"),
            "kong.node.get_memory_stats: .*'unit'",
        ),
        (
            lambda kong: kong.node.get_memory_stats("k", -1),
            "kong.node.get_memory_stats: .*'scale'",
        ),
        (lambda kong: kong.client.load_consumer("alice"), "load_consumer: .*'consumer_id'"),
        (lambda kong: kong.client.authenticate(None, None), "'consumer' and 'credential'"),
        (
            lambda kong: kong.client.tls.set_client_verify("OK"),
            "kong.client.tls.set_client_verify: .*'result'",
        ),
        (
            lambda kong: kong.log.set_serialize_value("a", 1, {"mode": "drop"}),
            "kong.log.set_serialize_value: .*'options'",
        ),
    ],
)
def test_values_that_kong_would_not_take(handler: Handler, message: str) -> None:
    outcome = run(handler)
    assert outcome.asked == []
    assert isinstance(outcome.error, ValueError)
    with pytest.raises(ValueError, match=message):
        raise outcome.error


@pytest.mark.parametrize(
    "handler",
    [
        lambda kong: kong.request.get_headers("5"),
        lambda kong: kong.response.set_status("200"),
        lambda kong: kong.response.set_status(True),
        lambda kong: kong.response.exit(None),
        lambda kong: kong.response.exit(200, 5),
        lambda kong: kong.response.set_header("x", ["a", 5]),
        lambda kong: kong.response.add_header("x", {"a": "b"}),
        lambda kong: kong.response.set_headers([("x", "y")]),
        lambda kong: kong.response.set_headers({5: "y"}),
        lambda kong: kong.service.request.set_headers({"x": ["y", 5]}),
        lambda kong: kong.service.request.set_query({"x": {"y": "z"}}),
        lambda kong: kong.service.request.set_query({5: "y"}),
        lambda kong: kong.service.request.set_query(["x"]),
        lambda kong: kong.service.request.set_scheme(5),
        lambda kong: kong.service.request.set_body(
            {"x": {"y": "z"}}, "application/x-www-form-urlencoded"
        ),
        lambda kong: kong.client.load_consumer(None),
        lambda kong: kong.client.tls.set_client_verify(5),
        lambda kong: kong.ctx.shared.set("key", object()),
    ],
)
def test_types_that_kong_would_not_take(handler: Handler) -> None:
    outcome = run(handler)
    assert outcome.asked == []
    assert isinstance(outcome.error, TypeError)
    assert "kong." in str(outcome.error)


@pytest.mark.parametrize(
    ("handler", "answer", "value"),
    [
        # A 2.x gateway packs bodies as text, whatever is in them.
        (lambda kong: kong.request.get_raw_body(), "w\u00f6rld\udcff", b"w\xc3\xb6rld\xff"),
        (lambda kong: kong.request.get_raw_body(), b"", b""),
        (lambda kong: kong.request.get_raw_body(), None, None),
        # An empty Lua table is an empty array on the wire.
        (lambda kong: kong.request.get_headers(), [], {}),
        (lambda kong: kong.request.get_query(), [], {}),
        (lambda kong: kong.nginx.get_statistics(), None, {}),
        (lambda kong: kong.request.get_uri_captures(), None, {"unnamed": {}, "named": {}}),
        (
            lambda kong: kong.request.get_uri_captures(),
            {"unnamed": ["a", "b"], "named": []},
            {"unnamed": {1: "a", 2: "b"}, "named": {}},
        ),
        (lambda kong: kong.request.get_query_arg("flag"), True, True),
        (lambda kong: kong.request.get_header("x"), "\udcff", "\udcff"),
    ],
)
def test_answers(handler: Handler, answer: Any, value: Any) -> None:
    outcome = run(handler, answers=[answer])
    assert outcome.error is None
    assert outcome.value == value
    assert type(outcome.value) is type(value)


def test_an_error_of_kong_names_the_function() -> None:
    outcome = run(lambda kong: kong.service.set_upstream("x"), answers=[Failed("no such Upstream")])
    assert isinstance(outcome.error, PDKError)
    assert outcome.error.function == "kong.service.set_upstream"
    assert outcome.error.reason == "no such Upstream"


def test_a_wrong_phase_names_function_and_phases() -> None:
    outcome = run(lambda kong: kong.request.get_method(), "log")
    assert isinstance(outcome.error, PDKError)
    assert outcome.error.function == "kong.request.get_method"
    assert "log" in outcome.error.reason
    assert "rewrite, access, response" in outcome.error.reason


@pytest.mark.parametrize("phase", ["access", "log"])
def test_an_unavailable_function_says_what_to_do_instead(phase: str) -> None:
    outcome = run(lambda kong: kong.response.get_raw_body(), phase)
    assert isinstance(outcome.error, PDKError)
    assert "kong.service.response.get_raw_body" in outcome.error.reason
    assert outcome.asked == []


@pytest.mark.parametrize("end", ["exit", "error"])
def test_exit_ends_the_handler(end: str) -> None:
    steps = []

    def handler(kong: Any) -> None:
        try:
            getattr(kong.response, end)(403, "no", {"x-a": ["1", "2"]})
        except Exception:
            steps.append("caught")
        finally:
            steps.append("finally")
        steps.append("behind")

    outcome = run(handler)
    assert outcome.sent == [(f"kong.response.{end}", [403, "no", {"x-a": ["1", "2"]}])]
    assert isinstance(outcome.error, HandlerExit)
    assert steps == ["finally"]


# --- the log --------------------------------------------------------------------------------


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Shout(str):
    def __str__(self) -> str:
        return "SHOUT"


class Named:
    def __repr__(self) -> str:
        return "named\ud800"


LOGGED = [
    ("text", "text"),
    (b"\xff", b"\xff"),
    (5, 5),
    (2.5, 2.5),
    (True, True),
    (None, "None"),
    (1 << 70, str(1 << 70)),
    (-(1 << 63) - 1, str(-(1 << 63) - 1)),
    ({"a": 1}, "{'a': 1}"),
    ([1, None], "[1, None]"),
    ("w\u00f6rld\udcff", "w\u00f6rld\udcff"),
    ("lone \ud800", "lone \\ud800"),
    (Named(), "named\\ud800"),
    (Shout("x"), "SHOUT"),
    (Broken(), "<Broken that has no text>"),
    (ValueError("bad"), "bad"),
]


@pytest.mark.parametrize(("value", "sent"), LOGGED)
@pytest.mark.parametrize("kong", [None, PlainKong])
def test_a_log_line_can_hold_anything(value: Any, sent: Any, kong: Any) -> None:
    kinds = {} if kong is None else {"kong": kong}

    def handler(kong: Any) -> None:
        kong.log("value: ", value)
        kong.log.err(value, value)

    outcome = run(handler, answers=[None, None], **kinds)
    if kong is not None and isinstance(value, (dict, list)):
        sent = value  # kong-python-pdk lets Kong write tables in its own way
    assert outcome.error is None
    assert outcome.sent == [("kong.log", ["value: ", sent]), ("kong.log.err", [sent, sent])]


def test_inspect_keeps_tables() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    cycle: list[Any] = [1]
    cycle += [cycle, cycle]
    value = {"a": (1, None, {"b": Broken()}), 5: 1 << 70, 2.5: cycle, None: None}
    outcome = run(lambda kong: kong.log.inspect(value, deep, "x", None, 5), answers=[None])
    assert outcome.error is None
    sent = outcome.sent[0][1]
    assert sent[0] == {
        "a": [1, None, {"b": "<Broken that has no text>"}],
        5: str(1 << 70),
        "2.5": [1, "[1, [...], [...]]", "[1, [...], [...]]"],
        "None": None,
    }
    assert sent[2:] == ["x", "None", 5]


def test_tables_in_a_kong_python_pdk_log_line() -> None:
    def handler(kong: Any) -> None:
        kong.log.inspect({"a": Broken()}, [object])
        kong.log.set_serialize_value("a", True, {"mode": "add"})
        kong.log.set_serialize_value("a", None)

    outcome = run(handler, answers=[None, None, None], kong=PlainKong)
    assert outcome.error is None
    assert outcome.sent == [
        ("kong.log.inspect", [{"a": "<Broken that has no text>"}, ["<class 'object'>"]]),
        ("kong.log.set_serialize_value", ["a", True, {"mode": "add"}]),
        ("kong.log.set_serialize_value", ["a"]),
    ]


def test_serialize_takes_a_dict_as_well() -> None:
    assert run(lambda kong: kong.log.serialize(), "log", [{"a": 1}]).value == {"a": 1}
    assert run(lambda kong: kong.log.serialize(), "log", ['{"a": null}']).value == {"a": None}
    assert run(lambda kong: kong.log.serialize(), "log", [None]).value == {}


# --- plugins of kong-python-pdk --------------------------------------------------------------


def test_lua_style_returns_pairs() -> None:
    def handler(kong: Any) -> Any:
        return [
            kong.request.get_header("host"),
            kong.request.get_header("x"),
            kong.service.set_upstream("x"),
            kong.enterprise_edition.jwe.decrypt("key", "token"),
            kong.response.get_status(),
        ]

    answers = ["example.test", None, Failed("no such Upstream"), "plain"]
    outcome = run(handler, answers=answers, kong=LuaStyleKong)
    assert outcome.sent[3] == ("kong.enterprise_edition.jwe.decrypt", ["key", "token"])
    assert outcome.value[:4] == [
        ("example.test", None),
        (None, None),
        (None, "no such Upstream"),
        ("plain", None),
    ]
    value, error = outcome.value[4]
    assert value is None
    assert "access" in error


def test_plain_style_returns_values_and_raises() -> None:
    def handler(kong: Any) -> Any:
        assert kong.request.get_headers() == []  # as it is on the wire
        kong.log.notice("x", object)
        kong.service.set_upstream("x")

    outcome = run(handler, answers=[[], None, Failed("no such Upstream")], kong=PlainKong)
    assert outcome.sent[1] == ("kong.log.notice", ["x", "<class 'object'>"])
    assert isinstance(outcome.error, PDKError)
    assert outcome.error.reason == "no such Upstream"


@pytest.mark.parametrize("kong", [LuaStyleKong, PlainKong])
def test_exit_ends_a_kong_python_pdk_handler(kong: Any) -> None:
    steps = []

    def handler(kong: Any) -> None:
        kong.response.exit(403, {"message": "no"})
        steps.append("behind")

    outcome = run(handler, kong=kong)
    assert outcome.sent == [("kong.response.exit", [403, {"message": "no"}])]
    assert steps == []


@pytest.mark.parametrize("kong", [LuaStyleKong, PlainKong])
def test_names_of_python_are_not_functions_of_kong(kong: Any) -> None:
    def handler(kong: Any) -> Any:
        assert not hasattr(kong, "__deepcopy__")
        assert not hasattr(kong.request, "__len__")
        return repr(kong.request.get_header)

    outcome = run(handler, kong=kong)
    assert outcome.value == "<kong.request.get_header>"
    assert outcome.sent == []
