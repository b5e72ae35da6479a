"""The stand-in answers each PDK call as the recorded Kong 3.9 did: same value, same refusal."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from paths import DATA

from kongps.core.wire.tables import RPCS
from kongps.testing import Kong, PluginConfig, Request, Response, Route, Service
from kongps.testing.entities import Consumer
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Exit, Hang, answer
from kongps.testing.protobuf import FIELDS, decode, encode
from kongps.testing.protobuf_rpc import FrameReader
from kongps.testing.rpc import Asked, Pending
from kongps.testing.values import LuaError
from kongps.testing.wire import Connection, RpcError

RECORDED = DATA / "pdk" / "kong-3.9-results-msgpack.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in RECORDED.read_text().splitlines()]
PROTOBUF: list[dict[str, Any]] = [
    json.loads(line)
    for line in RECORDED.with_name("kong-3.9-results-protobuf.jsonl").read_text().splitlines()
]

ALICE = "11111111-1111-4111-8111-111111111111"

# What the recorded service answered with: a description of what it got, as JSON.
SERVICE_BODY = {"method": "POST", "path": "/cap/v1/42?a=1&b=2&a=3&flag", "port": 39080}


def service_answer(request: Request) -> Response:
    return Response(
        200,
        {
            "Server": "BaseHTTP/0.6 Python/3.11.7",
            "Date": "Sun, 22 Nov 2026 07:32:57 GMT",
            "Content-Type": "application/json",
            "X-Upstream": "one",
            "X-Multi": ["a", "b"],
        },
        json.dumps(SERVICE_BODY),
    )


def make_kong(version: str = "3.9", protocol: str = "msgpack") -> Kong:
    return Kong(
        socket="/nowhere/at/all.sock",
        plugins=[],
        version=version,
        protocol=protocol,
        trusted_ips=["127.0.0.1"],
        service=Service(
            name="echo",
            host="localhost",
            port=39080,
            tags=["svc-tag"],
            id="adbd70b3-4224-5183-a52a-179d7b34ab5b",
        ),
        route=Route(
            name="rcap",
            paths=["~/cap/(?<ver>v\\d+)/(\\d+)"],
            methods=["GET", "POST"],
            id="fa48218f-a9cb-50ba-af0f-9534a6586c8b",
        ),
        consumers=[Consumer("alice", custom_id="cust-1", id=ALICE, tags=["c-tag"])],
        upstream=service_answer,
        upstreams=["up2.test"],
    )


def make_exchange(kong: Kong, phase: str, port: int = 39100) -> Exchange:
    """The recorded request, brought to a phase."""
    request = Request(
        "POST",
        "/cap/v1/42?a=1&b=2&a=3&flag",
        {
            "Host": "example.test:39999",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "X-Forwarded-For": "9.9.9.9",
            "X-Real-IP": "9.9.9.9",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "fwd.test",
            "X-Forwarded-Port": "444",
            "X-Forwarded-Path": "/fp",
            "X-Forwarded-Prefix": "/pfx",
            "X-Multi-Req": ["one", "two"],
            "Content-Length": "18",
        },
        '{"hello":"wörld"}',
        client_ip="127.0.0.1",
        client_port=34666,
        port=port,
    )
    exchange = Exchange(kong, request)
    exchange.phase = phase
    exchange.plugin = PluginConfig("py-survey")
    exchange.buffered = True
    if phase not in ("certificate", "rewrite"):
        assert exchange.find_route()
    if phase in ("response", "log"):
        exchange.send_to_service()
    if phase == "log":
        exchange.finish()
    return exchange


def revived(value: Any) -> Any:
    """A recorded JSON value with its bytes put back."""
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return value["__bytes__"].encode("latin-1")
        return {key: revived(item) for key, item in value.items()}
    if isinstance(value, list):
        return [revived(item) for item in value]
    return value


def shape(value: Any) -> Any:
    """A value without what depends on the machine: keys and types."""
    if isinstance(value, dict):
        return {str(key): shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, str):
        return re.sub(r"\d+", "0", value) if value.endswith("iB") else "text"
    return type(value).__name__


VARIES = {
    "kong.client.get_port",
    "kong.log.serialize",
    "kong.nginx.req_start_time",
    "kong.nginx.get_statistics",
    "kong.node.get_id",
    "kong.node.get_hostname",
    "kong.node.get_memory_stats",
    "kong.plugin.get_id",
    "kong.request.get_start_time",
    "kong.service.response.get_raw_body",
    "kong.service.response.get_body",
}
TIMES = {"created_at", "updated_at", "ws_id"}
VARYING_HEADERS = {
    "date",
    "x-kong-request-id",
    "x-kong-proxy-latency",
    "x-kong-upstream-latency",
    "content-length",
    "connection",
}


def normalized(function: str, args: list[Any], value: Any) -> Any:
    if function == "kong.log.serialize":
        value = json.loads(value)
        for entry in value["tries"]:
            entry.pop("balancer_start_ns", None)
            entry.pop("balancer_latency_ns", None)
        return shape(value)
    if function in ("kong.service.response.get_raw_body", "kong.service.response.get_body"):
        # The recorded service also told of headers and body, which are of that machine.
        found = json.loads(value) if isinstance(value, bytes) else value
        return type(value), {key: found[key] for key in SERVICE_BODY}
    if function == "kong.nginx.get_ctx" and args == ["balancer_data"] and value is not None:
        kept = {key: item for key, item in value.items() if key not in ("tries", "type")}
        kept.pop("hostname", None)
        kept["ip"] = kept.get("ip") and "ip"
        return kept, len(value["tries"])
    if function in VARIES or args == ["KONG_PROCESSING_START"]:
        if function == "kong.nginx.req_start_time":
            return 1e9 < value < 1e11
        return shape(value)
    if function == "kong.response.get_headers":
        return {key: "varies" if key in VARYING_HEADERS else item for key, item in value.items()}
    if isinstance(value, dict):
        return {
            str(key): normalized("", [], item) if isinstance(item, dict) else item
            for key, item in value.items()
            if key not in TIMES
        }
    return value


def refusal(row: dict[str, Any]) -> str:
    """Kong's own reason in the log line of a refused call."""
    line = row["log"][0]
    found = re.search(r"\.lua:\d+: (.*?)(, client: .*|, context: .*)?$", line)
    assert found, line
    return found.group(1)


