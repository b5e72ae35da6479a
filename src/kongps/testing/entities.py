"""The gateway's configuration (service, route, consumers, plugins), requests and results."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kongps.testing.values import Headers, HeaderValue, text, to_bytes

#: When every entity was made, in seconds since 1970; fixed, so that tests can compare.
CREATED_AT = 1700000000

_TIMES = {"created_at": CREATED_AT, "updated_at": CREATED_AT}

_IDS = uuid.UUID("6f1f2b53-6d8a-4f5e-9a4e-5d2f7a2c1b10")


def entity_id(kind: str, name: str) -> str:
    """The id of an entity that was given none: a UUID made from its kind and name."""
    return str(uuid.uuid5(_IDS, f"{kind}:{name}"))


@dataclass
class Service:
    """A Kong service, where requests are sent to.

    :ivar path: put in front of every path that is sent, such as ``/api``; None for nothing.
    :ivar connect_timeout, read_timeout, write_timeout: in milliseconds.
    """

    name: str = "service"
    host: str = "service.test"
    port: int = 80
    protocol: str = "http"
    path: str | None = None
    id: str = ""
    retries: int = 5
    connect_timeout: int = 60000
    read_timeout: int = 60000
    write_timeout: int = 60000
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        self.id = self.id or entity_id("service", self.name)

    def entity(self) -> dict[str, Any]:
        """The service as ``kong.router.get_service`` gives it."""
        return {"id": self.id, **asdict(self), "enabled": True, **_TIMES}


@dataclass
class Route:
    """A Kong route: which requests go to the service.

    :ivar paths: prefixes, or regular expressions with ``~`` in front. A request that matches none
        gets Kong's 404.
    :ivar methods: the methods it is for; None for any.
    :ivar strip_path: the matched prefix is taken off before the service gets the request.
    :ivar preserve_host: the service gets the client's Host header.
    """

    name: str = "route"
    paths: list[str] = field(default_factory=lambda: ["/"])
    methods: list[str] | None = None
    hosts: list[str] | None = None
    protocols: list[str] = field(default_factory=lambda: ["http", "https"])
    strip_path: bool = False
    preserve_host: bool = False
    id: str = ""
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        self.id = self.id or entity_id("route", self.name)

    def entity(self, service: Service) -> dict[str, Any]:
        """The route as ``kong.router.get_route`` gives it."""
        return {
            "id": self.id,
            **asdict(self),
            "regex_priority": 0,
            "https_redirect_status_code": 426,
            "path_handling": "v0",
            "request_buffering": True,
            "response_buffering": True,
            "service": {"id": service.id},
            **_TIMES,
        }

    def match(self, request: Request) -> tuple[str, dict[str, Any]] | None:
        """The part of the path that matched, and the captures; None if the route is not for it."""
        if self.methods and request.method not in self.methods:
            return None
        if self.hosts and request.headers.get("host", "").partition(":")[0] not in self.hosts:
            return None
        path = request.raw_path
        for pattern in sorted(self.paths, key=len, reverse=True):
            if pattern.startswith("~"):
                # Python names a group with a P that PCRE does not need.
                found = re.match(re.sub(r"\(\?<(?![=!])", "(?P<", pattern[1:]), path)
                if found is None:
                    continue
                unnamed = {i: found.group(i) for i in range(len(found.groups()) + 1)}
                named = {k: v for k, v in found.groupdict().items() if v is not None}
                return found.group(0), {"unnamed": unnamed, "named": named}
            if path.startswith(pattern):
                return pattern, {"unnamed": {}, "named": {}}
        return None


@dataclass
class Consumer:
    """A Kong consumer, found by its id or username."""

    username: str
    custom_id: str | None = None
    id: str = ""
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        self.id = self.id or entity_id("consumer", self.username)

    def entity(self) -> dict[str, Any]:
        """The consumer as ``kong.client.load_consumer`` gives it."""
        return {"id": self.id, **asdict(self), **_TIMES}


@dataclass
class PluginConfig:
    """A plugin as it is configured on the gateway.

    :ivar name: the plugin's name.
    :ivar config: its configuration; what it leaves out gets the default of the plugin's schema.
    :ivar scope: ``"global"``, ``"service"``, ``"route"`` or ``"consumer"``. Kong runs certificate
        and rewrite for global plugins only; one for a consumer runs once that consumer is known.
    :ivar priority: overrides the plugin's own.
    :ivar consumer: for that scope, the consumer's username.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "global"
    priority: int | None = None
    consumer: str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if self.scope not in ("global", "service", "route", "consumer"):
            raise ValueError(f"scope {self.scope!r}: not global, service, route or consumer")
        self.id = self.id or entity_id("plugin", f"{self.name}:{self.scope}:{self.consumer}")


