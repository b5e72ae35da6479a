"""One request on its way through the stand-in: everything that PDK functions read and change."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from http.client import responses
from typing import TYPE_CHECKING, Any

from kongps.testing.entities import Call, LogLine, PluginConfig, Request, Response, Result
from kongps.testing.values import (
    Headers,
    LuaError,
    json_text,
    lua_tostring,
    to_bytes,
)

if TYPE_CHECKING:
    from kongps.testing.gateway import Kong
    from kongps.testing.wire import Connection

_MESSAGES = {
    418: "I'm a teapot",
    500: "An unexpected error occurred",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
}

# Headers of which a response has one: the service's replaces one that a plugin set earlier.
_SINGLE = {"content-type", "content-length", "server", "date", "location", "etag", "last-modified"}


def _reason(status: int) -> str:
    if status in _MESSAGES:
        return _MESSAGES[status]
    return responses.get(status, "An unexpected error occurred").capitalize()


class Exchange:
    """The state of one request, from its arrival to the end of the log phase."""

    def __init__(self, kong: Kong, request: Request, subsystem: str = "http") -> None:
        self.kong = kong
        self.version = kong.version
        self.subsystem = subsystem
        self.request = request
        self.result = Result(request)
        self.started = time.time()
        self.clock = time.perf_counter()
        self.request_id = uuid.uuid4().hex
        self.phase = ""
        self.plugin: PluginConfig | None = None

        self.trusted = kong.is_trusted(request.client_ip)
        self.forwarded_ip, self.forwarded_port = self._real_ip()

        self.routed = False
        self.matched = ""
        self.captures: dict[str, Any] = {"unnamed": {}, "named": {}}
        self.shared: dict[Any, Any] = {}
        self.ctx: dict[Any, Any] = {
            "KONG_PROCESSING_START": int(self.started * 1000),
            "is_proxy_request": True,
        }
        self.serialized: dict[str, Any] = {}
        self.consumer: dict[str, Any] | None = None
        self.credential: dict[str, Any] | None = None

        # What the service will get. Kong fills in the target once the route is known; path, query,
        # headers and body may be changed from rewrite on.
        self.method = request.method
        self.scheme: str | None = None
        self.target: tuple[str, int] | None = None
        self.path: str | None = None
        self.query = request.query
        self.service_headers = Headers(request.headers)
        self.host_header: str | None = None
        self.body = request.body
        self.buffered = False

        # The client's response.
        self.status = 0
        self.headers = Headers()
        self.response_body = b""
        self.ended = False
        self.service_response: Response | None = None
        self.proxied_seconds = 0.0

        # What ends with the request: connections left hanging, and the body that nginx wrote to a
        # file.
        self.held: list[Connection] = []
        self._body_file: str | None = None

    # --- the client ---------------------------------------------------------------------------

    def _real_ip(self) -> tuple[str, int | None]:
        request = self.request
        if self.trusted:
            name = self.kong.real_ip_header
            value = request.headers.get(name, "")
            if name.lower() == "x-forwarded-for":
                value = value.rpartition(",")[2]
            if value.strip():
                return value.strip(), None
        return request.client_ip, request.client_port

    def forwarded(self, name: str) -> str | None:
        """``X-Forwarded-<name>``, if who sent it is trusted."""
        if not self.trusted:
            return None
        value = self.request.headers.get(f"x-forwarded-{name}", "").partition(",")[0].strip()
        return value or None

    # --- the log ------------------------------------------------------------------------------

    def log(self, level: str, message: str, source: str = "kong") -> None:
        """Add a line to Kong's log."""
        name = self.plugin.name if self.plugin else ""
        self.result.log.append(LogLine(level, message, name, self.phase, source))

    # --- the way to the service ---------------------------------------------------------------

    def find_route(self) -> bool:
        """Find the route, as Kong does after rewrite; False when the request matches none."""
        kong = self.kong
        if kong.route is None:
            return False
        found = kong.route.match(self.request)
        if found is None:
            return False
        self.matched, self.captures = found
        self.routed = True
        self.ctx["route"] = self.route_entity()
        self.ctx["service"] = self.service_entity()
        self.ctx["KONG_ACCESS_START"] = int(time.time() * 1000)
        service = kong.service
        if self.target is None:
            self.target = (service.host, service.port)
        if self.scheme is None:
            self.scheme = service.protocol
        if self.path is None:
            self.path = self._service_path()
        if self.host_header is None and not kong.route.preserve_host:
            host, port = self.target
            self.host_header = host if port in (80, 443) else f"{host}:{port}"
        self.ctx["balancer_data"] = self._balancer_data()
        return True

    def _service_path(self) -> str:
        kong = self.kong
        path = self.request.raw_path
        if kong.route and kong.route.strip_path and self.matched:
            path = path[len(self.matched) :]
        base = kong.service.path or ""
        if base:
            path = base.rstrip("/") + ("/" + path.lstrip("/") if path.strip("/") else "")
        return path if path.startswith("/") else f"/{path}"

    def _balancer_data(self) -> dict[str, Any]:
        host, port = self.target or ("", 0)
        service = self.kong.service
        return {
            "scheme": self.scheme,
            "type": "ipv4" if host.replace(".", "").isdigit() else "name",
            "host": host,
            "port": port,
            "try_count": 0,
            "tries": [],
            "retries": service.retries,
            "connect_timeout": service.connect_timeout,
            "send_timeout": service.write_timeout,
            "read_timeout": service.read_timeout,
        }

    def route_entity(self) -> dict[str, Any] | None:
        """The matched route as Kong's table."""
        kong = self.kong
        if not self.routed or kong.route is None:
            return None
        return self._with_workspace(kong.route.entity(kong.service))

    def service_entity(self) -> dict[str, Any] | None:
        """The service behind it as Kong's table."""
        if not self.routed:
            return None
        found = self._with_workspace(self.kong.service.entity())
        if self.version.oldest:
            found.pop("enabled", None)
        return found

    def _with_workspace(self, entity: dict[str, Any]) -> dict[str, Any]:
        if not self.version.oldest:
            entity["ws_id"] = self.kong.workspace_id
        return {key: value for key, value in entity.items() if value is not None}

    def send_to_service(self) -> None:
        """Send the request on, and take the service's response as the client's so far."""
        host, port = self.target or ("", 0)
        sent = Request(
            self.method,
            f"{self.path}?{self.query}" if self.query else (self.path or "/"),
            None,
            self.body,
            scheme=self.scheme or "http",
            host=host,
            port=port,
        )
        sent.headers = self._sent_headers()
        self.result.service_request = sent
        data = self.ctx.get("balancer_data")
        if isinstance(data, dict):
            data["try_count"] = 1
            data["ip"] = host
            data["tries"] = [
                {
                    "ip": host,
                    "port": port,
                    "balancer_start": int(time.time() * 1000),
                    "balancer_latency": 0,
                }
            ]
        self.ctx["KONG_PROXIED"] = True
        before = time.perf_counter()
        try:
            answer = self.kong.answer_for(sent)
        except Exception as error:
            self.log("err", f"the service failed: {error!r}")
            self.error(502, None, None, source="error")
            return
        finally:
            self.proxied_seconds = time.perf_counter() - before
        self.service_response = answer
        self.take_response(answer)

    def _sent_headers(self) -> Headers:
        request = self.request
        headers = Headers()
        if self.version.binary_bodies:
            headers.add("Via", self.version.via)
        headers.add("Host", self.host_header or request.headers.get("host", ""))
        headers.add("Connection", "keep-alive")
        chain = request.headers.get("x-forwarded-for")
        peer = request.client_ip
        headers.add("X-Forwarded-For", f"{chain}, {peer}" if chain else peer)
        headers.add("X-Forwarded-Proto", self.forwarded("proto") or request.scheme)
        headers.add("X-Forwarded-Host", self.forwarded("host") or request.host)
        headers.add("X-Forwarded-Port", self.forwarded("port") or str(request.port))
        headers.add("X-Forwarded-Path", self.forwarded("path") or request.uri)
        prefix = self.forwarded("prefix") or self.stripped_prefix()
        if prefix:
            headers.add("X-Forwarded-Prefix", prefix)
        headers.add("X-Real-IP", self.forwarded_ip)
        if self.version.knows("3.5"):
            headers.add("X-Kong-Request-Id", self.request_id)
        made = {name.lower() for name in headers} | {"x-forwarded-prefix", "content-length"}
        if self.body:
            headers.add("Content-Length", str(len(self.body)))
        for name, value in self.service_headers.lines():
            if name.lower() not in made:
                headers.add(name, value)
        return headers

    def stripped_prefix(self) -> str | None:
        """The prefix that the route takes off, if it takes one off."""
        route = self.kong.route
        if route and route.strip_path and self.matched not in ("", "/"):
            return self.matched
        return None

    # --- the client's response ----------------------------------------------------------------

    def take_response(self, answer: Response) -> None:
        """Make the service's response the client's; headers that plugins set stay."""
        self.status = answer.status
        self.response_body = answer.body
        replaced = {name.lower() for name in answer.headers} & _SINGLE
        kept = [line for line in self.headers.lines() if line[0].lower() not in replaced]
        self.headers = Headers([*kept, *answer.headers.lines()])
        self.headers.set("Content-Length", str(len(answer.body)))
        self.result.source = "service"

    def exit(self, status: int, body: Any, headers: Mapping[str, Any] | None) -> None:
        """End the request, as ``kong.response.exit`` does."""
        set_headers(self.headers, headers)
        given = {name.lower() for name in headers} if headers else set()
        if body is None:
            if status >= 300 and status != 304:
                self.response_body = _nginx_page(status)
                self.headers.set("Content-Type", "text/html")
            else:
                self.response_body = b""
        elif isinstance(body, (str, bytes)):
            self.response_body = to_bytes(body)
        else:
            self.response_body = to_bytes(json_text(body if body else {}))
            if "content-type" not in given:
                self.headers.set("Content-Type", "application/json; charset=utf-8")
        self._end(status, "exit")

    def error(
        self,
        status: int,
        message: str | None,
        headers: Mapping[str, Any] | None,
        source: str = "exit",
    ) -> None:
        """End the request with Kong's error body, as ``kong.response.error`` does."""
        set_headers(self.headers, headers)
        lines = [f'  "message":{json_text(message if message is not None else _reason(status))}']
        if self.version.knows("3.5"):
            lines.append(f'  "request_id":"{self.request_id}"')
        self.response_body = to_bytes("{\n" + ",\n".join(lines) + "\n}")
        self.headers.set("Content-Type", "application/json; charset=utf-8")
        self._end(status, source)

    def unexpected(self) -> None:
        """End the request as Kong does when Lua code raised."""
        if self.version.number < (3, 0):
            self.exit(500, {"message": _MESSAGES[500]}, None)
        else:
            self.error(500, None, None)

    def _end(self, status: int, source: str) -> None:
        self.status = status
        if self.ended:
            return
        self.ended = True
        self.headers.set("Content-Length", str(len(self.response_body)))
        self.result.source = source

    def finish(self) -> None:
        """Add Kong's own headers, and send the response to the client."""
        headers = self.headers
        spent = int((time.perf_counter() - self.clock - self.proxied_seconds) * 1000)
        if "date" not in headers:
            headers.add("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
        headers.set("Connection", "keep-alive")
        if self.service_response is not None and self.result.source == "service":
            headers.set("Via", self.version.via)
            headers.set("X-Kong-Upstream-Latency", str(int(self.proxied_seconds * 1000)))
            headers.set("X-Kong-Proxy-Latency", str(spent))
        else:
            headers.set("X-Kong-Response-Latency", str(spent))
            headers.set("Server", self.version.server)
        if self.version.knows("3.5"):
            headers.set("X-Kong-Request-Id", self.request_id)
        if headers.get("content-length") != str(len(self.response_body)):
            headers.set("Content-Length", str(len(self.response_body)))
        if self.request.method == "HEAD" or self.status in (204, 304):
            self.response_body = b""
        result = self.result
        result.status = self.status
        result.headers = headers
        result.body = self.response_body
        self.collect()

    def body_file(self) -> str:
        """The path of a file with the client's body, removed at the end of the request."""
        if self._body_file is None:
            handle, self._body_file = tempfile.mkstemp(prefix="kong-client-body-")
            with open(handle, "wb") as file:
                file.write(self.request.body)
        return self._body_file

    def release(self) -> None:
        """Close and remove what nginx kept for the request."""
        while self.held:
            self.held.pop().close()
        if self._body_file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._body_file)
            self._body_file = None

    def collect(self) -> None:
        """Copy to the result what was found on the way."""
        self.release()
        self.result.consumer = self.consumer
        self.result.credential = self.credential
        self.result.seconds = time.perf_counter() - self.clock

    def add_call(self, function: str, args: list[Any]) -> Call:
        """Note a PDK call; its answer is filled in later."""
        call = Call(self.plugin.name if self.plugin else "", self.phase, function, args)
        self.result.calls.append(call)
        return call


def set_headers(headers: Headers, wanted: Mapping[str, Any] | None) -> None:
    """Set each header of a table that came from a plugin."""
    if not wanted:
        return
    if not isinstance(wanted, Mapping):
        raise LuaError("headers must be a nil or table")
    for name, value in wanted.items():
        if isinstance(value, Mapping):
            value = [item for item in value.values() if isinstance(item, (str, bytes))]
        headers.set(lua_tostring(name), value)


def _nginx_page(status: int) -> bytes:
    title = f"{status} {responses.get(status, '')}".strip()
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    ).encode()