@pytest.mark.parametrize("phase", ["rewrite", "access", "response", "log"])
def test_every_recorded_call(phase: str) -> None:
    wrong: list[str] = []
    rows = [row for row in ROWS if row["phase"] == phase]
    assert len(rows) > 200
    for row in rows:
        function, args = row["call"][0], revived(row["call"][1])
        exchange = make_exchange(make_kong(), phase)
        result = row["result"]
        refused = result is None or (result["terminal"] and row["log"])
        name = f"{phase} {function}({args!r})"
        try:
            given = answer(exchange, function, list(args))
        except LuaError as error:
            if not refused:
                wrong.append(f"{name}: refused ({error}), recorded {result['data']!r}")
            elif str(error) != refusal(row):
                wrong.append(f"{name}: refused with {error}, recorded {refusal(row)}")
            continue
        except Hang:
            if not (result is None and not row["log"]):
                wrong.append(f"{name}: hangs, recorded {row}")
            continue
        except Exit:
            if refused or not result["terminal"]:
                wrong.append(f"{name}: ended the request, recorded {row}")
            elif exchange.status != row["http"]:
                wrong.append(f"{name}: {exchange.status}, recorded {row['http']}")
            continue
        if refused:
            wrong.append(f"{name}: answered {given.data!r}, recorded {row['log']}")
            continue
        recorded = revived(result["data"])
        if (recorded is not None) != given.has_data:
            wrong.append(f"{name}: answered {given!r}, recorded {recorded!r}")
        elif recorded is not None:
            ours = normalized(function, args, given.data)
            theirs = normalized(function, args, recorded)
            if ours != theirs or type(ours) is not type(theirs):
                wrong.append(f"{name}: answered {ours!r}, recorded {theirs!r}")
        unknown = any("could not find pdk method" in line for line in row["log"])
        logged = [line.message for line in exchange.result.log if line.source == "kong"]
        if unknown != bool(logged):
            wrong.append(f"{name}: logged {logged}, recorded {row['log']}")
    assert not wrong, "\n" + "\n".join(wrong)


# --- over ProtoBuf:1 -----------------------------------------------------------------------------


def from_json(name: str, value: Any) -> Any:
    """A message as the recordings have it, in JSON, as the stand-in's codec takes it."""
    if name not in FIELDS:
        return value
    found = {}
    for field in FIELDS[name]:
        if field.name in value:
            item = value[field.name]
            if field.kind == "bytes":
                item = base64.b64decode(item)
            elif field.kind == "int64":
                item = int(item)
            found[field.name] = from_json(field.kind, item)
    return found


