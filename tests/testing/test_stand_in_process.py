"""The stand-in runs plugins in this process, through the real core, without a socket."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from kongps.errors import ConfigError, PluginError
from kongps.plugins.loader import from_object
from kongps.testing import Kong, Request, Response, Route


class Hello:
    """A plugin in the layout of a plain class."""

    Version = "1.2"
    Priority = 7

    message: str = "hello"
    limit: int = 3

    def __init__(self) -> None:
        self._seen = 0

    def access(self, kong: Any) -> None:
        self._seen = seen = self._seen + 1
        host = kong.request.get_header("host")
        if kong.request.get_query_arg("stop"):
            kong.response.exit(403, {"seen": seen}, {"x-stop": "1"})
        if kong.request.get_query_arg("raise"):
            raise RuntimeError("as asked")
        kong.response.set_header("x-hello", f"{self.message} to {host}, {seen}")
        kong.ctx.shared.set("from", "access")
        kong.service.request.set_raw_body(b"\x00\xff")
        kong.log.notice("seen ", seen)

    def log(self, kong: Any) -> None:
        kong.log.info(kong.ctx.shared.get("from") or "nothing")
        kong.log.info(str(kong.log.serialize()["response"]["status"]))


both = pytest.mark.parametrize("protocol", ["msgpack", "protobuf"])


@both
def test_a_class(protocol: str) -> None:
    kong = Kong(plugin=Hello, config={"message": "hi"}, protocol=protocol)
    result = kong.request("GET", "/x", headers={"Host": "example.test"})
    assert result.status == 200
    assert result.headers["x-hello"] == "hi to example.test, 1"
    assert result.logged("notice") == ["seen 1"]
    assert result.logged("info") == ["access", "200"]
    assert result.service_request is not None
    assert result.service_request.body == b"\x00\xff"
    assert result.called("ctx.shared.get")[0].answer == "access"
    assert kong.request().headers["x-hello"].endswith(", 2")
    assert "hello access: done" in result.describe()
    assert "kong.ctx.shared.set('from', 'access')" in result.describe()


@both
def test_exit_and_what_follows(protocol: str) -> None:
    kong = Kong(plugin=Hello, protocol=protocol)
    result = kong.request("GET", "/x?stop=1")
    assert (result.status, result.source) == (403, "exit")
    assert result.json() == {"seen": 1}
    assert result.headers["x-stop"] == "1"
    assert result.service_request is None
    assert result.logged("info") == ["nothing", "403"]
    assert [(event.phase, event.outcome) for event in result.events] == [
        ("access", "exit"),
        ("log", "done"),
    ]


@both
def test_a_handler_that_raises_ends_in_a_500(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = Kong(plugin=Hello, protocol=protocol).request("GET", "/x?raise=1")
    assert result.status == 500
    assert result.json() == {"message": "An unexpected error occurred"}
    assert result.service_request is None
    assert "as asked" in caplog.text
    assert "RuntimeError: as asked" in result.server_log[0]
    assert "RuntimeError: as asked" in result.describe()


def test_a_module() -> None:
    module = types.ModuleType("greet")
    exec(
        "class Greet:\n"
        "    name: str = 'you'\n"
        "    def access(self, kong):\n"
        "        kong.response.set_header('x-greet', self.name)\n"
        "New = Greet\n"
        "Version = '1'\n",
        module.__dict__,
    )
    kong = Kong(plugin=module, config={"name": "me"})
    assert kong.request().headers["x-greet"] == "me"
    assert repr(kong) == "<Kong 3.9 with greet>"


SOURCE = """\
class Plugin:
    def __init__(self, config):
        self.config = config

    def access(self, kong):
        host, err = kong.request.get_header("host")
        kong.response.set_header("x-old", f"{host} {self.config.get('message')}")

