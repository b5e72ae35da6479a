"""The stand-in as Kong's side of the wire: phases, instances, pool, and what ends badly."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import Close, FakeServer, NoAnswer, RpcFailure, call

from kongps.errors import ConfigError, KongpsError
from kongps.testing import Kong, PluginConfig, Request, Response, Route, Service

HELLO = {
    "access": [
        call("kong.request.get_header", "host"),
        call("kong.response.set_header", "x-hello", "hi"),
    ]
}
ALL = {phase: [] for phase in ("certificate", "rewrite", "access", "response", "log", "preread")}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Any]:
    made: list[FakeServer] = []

    def make(plugins: Any, **options: Any) -> FakeServer:
        server = FakeServer(str(tmp_path / f"s{len(made)}.sock"), plugins, **options)
        made.append(server)
        return server

    yield make
    for server in made:
        with contextlib.suppress(OSError):
            server.stop()


def events(server: FakeServer) -> list[str]:
    return [argument["EventName"] for argument in server.of("HandleEvent")]


# --- phases -------------------------------------------------------------------------------------


def test_hello(servers: Any) -> None:
    server = servers({"hello": HELLO})
    with Kong(server.path) as kong:
        result = kong.request("GET", "/x?a=1", headers={"Host": "example.test"})
    assert result.status == 200
    assert result.headers["X-Hello"] == "hi"
    assert result.json() == {"message": "from the service"}
    assert result.service_request is not None
    assert result.service_request.path == "/x?a=1"
    assert [call.function for call in result.calls] == [
        "kong.request.get_header",
        "kong.response.set_header",
    ]
    assert result.calls[0].answer == "example.test"
    assert all(call.seconds > 0 for call in result.calls)
    assert server.answers == ["example.test", None]
    assert server.methods() == ["StartInstance", "HandleEvent", "Step", "Step"]
    assert {number for number, _, _ in server.seen} == {1}
    assert repr(result).startswith("<Result of GET /x?a=1: 200 from the service, 2 PDK calls")


def test_phases_in_order(servers: Any) -> None:
    server = servers({"all": ALL})
    kong = Kong(server.path)
    assert kong.request().phases == ["rewrite", "access", "response", "log"]
    assert kong.request(scheme="https").phases == [
        "certificate",
        "rewrite",
        "access",
        "response",
        "log",
    ]
    assert kong.stream().phases == ["preread", "log"]
    assert Kong(server.path, version="2.0").request().phases == ["rewrite", "access", "log"]


def test_a_scoped_plugin_misses_the_phases_before_the_route(servers: Any) -> None:
    server = servers({"all": ALL})
    kong = Kong(server.path, plugins=[PluginConfig("all", scope="service")])
    assert kong.request(scheme="https").phases == ["access", "response", "log"]
    assert json.loads(server.of("StartInstance")[0]["Config"])["service_id"] == kong.service.id


def test_several_plugins_by_priority_and_exit(servers: Any) -> None:
    exits = call("kong.response.exit", 403, {"message": "no"}, {"x-exit": "yes"})
    server = servers(
        {
            "late": {"access": [], "log": []},
            "auth": {"access": [exits], "response": [], "log": []},
            "early": {"access": [call("kong.response.set_header", "x-early", "1")], "log": []},
        },
        priorities={"early": 2000, "auth": 1000, "late": 10},
    )
    result = Kong(server.path).request()
    assert [(e.plugin, e.phase, e.outcome) for e in result.events] == [
        ("early", "access", "done"),
        ("auth", "access", "exit"),
        ("early", "log", "done"),
        ("auth", "log", "done"),
        ("late", "log", "done"),
    ]
    assert result.status == 403
    assert result.source == "exit"
    assert result.json() == {"message": "no"}
    assert result.headers["content-type"] == "application/json; charset=utf-8"
    assert result.headers["x-exit"] == "yes"
    assert result.headers["x-early"] == "1"
    assert result.service_request is None
    # The event is never stepped again, and its connection is used for the next one.
    assert server.methods().count("Step") == 1
    assert {number for number, _, _ in server.seen} == {1}


def test_what_the_service_gets(servers: Any) -> None:
    server = servers(
        {
            "change": {
                "access": [
                    call("kong.service.request.set_header", "X-Set", ["a", "b"]),
                    call("kong.service.request.add_header", "x-sent", "more"),
                    call("kong.service.request.clear_header", "x-gone"),
                    call("kong.service.request.set_path", "/new"),
                    call("kong.service.request.set_query", {"q": ["1", "2"], "flag": True}),
                    call("kong.service.request.set_method", "PUT"),
                    call("kong.service.request.set_body", {"n": 1}, "application/json"),
                    call("kong.service.set_target", "10.0.0.1", 8080),
                    call("kong.request.get_header", "x-set"),
                ]
            }
        }
    )
    kong = Kong(server.path, service=Service(path="/base"), route="/api")
    result = kong.request(
        "POST", "/api/x?old=1", headers={"x-sent": "one", "x-gone": "1"}, body="old"
    )
    sent = result.service_request
    assert sent is not None
    assert (sent.method, sent.path) == ("PUT", "/new?flag&q=1&q=2")
    assert (sent.host, sent.port) == ("10.0.0.1", 8080)
    assert sent.headers.all("x-set") == ["a", "b"]
    assert sent.headers.all("x-sent") == ["one", "more"]
    assert "x-gone" not in sent.headers
    assert sent.json() == {"n": 1}
    assert sent.headers["content-length"] == "7"
    assert result.calls[-1].answer == "a"
    plain = Kong(
        server.path,
        plugins=[],
        service=Service(path="/base"),
        route=Route(paths=["/api"], strip_path=True),
    ).request("GET", "/api/x?old=1")
    assert plain.service_request is not None
    assert plain.service_request.path == "/base/x?old=1"
    assert plain.service_request.headers["x-forwarded-prefix"] == "/api"


def test_the_service_may_be_a_function_and_may_fail(servers: Any) -> None:
    server = servers({"log": {"log": [call("kong.response.get_source")]}})

    def service(request: Request) -> Response:
        if request.raw_path == "/down":
            raise ConnectionRefusedError
        return Response(201, {"x-path": request.path}, {"got": request.text})

    kong = Kong(server.path, upstream=service)
    result = kong.request("POST", "/up", body="b")
    assert (result.status, result.json()) == (201, {"got": "b"})
    assert result.headers["x-path"] == "/up"
    result = kong.request("GET", "/down")
    assert (result.status, result.source) == (502, "error")
    assert server.answers == ["service", "error"]


def test_a_request_for_no_route(servers: Any) -> None:
    server = servers({"all": ALL})
    result = Kong(server.path, route="/only").request("GET", "/other")
    assert result.status == 404
    assert result.phases == ["rewrite", "log"]
    assert result.json()["message"] == "no Route matched with those values"


def test_response_headers_of_plugin_and_service(servers: Any) -> None:
    server = servers(
        {
            "p": {
                "access": [
                    call("kong.response.set_header", "x-both", "plugin"),
                    call("kong.response.set_status", 418),
                ],
                "response": [
                    call("kong.response.get_header", "x-both"),
                    call("kong.response.clear_header", "x-secret"),
                ],
            }
        }
    )
    upstream = Response(200, {"x-both": "service", "x-secret": "1"}, "body")
    result = Kong(server.path, upstream=upstream).request()
    assert result.headers.all("x-both") == ["plugin", "service"]
    assert "x-secret" not in result.headers
    assert result.status == 200
    assert result.headers["via"] == "1.1 kong/3.9.1"


def test_logs_and_log_levels(servers: Any) -> None:
    server = servers(
        {"p": {"access": [call("kong.log.warn", "a", 1, 2.5, True, None), call("kong.nope", 1)]}}
    )
    result = Kong(server.path).request()
    assert result.logged("warn") == ["a12.5truenil"]
    assert result.logged("err") == []
    assert [line.message for line in result.log if line.source == "kong"] == [
        "could not find pdk method: kong.nope"
    ]


# --- instances ----------------------------------------------------------------------------------

RECORDED_KEYS = {
    "2.0": ("plugins:hello::{service}::", 0),
    "2.8": ("plugins:hello::{service}:::{ws}", 1),
    "3.9": ("plugins:hello::{service}:::{ws}", 2),
}


@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
def test_config_and_change(servers: Any, version: str) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(
        server.path,
        version=version,
        plugins=[PluginConfig("hello", {"message": "a/b", "list": []}, scope="service")],
    )
    kong.request()
    started = server.of("StartInstance")
    assert started[0]["Name"] == "hello"
    text = started[0]["Config"]
    assert '"message":"a\\/b"' in text
    assert ('"list":{}' if version == "2.0" else '"list":[]') in text
    config = json.loads(text)
    key, seq = RECORDED_KEYS[version]
    assert config["__key__"] == key.format(service=kong.service.id, ws=kong.workspace_id)
    assert config["__seq__"] == seq
    assert ("__plugin_id" in config) == (version == "3.9")
    kong.request()
    assert len(server.of("StartInstance")) == 1

    kong.configure("hello", {"message": "changed"})
    server.seen.clear()
    kong.request()
    assert server.methods() == ["StartInstance", "CloseInstance", "HandleEvent", "Step", "Step"]
    assert json.loads(server.of("StartInstance")[0]["Config"])["__seq__"] == seq + 1
    assert server.of("CloseInstance") == [0]
    assert server.of("HandleEvent")[0]["InstanceId"] == 1

    server.seen.clear()
    kong.reload()
    kong.request()
    assert len(server.of("StartInstance")) == (1 if version == "3.9" else 0)
    server.seen.clear()
    kong.remove("hello")
    kong.request()
    assert server.methods() == []


SCHEMA = {
    "name": "p",
    "fields": [
        {
            "config": {
                "type": "record",
                "fields": [
                    {"message": {"type": "string", "default": "hi"}},
                    {"limit": {"type": "integer", "between": [1, 9]}},
                    {"mode": {"type": "string", "one_of": ["a", "b"], "required": True}},
                    {"tags": {"type": "array", "elements": {"type": "string"}}},
                    {
                        "inner": {
                            "type": "record",
                            "fields": [{"deep": {"type": "number", "default": 1.5}}],
                        }
                    },
                ],
            }
        }
    ],
}


def test_defaults_of_the_schema(servers: Any) -> None:
    server = servers({"p": {"access": []}}, schemas={"p": SCHEMA})
    Kong(server.path, config={"mode": "a"}).request()
    config = json.loads(server.of("StartInstance")[0]["Config"])
    assert config["message"] == "hi"
    assert config["limit"] is None
    assert config["inner"] == {"deep": 1.5}


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({}, "config.mode"),
        ({"mode": "c"}, "config.mode"),
        ({"mode": "a", "limit": 10}, "config.limit"),
        ({"mode": "a", "limit": "1"}, "config.limit"),
        ({"mode": "a", "limit": True}, "config.limit"),
        ({"mode": "a", "nosuch": 1}, "config.nosuch"),
        ({"mode": "a", "tags": ["x", 1]}, "config.tags[2]"),
        ({"mode": "a", "inner": {"deep": "x"}}, "config.inner.deep"),
    ],
)
def test_a_config_that_kong_would_refuse(servers: Any, config: Any, path: str) -> None:
    server = servers({"p": {"access": []}}, schemas={"p": SCHEMA})
    with pytest.raises(ConfigError) as caught:
        Kong(server.path, config=config)
    assert caught.value.path == path


def test_workers_have_their_own_instances_and_connections(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path, workers=2)
    for _ in range(4):
        assert kong.request().status == 200
    assert len(server.of("StartInstance")) == 2
    assert [argument["InstanceId"] for argument in server.of("HandleEvent")] == [0, 1, 0, 1]
    assert {number for number, _, _ in server.seen} == {1, 2}
    kong.request(worker=1)
    assert server.of("HandleEvent")[-1]["InstanceId"] == 1


def test_the_first_requests_at_once_start_one_instance(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path)
    results = kong.requests(Request("GET", f"/{i}") for i in range(5))
    assert [result.status for result in results] == [200] * 5
    assert [result.request.path for result in results] == [f"/{i}" for i in range(5)]
    assert len(server.of("StartInstance")) == 1
    assert kong.workers[0].pool.idle == 5


def test_a_new_server_pid_drops_the_instances(servers: Any) -> None:
    server = servers({"hello": HELLO}, pid=1)
    kong = Kong(server.path)
    kong.request()
    server.stop()
    assert kong.request().status == 200
    server.pid = 2
    server.start()
    # The pid is read with the answer to the event, so that its instance is asked for first.
    server.seen.clear()
    assert kong.request().headers["x-hello"] == "hi"
    assert server.methods()[:3] == ["HandleEvent", "StartInstance", "HandleEvent"]
    assert kong.workers[0].server_pid == 2


# --- the pool -----------------------------------------------------------------------------------


def test_connections_are_taken_last_in_first_out(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path, connections=3)
    kong.request()
    # All but the first look at the server's plugins went over the connection put back last.
    assert len({number for number, method, _ in server.seen if "Step" in method}) == 1
    assert kong.workers[0].pool.idle == 3


def test_steps_may_travel_on_any_connection(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path, connections=3, pool_order="fifo")
    kong.request()
    numbers = [number for number, method, _ in server.seen if method != "plugin.GetPluginInfo"]
    assert len(set(numbers)) == 3


def test_idle_connections_are_limited(servers: Any) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path)
    results = kong.requests(Request() for _ in range(40))
    assert all(result.status == 200 for result in results)
    assert kong.workers[0].pool.idle == 30


# --- what ends badly ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
@pytest.mark.parametrize("words", ["No plugin instance 0", "no plugin instance #0"])
def test_an_instance_that_is_not_there(servers: Any, version: str, words: str) -> None:
    server = servers({"hello": HELLO})
    kong = Kong(server.path, version=version)
    kong.request()
    server.seen.clear()
    once = [RpcFailure(words)]

    def fail(argument: Any) -> None:
        if once:
            raise once.pop()

    server.behaviours["HandleEvent"] = fail
    result = kong.request()
    assert result.status == 200
    if version == "2.0" and words[0] == "n":
        assert server.methods() == ["HandleEvent"]
        assert "x-hello" not in result.headers
        assert result.events[0].outcome == "error"
    else:
        assert server.methods()[:3] == ["HandleEvent", "StartInstance", "HandleEvent"]
        assert result.headers["x-hello"] == "hi"


def test_an_instance_that_is_never_there(servers: Any) -> None:
    server = servers({"hello": HELLO})

    def fail(argument: Any) -> None:
        raise RpcFailure("No plugin instance")

    server.behaviours["HandleEvent"] = fail
    result = Kong(server.path).request()
    assert result.hung
    assert result.status == 0


@pytest.mark.parametrize("method", ["HandleEvent", "Step"])
@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
def test_an_rpc_error_lets_the_request_pass(servers: Any, version: str, method: str) -> None:
    server = servers({"hello": {**HELLO, "log": []}})

    def fail(argument: Any) -> None:
        if argument.get("EventName") != "log":
            raise RpcFailure("boom")

    server.behaviours[method] = fail
    result = Kong(server.path, version=version).request()
    assert result.status == 200
    assert result.service_request is not None
    assert [line.message for line in result.log] == ["boom"]
    assert [(e.phase, e.outcome) for e in result.events] == [("access", "error"), ("log", "done")]


@pytest.mark.parametrize(
    ("version", "body"),
    [
        ("2.0", {"message": "An unexpected error occurred"}),
        ("2.8", {"message": "An unexpected error occurred"}),
        ("3.9", {"message": "An unexpected error occurred", "request_id": ...}),
    ],
)
def test_a_refused_call(servers: Any, version: str, body: Any) -> None:
    refused = [call("kong.response.set_header", "x", None), call("kong.log", "no")]
    for phase in ("rewrite", "access") if version == "2.0" else ("rewrite", "access", "response"):
        server = servers({"p": {**ALL, phase: refused}})
        result = Kong(server.path, version=version).request()
        assert result.status == 500
        assert result.json().keys() == body.keys()
        assert result.json()["message"] == body["message"]
        assert result.calls[0].refused
        assert "invalid header value" in result.calls[0].error
        assert len(result.calls) == 1
        assert server.methods().count("Step") == 0
        # The phases after it are skipped, but for log.
        assert result.phases[result.phases.index(phase) + 1 :] == ["log"]


def test_a_refused_call_in_log_changes_nothing(servers: Any) -> None:
    server = servers({"p": {"log": [call("kong.response.set_header", "x", "y")]}})
    result = Kong(server.path).request()
    assert result.status == 200
    assert result.events[0].outcome == "refused"


def test_what_cannot_be_packed_costs_the_connection(servers: Any) -> None:
    server = servers({"p": {"access": [call("kong.request.get_raw_body")]}})
    kong = Kong(server.path)
    kong.request()
    opened = kong.workers[0].pool.opened
    result = kong.request("POST", "/", body=b"x" * 9000)
    assert result.status == 500
    assert kong.workers[0].pool.idle == 0
    kong.request()
    assert kong.workers[0].pool.opened == opened + 1
    allowed = Kong(server.path, body_buffer_size=10000)
    assert allowed.request("POST", "/", body=b"x" * 9000).calls[0].answer == b"x" * 9000


def failing_start(argument: Any) -> None:
    raise RpcFailure("boom in constructor")


def test_start_instance_fails_on_2_0_and_3_9(servers: Any) -> None:
    for version in ("2.0", "3.9"):
        server = servers({"hello": {**HELLO, "log": []}})
        server.behaviours["StartInstance"] = failing_start
        kong = Kong(server.path, version=version)
        for _ in range(2):
            result = kong.request()
            assert result.status == 500
            assert result.service_request is None
        # Once for access and once for log, for each of the two.
        assert server.methods() == ["StartInstance"] * 4
        del server.behaviours["StartInstance"]
        assert kong.request().status == 200


def test_who_waited_for_an_instance_that_failed_to_start_starts_it(servers: Any) -> None:
    server = servers({"first": {"certificate": []}, "hello": HELLO}, priorities={"first": 9})
    failures = iter(range(2))

    def start(argument: Any) -> None:
        if argument["Name"] == "hello" and next(failures, None) is not None:
            raise Close

    server.behaviours["StartInstance"] = start
    kong = Kong(server.path)
    assert kong.request(scheme="https").status == 500
    # The second request starts the instance, and in vain; the first comes to wait for it.
    waits, starts = kong.requests([Request(scheme="https"), Request()])
    assert starts.status == 500
    assert waits.status == 200
    assert waits.headers["x-hello"] == "hi"


def test_start_instance_fails_on_2_8(servers: Any) -> None:
    server = servers({"hello": HELLO})
    server.behaviours["StartInstance"] = failing_start
    kong = Kong(server.path, version="2.8")
    first = kong.request()
    assert first.status == 200
    assert not first.hung
    assert server.methods() == ["StartInstance", "HandleEvent"]
    assert server.of("HandleEvent") == [{"EventName": "access"}]
    del server.behaviours["StartInstance"]
    second = kong.request()
    assert second.hung
    assert second.status == 0
    kong.restart()
    assert kong.request().status == 200


def test_the_server_is_not_there(servers: Any) -> None:
    for version, status in (("2.8", 200), ("3.9", 500)):
        server = servers({"hello": HELLO})
        kong = Kong(server.path, version=version)
        kong.restart()
        server.stop()
        assert kong.request().status == status
        server.start()
        assert kong.request().headers["x-hello"] == "hi"
        server.stop()
        result = kong.request()
        assert result.status == 200
        assert "x-hello" not in result.headers
        assert result.events[0].outcome == "error"


def test_a_connection_that_ends_in_the_middle(servers: Any) -> None:
    server = servers({"hello": HELLO})

    def close(argument: Any) -> None:
        raise Close

    server.behaviours["Step"] = close
    result = Kong(server.path).request()
    assert result.status == 200
    assert result.log[-1].message == "closed"


def test_no_answer_and_a_late_one(servers: Any) -> None:
    server = servers({"hello": HELLO, "other": {"access": []}}, priorities={"hello": 1})

    def silent(argument: Any) -> None:
        raise NoAnswer

    server.behaviours["Step"] = silent
    kong = Kong(server.path, plugins=["hello"], timeout=0.05)
    before = time.perf_counter()
    result = kong.request()
    assert 0.05 <= time.perf_counter() - before < 2
    assert result.status == 200
    assert result.events[0].outcome == "timeout"
    assert kong.workers[0].pool.idle == 1

    del server.behaviours["Step"]
    slow = threading.Event()

    def late(argument: Any) -> None:
        if not slow.is_set():
            slow.set()
            time.sleep(0.15)

    server.behaviours["HandleEvent"] = late
    assert kong.request().events[0].outcome == "timeout"
    kong.timeout = 5
    # The late answer comes first on the connection that was put back.
    result = kong.request()
    assert result.status == 500
    assert "unexpected response id" in result.log[-1].message
    assert kong.request().headers["x-hello"] == "hi"


def test_a_function_that_hangs_kong(servers: Any) -> None:
    server = servers({"p": {"access": [call("kong.tracing.start_span", "s")]}})
    assert Kong(server.path).request().hung


# --- using it -----------------------------------------------------------------------------------


def test_arguments_that_make_no_sense(servers: Any, tmp_path: Path) -> None:
    server = servers({"a": HELLO, "b": HELLO})
    with pytest.raises(ValueError, match="one of"):
        Kong()
    with pytest.raises(ValueError, match="not a Kong version"):
        Kong(server.path, version="new")
    with pytest.raises(ValueError, match="there are 2"):
        Kong(server.path, config={})
    with pytest.raises(KongpsError, match="no plugin c"):
        Kong(server.path, plugins=["c"])
    with pytest.raises(KongpsError, match="trying to connect"):
        Kong(tmp_path / "nothing.sock")
    with pytest.raises(KeyError):
        Kong(server.path).configure("c", {})


def test_consumers(servers: Any) -> None:
    alice = {"id": "x", "username": "alice"}
    server = servers(
        {
            "auth": {"access": [call("kong.client.authenticate", alice, {"id": "k"})]},
            "seen": {"access": [], "log": [call("kong.client.get_consumer")]},
        },
        priorities={"auth": 9},
    )
    kong = Kong(
        server.path,
        consumers=["alice"],
        plugins=["auth", PluginConfig("seen", scope="consumer", consumer="alice")],
    )
    result = kong.request()
    assert result.consumer == alice
    assert result.credential == {"id": "k"}
    assert result.service_request is not None
    assert result.service_request.headers["x-consumer-username"] == "alice"
    assert [(e.plugin, e.phase) for e in result.events] == [
        ("auth", "access"),
        ("seen", "access"),
        ("seen", "log"),
    ]
    assert server.answers[-1] == alice
    assert json.loads(server.of("StartInstance")[1]["Config"])["consumer_id"] == (
        kong.consumers[0].id
    )


def test_an_optional_record_that_is_not_configured_stays_unset() -> None:
    from dataclasses import dataclass
    from typing import Optional

    @dataclass
    class Redis:
        host: str
        port: int = 6379

    @dataclass
    class Limits:
        minute: int = 60

    @dataclass
    class Plugin:
        redis: Optional[Redis] = None
        limits: Limits = None  # type: ignore[assignment]

        def access(self, kong: Any) -> None:
            kong.response.exit(200, {"redis": repr(self.redis)})

    Plugin.__annotations__.update(redis=Optional[Redis], limits=Limits)
    result = Kong(plugin=Plugin).request("GET", "/")
    assert result.json() == {"redis": "None"}
    result = Kong(plugin=Plugin, config={"redis": {"host": "h"}}).request("GET", "/")
    assert "port=6379" in result.json()["redis"]