def asked_for(row: dict[str, Any]) -> Asked:
    name, argument, *raw = row["call"]
    nothing = Pending(SocketlessConnection(FrameReader()), 0)
    if name == "!rawmethod":
        return Asked(argument, [], nothing, frame=base64.b64decode(raw[0]))
    function = ON_THE_WIRE[name]
    message = RPCS[function][0]
    return Asked(function, [], nothing, frame=encode(message, from_json(message, argument)))


ON_THE_WIRE = {
    row["call"][0]: row["result"]["method"] for row in PROTOBUF if row["result"] is not None
} | {"Response_Exit": "kong.response.exit", "Log_Serialize": "kong.log.serialize"}


class SocketlessConnection(Connection):
    def close(self) -> None:
        pass


def without_what_varies(function: str, asked: Asked, value: Any) -> Any:
    argument = asked.args
    if function in VARIES or argument == ["KONG_PROCESSING_START"] or argument == ["balancer_data"]:
        if isinstance(value, dict) and set(value) == {"v"}:
            value = value["v"]
        return normalized(function, argument, value)
    if function == "kong.response.get_headers" and argument == [2]:
        return len(value), value["content-type"]  # the others come in any order
    if function == "kong.response.get_headers":
        return {key: "varies" if key in VARYING_HEADERS else item for key, item in value.items()}
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key not in TIMES}
    return value


@pytest.mark.parametrize("phase", ["rewrite", "access", "response", "log"])
def test_every_recorded_call_over_protobuf(phase: str) -> None:
    wrong: list[str] = []
    rows = [row for row in PROTOBUF if row["phase"] == phase]
    assert len(rows) > 160
    for row in rows:
        kong = make_kong(protocol="protobuf")
        exchange = make_exchange(kong, phase, 39200)
        asked = asked_for(row)
        result, log = row["result"], row["log"]
        name = f"{phase} {row['call']}"
        try:
            given = kong.workers[0].rpc.run(exchange, asked)
        except Exit:
            if result is not None or log or exchange.status != row["http"]:
                wrong.append(f"{name}: ended with {exchange.status}, recorded {row}")
            elif row.get("body") is not None and exchange.response_body.decode() != row["body"]:
                wrong.append(f"{name}: {exchange.response_body!r}, recorded {row['body']!r}")
            continue
        except RpcError as error:
            if result is not None or not log or f"error: {error}" not in log[0]:
                wrong.append(f"{name}: no such method ({error}), recorded {row}")
            continue
        except LuaError as error:
            if result is not None or not log or str(error) != refusal(row):
                wrong.append(f"{name}: refused with {error}, recorded {row}")
            continue
        if result is None:
            wrong.append(f"{name}: answered {given!r}, recorded {log}")
            continue
        function, message, raw = asked.function, given.method, bytes.fromhex(result["raw"])
        assert function == result["method"]
        ours = without_what_varies(function, asked, decode(message, given.frame))
        theirs = without_what_varies(function, asked, decode(message, raw))
        if ours != theirs or bool(given.frame) != bool(raw):
            wrong.append(f"{name}: answered {ours!r}, recorded {theirs!r}")
        elif ours == decode(message, raw) and len(given.frame) != len(raw):
            wrong.append(f"{name}: answered {given.frame.hex()}, recorded {raw.hex()}")
        texts = [table_address(line.message) for line in exchange.result.log]
        if function.startswith("kong.log.") and log and texts[0] not in table_address(log[0]):
            wrong.append(f"{name}: logged {texts}, recorded {log}")
    assert not wrong, "\n" + "\n".join(wrong)