class _Message:
    """What has a body."""

    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return text(self.body)

    def json(self) -> Any:
        """The body decoded as JSON; ValueError if it is none."""
        return json.loads(self.body)


class Request(_Message):
    """An HTTP request: what the client sent to Kong, or what the service got from it.

    :ivar path: with the query, as on the request line.
    :ivar raw_path, query: its two parts; the query without its question mark.
    :ivar scheme, host, port: where it was sent to (for what the service got: the target).
    :ivar client_ip, client_port: who sent it (for what the service got: empty and 0).
    """

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Mapping[str, HeaderValue] | None = None,
        body: str | bytes = b"",
        *,
        scheme: str = "http",
        host: str = "",
        port: int = 0,
        client_ip: str = "",
        client_port: int = 0,
        http_version: float = 1.1,
    ) -> None:
        self.method = method
        self.raw_path, _, self.query = path.partition("?")
        self._has_query = "?" in path
        self.headers = Headers(headers)
        self.body = to_bytes(body)
        self.scheme = scheme
        self.host = host
        self.port = port
        self.client_ip = client_ip
        self.client_port = client_port
        self.http_version = http_version

    @property
    def path(self) -> str:
        """The path with its query, if there is one."""
        return f"{self.raw_path}?{self.query}" if self.query else self.raw_path

    @property
    def uri(self) -> str:
        """The path as it was on the request line: a lone question mark is kept."""
        return f"{self.raw_path}?{self.query}" if self._has_query else self.raw_path

    def __repr__(self) -> str:
        at = f" at {self.host}:{self.port}" if self.host else ""
        body = f", body of {len(self.body)} bytes" if self.body else ""
        return f"<Request {self.method} {self.path}{at}{body}>"


class Response:
    """An HTTP response, as the service answers.

    :param body: bytes, text (sent as UTF-8), or a dict or list (sent as JSON).
    """

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, HeaderValue] | None = None,
        body: str | bytes | Mapping[str, Any] | Sequence[Any] = b"",
    ) -> None:
        self.status = status
        self.headers = Headers(headers)
        if isinstance(body, (str, bytes)):
            self.body = to_bytes(body)
        else:
            self.body = json.dumps(body).encode()
            if "content-type" not in self.headers:
                self.headers.add("Content-Type", "application/json")

    def __repr__(self) -> str:
        return f"<Response {self.status}, body of {len(self.body)} bytes>"


@dataclass
class LogLine:
    """A line of Kong's log.

    :ivar level: ``"alert"``, ``"crit"``, ``"err"``, ``"warn"``, ``"notice"``, ``"info"``,
        ``"debug"`` or ``"emerg"``.
    :ivar plugin: the plugin that logged it, or that it is about; empty if none.
    :ivar source: ``"plugin"`` for what a plugin logged, ``"kong"`` for Kong's own lines.
    """

    level: str
    message: str
    plugin: str = ""
    phase: str = ""
    source: str = "plugin"

    def __str__(self) -> str:
        who = f" [{self.plugin}]" if self.plugin else ""
        return f"[{self.level}]{who} {self.message}"


@dataclass
class Call:
    """A PDK function that a plugin called.

    :ivar function: its full name, such as ``kong.request.get_header``.
    :ivar answer: what Kong returned, as it was sent (None for nil).
    :ivar error: the text of a StepError, or why Kong refused the call; empty if neither.
    :ivar step: the method that brought the answer, such as ``Step`` or ``StepMultiMap``, or over
        ProtoBuf:1 the message, such as ``String``; empty when none was sent (exit, error, refused
        calls).
    :ivar seconds: from the call's arrival to the plugin's next message; for calls without an
        answer, the time Kong took.
    """

    plugin: str
    phase: str
    function: str
    args: list[Any]
    answer: Any = None
    error: str = ""
    step: str = ""
    seconds: float = 0.0

    @property
    def refused(self) -> bool:
        """Kong's own code raised: the handler was never stepped again."""
        return bool(self.error) and not self.step

    def __str__(self) -> str:
        args = ", ".join(_short(arg) for arg in self.args)
        if self.refused:
            end = f" refused: {self.error}"
        elif self.error:
            end = f" -> error: {self.error}"
        elif self.answer is None:
            end = ""
        else:
            end = f" -> {_short(self.answer)}"
        return f"{self.function}({args}){end}"