Schema = ({"message": {"type": "string"}},)
version = "0.1.0"
priority = 3
"""


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(SOURCE)
    kong = Kong(plugin=tmp_path / "old.py", config={"message": "m"})
    assert kong.request().headers["x-old"] == "localhost:8000 m"

    (tmp_path / "new.py").write_text(
        "class New:\n    def access(self, kong):\n"
        "        kong.response.set_header('x-new', kong.request.get_path())\n"
    )
    kong = Kong(plugins_directory=tmp_path)
    result = kong.request("GET", "/p")
    assert result.headers["x-new"] == "/p"
    assert result.headers["x-old"] == "localhost:8000 None"
    assert [event.plugin for event in result.events] == ["old", "new"]
    kong = Kong(plugins_directory=str(tmp_path), plugins={"old": {"message": "only"}})
    assert "x-new" not in kong.request().headers
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(PluginError, match="nothing_of_this_name"):
        Kong(plugins_directory=tmp_path)


def test_a_loaded_plugin() -> None:
    plugin = from_object(Hello, name="given-name")
    result = Kong(plugin=plugin).request()
    assert result.events[0].plugin == "given-name"


def test_config_is_checked_as_kong_does() -> None:
    with pytest.raises(ConfigError) as caught:
        Kong(plugin=Hello, config={"limit": "many"})
    assert caught.value.path == "config.limit"


def test_a_changed_config_makes_a_new_object() -> None:
    kong = Kong(plugin=Hello)
    kong.request()
    kong.configure("hello", {"message": "changed"})
    result = kong.request()
    assert result.headers["x-hello"] == "changed to localhost:8000, 1"
    assert len(kong.call("plugin.GetStatus", 0)["Plugins"]["hello"]["Instances"]) == 1


@pytest.mark.parametrize(
    ("version", "protocol"),
    [
        *((version, "msgpack") for version in ("2.0", "2.4", "2.8", "3.0", "3.9")),
        *((version, "protobuf") for version in ("2.4", "2.8", "3.0", "3.9")),
    ],
)
def test_every_version(version: str, protocol: str) -> None:
    result = Kong(plugin=Hello, version=version, protocol=protocol).request()
    assert result.headers["x-hello"] == "hello to localhost:8000, 1"
    assert result.status == 200


@pytest.mark.parametrize("order", ["lifo", "fifo"])
def test_many_requests_at_once(order: str) -> None:
    kong = Kong(plugin=Hello, connections=4, pool_order=order)
    results = kong.requests(Request("GET", f"/{i}") for i in range(20))
    seen = sorted(int(result.headers["x-hello"].rpartition(" ")[2]) for result in results)
    assert seen == list(range(1, 21))
    assert kong.call("plugin.GetStatus", 0)["Events"] == 0


class Phases:
    def certificate(self, kong: Any) -> None:
        kong.log.info("certificate")

    def rewrite(self, kong: Any) -> None:
        kong.log.info("rewrite")

    def access(self, kong: Any) -> None:
        kong.log.info("access")

    def response(self, kong: Any) -> None:
        kong.log.info("response ", kong.service.response.get_raw_body())
        kong.response.set_status(418)

    def log(self, kong: Any) -> None:
        kong.log.info("log")


@both
def test_all_phases(protocol: str) -> None:
    kong = Kong(plugin=Phases, protocol=protocol, upstream=Response(200, {}, "from service"))
    result = kong.request(scheme="https")
    assert result.logged() == [
        "certificate",
        "rewrite",
        "access",
        "response from service",
        "log",
    ]
    assert result.status == 418


class Stream:
    def preread(self, kong: Any) -> None:
        kong.service.set_target("10.1.1.1", 5432)
        kong.log.info(kong.client.get_ip(), " ", kong.nginx.get_subsystem())

    def log(self, kong: Any) -> None:
        kong.log.info("closed")


@both
def test_stream(protocol: str) -> None:
    result = Kong(plugin=Stream, protocol=protocol).stream(client_ip="10.9.9.9")
    assert result.status == 200
    assert result.logged() == ["10.9.9.9 stream", "closed"]


class Refused:
    def access(self, kong: Any) -> None:
        kong.request.get_raw_body()
        kong.log.info("not reached")


def test_a_call_that_kong_refuses_leaves_the_event_to_be_abandoned() -> None:
    with Kong(plugin=Refused) as kong:
        result = kong.request("POST", "/", body=b"x" * 8193)
        assert result.status == 500
        assert result.called("request.get_raw_body")[0].refused
        assert result.logged() == []
        assert kong.call("plugin.GetStatus", 0)["Events"] == 1
    assert kong.call("plugin.GetStatus", 0)["Events"] == 0


class Survey:
    """Asks for much, and keeps what it gets."""

    def access(self, kong: Any) -> None:
        request = kong.request
        kong.ctx.shared.set("key", {"list": [1, 2.5, {"deep": ""}], "text": "é", "yes": True})
        kong.client.authenticate({"id": "c-1", "username": "alice"}, {"id": "key-1"})
        seen = [
            request.get_header("x-several"),
            request.get_header("nope"),
            request.get_headers(),
            request.get_headers(2),
            request.get_query(),
            request.get_query_arg("flag"),
            request.get_query_arg("a"),
            request.get_raw_query(),
            request.get_raw_body(),
            request.get_http_version(),
            request.get_uri_captures()["named"],
            kong.ctx.shared.get("key"),
            kong.ctx.shared.get("nope"),
            kong.ip.is_trusted("1.1.1.1"),
            kong.client.get_port() > 0,
            kong.client.get_consumer(),
            kong.client.get_credential(),
            kong.nginx.get_subsystem(),
        ]
        SURVEYS.append(seen)
        kong.response.set_header("x-list", ["a", "b"])
        kong.service.request.set_raw_body(b"\x00\xff")
        kong.service.request.set_query({"q": ["1", "2"], "flag": True})


SURVEYS: list[list[Any]] = []


@pytest.mark.parametrize("path", ["/v1/x?a=1&a=2&b=%C3%A9&flag", "/v2/x"])
def test_the_same_over_both_protocols(path: str) -> None:
    results = [
        Kong(
            plugin=Survey,
            protocol=protocol,
            route=Route(paths=["~/(?<version>v\\d)/"]),
        ).request("POST", path, {"X-Several": ["one", "two"]}, "body\xff".encode())
        for protocol in ("msgpack", "protobuf")
    ]
    msgpack, protobuf = results
    assert [result.status for result in results] == [200, 200], protobuf.describe()
    assert SURVEYS[-2] == SURVEYS[-1]
    assert len(SURVEYS[-1]) == 18
    assert msgpack.headers.all("x-list") == protobuf.headers.all("x-list") == ["a", "b"]
    assert msgpack.service_request is not None
    assert protobuf.service_request is not None
    assert msgpack.service_request.path == protobuf.service_request.path
    assert msgpack.service_request.body == protobuf.service_request.body == b"\x00\xff"
    # What is written otherwise for ProtoBuf:1 is seen as it was written.
    changed = ("get_headers", "get_query", "get_query_arg", "get_uri_captures", "set_raw_body")
    calls = [
        [
            (call.function, call.args, call.answer, call.error)
            for call in result.calls
            if call.function.rpartition(".")[2] not in changed
        ]
        for result in results
    ]
    assert calls[0] == calls[1]
    asked = [call.answer for call in protobuf.called("request.get_headers")]
    assert asked == [call.answer for call in msgpack.called("request.get_headers")]
    # Calls without a result are not waited for.
    assert msgpack.events[0].round_trips == len(msgpack.calls) + 1
    assert (
        protobuf.events[0].round_trips
        == len([call for call in protobuf.calls if call.step != "Empty"]) + 1
    )


def test_a_large_body_over_protobuf() -> None:
    class Reader:
        def access(self, kong: Any) -> None:
            kong.response.set_header("x-length", str(len(kong.request.get_raw_body())))

    kong = Kong(plugin=Reader, protocol="protobuf")
    result = kong.request("POST", "/", body=b"x" * 20_000)
    assert result.headers["x-length"] == "20000"


@pytest.mark.parametrize("version", ["2.8", "3.9"])
def test_a_call_that_kong_refuses_ends_the_handler_over_protobuf(version: str) -> None:
    ended = []

    class Setter:
        def access(self, kong: Any) -> None:
            try:
                kong.response.set_status(418)
                kong.nginx.get_var("host")
                kong.response.set_header("x", "y")
                kong._call("kong.service.request.set_method", "NONSENSE")
                kong.request.get_path()
                kong.log.info("not reached")
            finally:
                ended.append(1)

    with Kong(plugin=Setter, protocol="protobuf", version=version) as kong:
        result = kong.request()
        assert result.status == 500
        assert [call.function for call in result.calls if call.refused] == [
            "kong.service.request.set_method"
        ]
        assert ended == [1]
        assert result.server_log == []
        assert kong.request().status == 500