def table_address(line: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", line)


@pytest.mark.parametrize("phase", ["access", "response"])
def test_bodies_of_exit_and_error(phase: str) -> None:
    for row in ROWS:
        if row["phase"] != phase or row["call"][0] not in (
            "kong.response.exit",
            "kong.response.error",
        ):
            continue
        if row["log"]:
            continue
        exchange = make_exchange(make_kong(), phase)
        with pytest.raises(Exit):
            answer(exchange, row["call"][0], list(row["call"][1]))
        exchange.finish()
        body = exchange.result.text
        recorded = row.get("body") or ""
        if recorded.startswith("{"):
            ours, theirs = json.loads(body), json.loads(recorded)
            for found in (ours, theirs):
                found.pop("request_id", None)
            assert ours == theirs, row["call"]
            assert exchange.headers["content-type"] == "application/json; charset=utf-8"
        else:
            assert body == recorded, row["call"]


PLAIN = "Step"
STEPS = {
    "kong.client.authenticate": "StepCredential",
    "kong.client.get_credential": "StepCredential",
    "kong.client.get_consumer": "StepConsumer",
    "kong.client.load_consumer": "StepConsumer",
    "kong.node.get_memory_stats": "StepMemoryStats",
    "kong.request.get_headers": "StepMultiMap",
    "kong.request.get_query": "StepMultiMap",
    "kong.response.get_headers": "StepMultiMap",
    "kong.router.get_route": "StepRoute",
    "kong.router.get_service": "StepService",
    "kong.service.response.get_headers": "StepMultiMap",
}


def test_step_methods() -> None:
    for row in ROWS:
        if row["phase"] not in ("access", "response") or row["result"] is None:
            continue
        exchange = make_exchange(make_kong(), row["phase"])
        function = row["call"][0]
        try:
            given = answer(exchange, function, revived(row["call"][1]))
        except (LuaError, Exit, Hang):
            continue
        assert given.method == f"plugin.{STEPS.get(function, PLAIN)}"


# For each version, function and phase of the recorded sessions, the methods with which Kong sent
# the answer; an empty name where it never did.
RECORDED_STEPS = json.loads((RECORDED.parents[1] / "stand-in" / "steps.json").read_text())


@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
def test_step_methods_of_the_recorded_sessions(version: str) -> None:
    arguments: dict[str, list[Any]] = {}
    for row in ROWS:
        if row["result"] is not None and not row["result"]["terminal"]:
            arguments.setdefault(row["call"][0], revived(row["call"][1]))
    arguments["kong.service.set_upstream"] = ["nosuch"]
    for function, phases in RECORDED_STEPS[version].items():
        for phase, methods in phases.items():
            exchange = make_exchange(make_kong(version), phase)
            if phase == "certificate":
                exchange.request.scheme = "https"
            try:
                given = answer(exchange, function, list(arguments.get(function, [])))
                method = given.method.partition(".")[2]
            except (LuaError, Exit, Hang):
                method = ""
            assert method in methods, (function, phase)


# Functions whose answer differs between the recorded versions, in access, to the same request:
# (method, has data) for 2.0, 2.8 and 3.9.
DIFFERENCES: list[tuple[str, list[Any], tuple[str, Any], tuple[str, Any], tuple[str, Any]]] = [
    ("kong.ctx.shared.set", ["k", "v"], ("Step", None), ("Step", None), ("Step", None)),
    (
        "kong.nginx.get_tls1_version_str",
        [],
        ("StepError", "bad request"),
        ("StepError", "bad request"),
        ("Step", None),
    ),
    (
        "kong.service.set_upstream",
        ["nosuch"],
        ("StepError", "could not find an Upstream named 'nosuch'"),
        ("StepError", "could not find an Upstream named 'nosuch'"),
        ("Step", None),
    ),
    ("kong.node.get_hostname", [], ("Step", None), ("Step", "kong.test"), ("Step", "kong.test")),
    ("kong.request.get_raw_path", [], ("Step", None), ("Step", None), ("Step", "/p/a%20th")),
    ("kong.request.get_start_time", [], ("Step", None), ("Step", None), ("Step", ...)),
    (
        "kong.request.get_uri_captures",
        [],
        ("Step", None),
        ("Step", None),
        ("Step", {"unnamed": [], "named": []}),
    ),
    (
        "kong.request.get_forwarded_path",
        [],
        ("Step", None),
        ("Step", "/p/a%20th"),
        ("Step", "/p/a%20th"),
    ),
    ("kong.request.get_forwarded_port", [], ("Step", 18100), ("Step", "18100"), ("Step", 18100)),
    ("kong.request.get_forwarded_prefix", [], ("Step", None), ("Step", None), ("Step", None)),
    (
        "kong.request.get_raw_body",
        [],
        ("Step", "f=1&g=two&g=three"),
        ("Step", "f=1&g=two&g=three"),
        ("Step", b"f=1&g=two&g=three"),
    ),
    (
        "kong.request.get_body",
        [],
        ("Step", {"f": "1", "g": ["two", "three"]}),
        ("Step", {"f": "1", "g": ["two", "three"]}),
        ("Step", {"f": "1", "g": ["two", "three"]}),
    ),
    (
        "kong.request.get_query",
        [],
        ("StepMultiMap", {"a": ["1", "2"], "flag": [], "z": ["é"]}),
        ("StepMultiMap", {"a": ["1", "2"], "flag": [], "z": ["é"]}),
        ("StepMultiMap", {"a": ["1", "2"], "flag": [], "z": ["é"]}),
    ),
    (
        "kong.request.get_path",
        [],
        ("Step", "/p/a%20th"),
        ("Step", "/p/a%20th"),
        ("Step", "/p/a%20th"),
    ),
    ("kong.no.such.method", [1], ("Step", None), ("Step", None), ("Step", None)),
    ("kong.ip.is_trusted", ["127.0.0.1"], ("Step", False), ("Step", False), ("Step", False)),
    (
        "kong.service.request.set_body",
        [{"f": "v"}, "application/json"],
        ("Step", True),
        ("Step", True),
        ("Step", True),
    ),
]


@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
def test_what_differs_between_versions(version: str) -> None:
    index = ["2.0", "2.8", "3.9"].index(version)
    for function, args, *expected in DIFFERENCES:
        kong = Kong(socket="/nowhere.sock", plugins=[], version=version)
        request = Request(
            "POST",
            "/p/a%20th?a=1&a=2&flag&z=%C3%A9",
            {"Host": "127.0.0.1:18100", "Content-Type": "application/x-www-form-urlencoded"},
            "f=1&g=two&g=three",
            port=18100,
            client_ip="127.0.0.1",
        )
        exchange = Exchange(kong, request)
        exchange.phase = "access"
        assert exchange.find_route()
        given = answer(exchange, function, list(args))
        method, data = expected[index]
        assert given.method == f"plugin.{method}", function
        assert given.has_data == (data is not None), function
        if data is not ...:
            assert given.data == data, function
            assert type(given.data) is type(data) or isinstance(data, dict), function


def test_shared_context_is_unknown_to_2_0() -> None:
    for version, expected in (("2.0", None), ("2.8", "v"), ("3.9", "v")):
        exchange = make_exchange(make_kong(version), "access")
        answer(exchange, "kong.ctx.shared.set", ["k", "v"])
        assert answer(exchange, "kong.ctx.shared.get", ["k"]).data == expected


@pytest.mark.parametrize(
    ("version", "works", "refused"),
    [
        (
            "2.0",
            ["kong.log.notice", "kong.log.serialize"],
            ["kong.request.get_header", "kong.response.get_status"],
        ),
        (
            "2.8",
            [
                "kong.ctx.shared.get",
                "kong.log.notice",
                "kong.log.serialize",
                "kong.nginx.get_ctx",
                "kong.node.get_id",
                "kong.request.get_header",
                "kong.request.get_headers",
                "kong.response.get_header",
                "kong.response.get_headers",
                "kong.response.get_source",
                "kong.response.get_status",
            ],
            [
                "kong.client.get_ip",
                "kong.nginx.get_var",
                "kong.request.get_method",
                "kong.response.exit",
                "kong.router.get_route",
                "kong.service.response.get_status",
            ],
        ),
    ],
)
def test_what_works_in_log_of_2_x(version: str, works: list[str], refused: list[str]) -> None:
    for function in works:
        exchange = make_exchange(make_kong(version), "log")
        answer(exchange, function, ["x"] if function.endswith(("header", "get", "ctx")) else [])
    for function in refused:
        exchange = make_exchange(make_kong(version), "log")
        with pytest.raises(LuaError):
            answer(exchange, function, ["x"])


def test_large_bodies_and_null() -> None:
    for version in ("2.8", "3.9"):
        kong = make_kong(version)
        exchange = make_exchange(kong, "access")
        exchange.request.body = exchange.body = b"x" * 8193
        if version == "2.8":
            given = answer(exchange, "kong.request.get_raw_body", [])
            assert given.method == "plugin.StepError"
        else:
            with pytest.raises(LuaError) as caught:
                answer(exchange, "kong.request.get_raw_body", [])
            assert caught.value.drops_connection
        exchange = make_exchange(kong, "access")
        exchange.body = b'{"a":null}'
        with pytest.raises(LuaError):
            answer(exchange, "kong.request.get_body", [])