def _short(value: Any, limit: int = 100) -> str:
    if isinstance(value, (str, bytes)) and len(value) > limit:
        return f"{value[:limit]!r}… ({len(value)} long)"
    shown = repr(value)
    return shown if len(shown) <= 2 * limit else f"{shown[: 2 * limit]}…"


@dataclass
class Event:
    """One phase of one plugin.

    :ivar outcome: ``"done"``; ``"exit"`` (the plugin ended the request); ``"refused"`` (Kong
        refused a call); ``"error"`` (the plugin server answered with an error, or was not there);
        ``"timeout"`` (no answer in time).
    :ivar seconds: how long the handler took, its PDK calls included.
    :ivar round_trips: how often Kong sent something and waited for the plugin server.
    :ivar start_seconds: how long its instance took to start before that; 0 if it was there.
    """

    plugin: str
    phase: str
    outcome: str = "done"
    seconds: float = 0.0
    start_seconds: float = 0.0
    round_trips: int = 0


class Result(_Message):
    """What became of one request.

    :ivar status: the client's status; 0 when it never got an answer (see ``hung``).
    :ivar headers: the client's response headers.
    :ivar body: the client's response body.
    :ivar request: what the client sent.
    :ivar service_request: what the service got, or None if the request ended before.
    :ivar source: who made the response: ``"service"``, ``"exit"`` (a plugin, or Kong because of
        one) or ``"error"`` (Kong).
    :ivar calls: every PDK call, in order.
    :ivar events: every phase of every plugin, in order.
    :ivar log: every log line, in order.
    :ivar consumer, credential: who was authenticated, or None.
    :ivar seconds: how long all of it took, the log phase included.
    :ivar hung: the client would have waited without end.
    :ivar server_log: what the plugin server logged meanwhile, at level warning and above, with
        tracebacks of handlers that raised. Only for plugins in this process.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = 0
        self.headers = Headers()
        self.body = b""
        self.service_request: Request | None = None
        self.source = "error"
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.log: list[LogLine] = []
        self.consumer: dict[str, Any] | None = None
        self.credential: dict[str, Any] | None = None
        self.seconds = 0.0
        self.hung = False
        self.server_log: list[str] = []

    def called(self, function: str) -> list[Call]:
        """The calls of one function, by its full name or without the leading ``kong.``."""
        return [call for call in self.calls if call.function in (function, f"kong.{function}")]

    def logged(self, level: str = "") -> list[str]:
        """What plugins logged, of one level or of all."""
        return [
            line.message
            for line in self.log
            if line.source == "plugin" and level in ("", line.level)
        ]

    @property
    def phases(self) -> list[str]:
        """The phases that ran, in order, each once."""
        return list(dict.fromkeys(event.phase for event in self.events))

    def describe(self) -> str:
        """The request in several lines of text: events, PDK calls, log, response."""
        lines = [f"{self.request.method} {self.request.path}"]
        for event in self.events:
            took = f"{event.seconds * 1000:.2f} ms"
            lines.append(f"  {event.plugin} {event.phase}: {event.outcome} ({took})")
            lines.extend(
                f"    {call}"
                for call in self.calls
                if (call.plugin, call.phase) == (event.plugin, event.phase)
            )
        lines.extend(f"  {line}" for line in self.log)
        for record in self.server_log:
            lines.extend(f"  | {line}" for line in record.splitlines())
        lines.append(f"  response: {self._made_by()}, {len(self.body)} bytes")
        return "\n".join(lines)

    def _made_by(self) -> str:
        if self.hung:
            return "none, the request hangs"
        makers = {"service": "the service", "exit": "a plugin", "error": "Kong"}
        return f"{self.status} from {makers[self.source]}"

    def __repr__(self) -> str:
        return (
            f"<Result of {self.request.method} {self.request.path}: {self._made_by()}, "
            f"{len(self.calls)} PDK calls, {len(self.log)} log lines, "
            f"{self.seconds * 1000:.1f} ms>"
        )
