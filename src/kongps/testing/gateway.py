"""The stand-in for Kong: configuration in, requests in, what became of them out."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Union

from kongps.errors import KongpsError
from kongps.testing.entities import (
    Consumer,
    Event,
    PluginConfig,
    Request,
    Response,
    Result,
    Route,
    Service,
    entity_id,
)
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Exit, Hang
from kongps.testing.msgpack_rpc import MsgPackExchanger
from kongps.testing.protobuf_rpc import FrameReader, ProtobufExchanger
from kongps.testing.rpc import Exchanger, Pending, started
from kongps.testing.schema import fill
from kongps.testing.values import Headers, HeaderValue, LuaError, json_text, unpacker
from kongps.testing.versions import parse_version
from kongps.testing.wire import (
    Calls,
    Connection,
    Pool,
    Reader,
    RpcError,
    SessionConnection,
    SocketConnection,
)

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin

    Upstream = Union[Response, Callable[[Request], Response]]
    Plugins = Union[Mapping[str, Mapping[str, Any]], Iterable[Union[str, PluginConfig]]]

    # What a request does: it yields what sends the next message to the plugin server and gets the
    # answer, or yields None to wait for somebody else's.
    _Steps = Generator[Optional[Callable[[], Pending]], Any, Any]

__all__ = ["Kong"]

#: How often an event is started again in a row before the stand-in calls the request hung.
RESTARTS = 100


# The phases that Kong ends with a 500 when its Lua code raises.
_ENDS_REQUEST = ("rewrite", "access", "response", "preread")


class _Instance:
    """What a worker knows about the instance of one plugin configuration."""

    __slots__ = ("id", "seq", "starting")

    def __init__(self) -> None:
        self.id: int | None = None
        self.seq = -1
        self.starting = False


class _Plugin:
    """A plugin configuration with what the plugin server says about the plugin."""

    def __init__(self, entity: PluginConfig, info: Mapping[str, Any], seq: int) -> None:
        self.entity = entity
        self.seq = seq
        self.phases = [str(phase) for phase in info.get("Phases") or []]
        schema = info.get("Schema")
        self.schema: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {}
        own = info.get("Priority") or 0
        self.priority = int(own) if entity.priority is None else entity.priority
        self.config: dict[str, Any] = {}
        self.configure(entity.config)

    def configure(self, config: Mapping[str, Any]) -> None:
        self.config = fill(self.schema, config) if self.schema else dict(config)


class _Worker:
    """An nginx worker: its pool, its call numbers, its instances."""

    def __init__(self, kong: Kong, number: int, order: str) -> None:
        self.number = number
        self.instances: dict[str, _Instance] = {}
        self.server_pid: Any = None
        self.pool = Pool(kong._connect, order=order)
        self.rpc: Exchanger
        if kong.protocol == "protobuf":
            self.rpc = ProtobufExchanger(self.pool, self._notified, kong.version)
        else:
            self.rpc = MsgPackExchanger(self.pool, self._notified, kong.version)

    def _notified(self, label: str, value: Any) -> None:
        if label == "serverPid":
            if self.server_pid not in (None, value):
                self.instances.clear()
            self.server_pid = value


class _Records(logging.Handler):
    """Keeps what the plugin server in this process logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record).rstrip())


class _Task:
    """A request on its way: its steps, and the answer that it waits for."""

    def __init__(self, worker: _Worker, exchange: Exchange, steps: _Steps) -> None:
        self.worker = worker
        self.exchange = exchange
        self.steps = steps
        self.waits: Callable[[], Pending] | None = None
        self.pending: Pending | None = None
        self.failure: Exception | None = None
        self.idle = False

    def advance(self, value: Any = None, error: Exception | None = None) -> bool:
        """Run on until the next message; False when the request is done."""
        try:
            self.waits = self.steps.throw(error) if error else self.steps.send(value)
        except StopIteration:
            self.waits = None
            return False
        return True

    def begin(self) -> None:
        """Send the message whose answer it waits for."""
        self.failure = None
        if self.waits is None:
            return
        try:
            self.pending = self.waits()
        except (RpcError, LuaError) as error:
            self.failure = error

    def end(self, timeout: float) -> bool:
        """Wait for the answer and run on; False when the request is done."""
        self.idle = self.waits is None
        if self.idle:
            return self.advance()
        if self.failure is not None:
            return self.advance(error=self.failure)
        if self.pending is None:
            raise AssertionError("nothing was sent")
        try:
            value = self.worker.rpc.end(self.pending, timeout)
        except (RpcError, LuaError) as error:
            return self.advance(error=error)
        return self.advance(value)


class Kong:
    """A Kong gateway as far as plugins and plugin servers can see one.

    Give it a plugin, to run it in this process without server or socket; a directory of plugins,
    likewise; or the socket of a running plugin server. Then send requests::

        kong = Kong(plugin=MyPlugin, config={"limit": 3})
        result = kong.request("GET", "/things?id=1", headers={"x-user": "alice"})
        assert result.status == 200

    It is to be used from one thread; :meth:`requests` has several requests under way at once.

    :param socket: path of a plugin server's socket.
    :param plugin: a class, a module, the path of a file or directory that is a plugin, or a
        :class:`kongps.plugins.plugin.Plugin`.
    :param plugins_directory: a directory of plugins.
    :param config: the configuration of the plugin, where there is just one.
    :param plugins: which plugins are configured: names, :class:`PluginConfig` objects, or a mapping
        of names to configurations. Default: all that the plugin server has, with their defaults.
    :param version: the Kong to be: ``"2.0"``, ``"2.8"`` and ``"3.9"`` are as recorded.
    :param protocol: ``"msgpack"`` (MsgPack:1) or, from version 2.4 on, ``"protobuf"``
        (ProtoBuf:1).
    :param workers: how many nginx workers; each has its own instances and connections, and they
        take requests in turn.
    :param timeout: seconds to wait for the plugin server (Kong: 60).
    :param service, route: where requests go; a string is the one path of a route, and None is a
        gateway without routes. Default: a route for every path.
    :param consumers: the consumers; a plain string is a username.
    :param upstream: the service's response, or a function that makes one for a :class:`Request`.
        An exception in it is a service that cannot be reached.
    :param upstreams: names that ``kong.service.set_upstream`` finds.
    :param trusted_ips: addresses and networks whose ``X-Forwarded-*`` headers count.
    :param real_ip_header: the header that then has the client's address.
    :param secrets: vault references to values.
    :param nginx_vars: further nginx variables, for ``kong.nginx.get_var``.
    :param body_buffer_size: bytes; a plugin cannot read a larger request body over MsgPack:1, and
        gets the path of a file over ProtoBuf:1 (nginx: 8 KiB).
    :param lua_style: plugins of kong-python-pdk's layout get ``(value, err)`` from PDK calls.
    :param pool_order: ``"lifo"`` as Kong does; ``"fifo"`` has the calls of an event go over all
        connections in turn.
    :param connections: how many connections each worker opens before the first request.
    :raises KongpsError: the plugin cannot be loaded, the plugin server does not answer or does not
        know a plugin, or Kong would refuse a configuration.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        plugin: object = None,
        plugins_directory: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        plugins: Plugins | None = None,
        version: str = "3.9",
        protocol: str = "msgpack",
        workers: int = 1,
        timeout: float = 60.0,
        service: Service | None = None,
        route: Route | str | None = "",
        consumers: Iterable[Consumer | str] = (),
        upstream: Upstream | None = None,
        upstreams: Iterable[str] = (),
        trusted_ips: Iterable[str] = (),
        real_ip_header: str = "X-Real-IP",
        secrets: Mapping[str, str] | None = None,
        nginx_vars: Mapping[str, str] | None = None,
        body_buffer_size: int = 8192,
        lua_style: bool = True,
        pool_order: str = "lifo",
        connections: int = 0,
    ) -> None:
        if sum(item is not None for item in (socket, plugin, plugins_directory)) != 1:
            raise ValueError("give one of socket, plugin and plugins_directory")
        if workers < 1:
            raise ValueError("workers must be at least 1")
        if protocol not in ("msgpack", "protobuf"):
            raise ValueError(f"protocol {protocol!r}: not 'msgpack' or 'protobuf'")
        self.version = parse_version(version)
        self.protocol = protocol
        if protocol == "protobuf" and not self.version.protobuf:
            raise ValueError(f"Kong {version} speaks MsgPack:1 only")
        self.timeout = timeout
        self.service = service or Service()
        self.route: Route | None = (
            Route(paths=[route] if route else ["/"]) if isinstance(route, str) else route
        )
        self.consumers = [Consumer(item) if isinstance(item, str) else item for item in consumers]
        self.upstream: Upstream = upstream or Response(200, body={"message": "from the service"})
        self.upstreams = set(upstreams)
        self.trusted_ips = [ipaddress.ip_network(item, strict=False) for item in trusted_ips]
        self.real_ip_header = real_ip_header
        self.secrets = dict(secrets or {})
        self.nginx_vars = dict(nginx_vars or {})
        self.body_buffer_size = body_buffer_size
        self.hostname = "kong.test"
        self.node_id = entity_id("node", "stand-in")
        self.workspace_id = entity_id("workspace", "default")
        self.cluster_id: str | None = None
        self.client_certificate: str | None = None
        self.worker_pid = os.getpid()
        self.http_port = 8000
        self.https_port = 8443
        self.requests_seen = 0
        self._next_worker = 0
        self._next_port = 40000

        self._dispatcher: Any = None
        self._calls = Calls()
        self._socket = os.fspath(socket) if socket is not None else None
        names: list[str] = []
        if plugin is not None:
            loaded = _load(plugin, lua_style=lua_style)
            names = [loaded.name]
            self._serve({loaded.name: loaded})
        elif plugins_directory is not None:
            from kongps.plugins.loader import load_directory

            found = load_directory(os.fspath(plugins_directory), lua_style=lua_style)
            if found.errors:
                raise found.errors[0]
            names = sorted(found.plugins)
            self._serve(found.plugins)
        self.workers = [_Worker(self, i, pool_order) for i in range(workers)]
        self._plugins: list[_Plugin] = []
        self._seq = self.version.first_seq
        for entity in self._entities(plugins, names, config):
            self.add(entity)
        if connections:
            for worker in self.workers:
                worker.pool.open(connections)

    # --- setting up ---------------------------------------------------------------------------

    def _serve(self, plugins: Mapping[str, Plugin]) -> None:
        from kongps.server.server import make_dispatcher

        self._dispatcher = make_dispatcher(dict(plugins), self._calls)

    def _connect(self, number: int) -> Connection:
        reader: Reader = FrameReader() if self.protocol == "protobuf" else unpacker()
        if self._socket is not None:
            return SocketConnection(self._socket, number, reader, self.timeout)
        from kongps.core.session import Session

        return SessionConnection(Session(self._dispatcher), number, reader, self._calls)

    def _entities(
        self, plugins: Plugins | None, names: list[str], config: Mapping[str, Any] | None
    ) -> list[PluginConfig]:
        entities: list[PluginConfig]
        if plugins is None:
            if not names:
                names = self._plugin_names()
            entities = [PluginConfig(name) for name in names]
        elif isinstance(plugins, Mapping):
            entities = [PluginConfig(name, given) for name, given in plugins.items()]
        else:
            entities = [PluginConfig(p) if isinstance(p, str) else p for p in plugins]
        if config is not None:
            if len(entities) != 1:
                raise ValueError(f"config is for one plugin, and there are {len(entities)}")
            entities[0].config = config
        return entities

    def _plugin_names(self) -> list[str]:
        try:
            return self.workers[0].rpc.plugin_names(self.timeout)
        except (RpcError, LuaError) as error:
            raise KongpsError(
                f"the plugin server does not say which plugins it has: {error}"
            ) from None

    def call(self, method: str, *args: Any) -> Any:
        """Send the plugin server one call of its own, such as ``plugin.GetPluginInfo``.

        :returns: the result, in the words of MsgPack:1.
        :raises KongpsError: the server is not there, or answered with an error; the protocol has
            no such call.
        """
        worker = self.workers[0]
        try:
            return worker.rpc.end(worker.rpc.begin(method, list(args)), self.timeout)
        except (RpcError, LuaError) as error:
            raise KongpsError(f"{method}: {error}") from None

    def add(self, plugin: PluginConfig | str) -> None:
        """Configure one more plugin, or the same one at another scope.

        :raises ConfigError: its configuration does not fit its schema.
        """
        entity = PluginConfig(plugin) if isinstance(plugin, str) else plugin
        info = self.call("plugin.GetPluginInfo", entity.name)
        if not isinstance(info, Mapping):
            raise KongpsError(f"plugin {entity.name!r}: the plugin server gave no information")
        self._plugins.append(_Plugin(entity, info, self._seq))
        self._plugins.sort(key=lambda item: -item.priority)

    def configure(self, name: str, config: Mapping[str, Any]) -> None:
        """Change a plugin's configuration: its next event starts a new instance.

        :raises KeyError: no such plugin is configured.
        :raises ConfigError: the configuration does not fit the plugin's schema.
        """
        found = [plugin for plugin in self._plugins if plugin.entity.name == name]
        if not found:
            raise KeyError(name)
        self._seq += 1
        for plugin in found:
            plugin.configure(config)
            plugin.seq = self._seq

    def reload(self) -> None:
        """Load the same declarative configuration again. Kong 3 then starts every instance anew,
        earlier ones only those whose configuration changed."""
        if self.version.number >= (3, 0):
            self._seq += 1
            for plugin in self._plugins:
                plugin.seq = self._seq

    def remove(self, name: str) -> None:
        """Take a plugin out of the configuration. Kong says nothing to the plugin server."""
        self._plugins = [item for item in self._plugins if item.entity.name != name]

    def restart(self) -> None:
        """Restart Kong: workers forget their instances and connections."""
        for worker in self.workers:
            worker.pool.close()
            worker.instances.clear()
            worker.server_pid = None

    def close(self) -> None:
        """Close the connections and end what still runs."""
        for worker in self.workers:
            worker.pool.close()
        if self._dispatcher is not None:
            self._dispatcher.abandon_all_events()

    def __enter__(self) -> Kong:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(item.entity.name for item in self._plugins) or "no plugins"
        return f"<Kong {self.version} with {names}>"

    # --- what exchanges ask -------------------------------------------------------------------

    def is_trusted(self, address: str) -> bool:
        """Whether ``address`` is one of the trusted ones."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.trusted_ips)

    def find_consumer(self, wanted: str, *, by_username: bool) -> Consumer | None:
        """A consumer by its id, or by its username too."""
        for consumer in self.consumers:
            if consumer.id == wanted or (by_username and consumer.username == wanted):
                return consumer
        return None

    def answer_for(self, request: Request) -> Response:
        """The service's response to a request."""
        if isinstance(self.upstream, Response):
            return self.upstream
        return self.upstream(request)

    # --- requests -----------------------------------------------------------------------------

    def request(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Mapping[str, HeaderValue] | None = None,
        body: str | bytes = b"",
        *,
        client_ip: str = "127.0.0.1",
        client_port: int = 0,
        scheme: str = "http",
        http_version: float = 1.1,
        worker: int | None = None,
    ) -> Result:
        """Send a request through the gateway, and wait until its log phase is over.

        :param path: with the query, if any.
        :param headers: names to a value or a list of values. ``Host`` and, with a body,
            ``Content-Length`` are added.
        :param scheme: ``"https"`` runs the certificate phase first.
        :param worker: which nginx worker gets it, from 0; by default they take turns.
        """
        request = Request(
            method,
            path,
            headers,
            body,
            scheme=scheme,
            client_ip=client_ip,
            client_port=client_port,
            http_version=http_version,
        )
        return self.requests([request], worker=worker)[0]

    def requests(self, requests: Iterable[Request], *, worker: int | None = None) -> list[Result]:
        """Send several requests at the same time: each has a call to the plugin server under way
        before any answer is read, so that their events run interleaved on as many connections.

        :returns: the results, in the order of the requests.
        """
        tasks = []
        for request in requests:
            self._complete(request)
            exchange = Exchange(self, request)
            chosen = self._choose(worker)
            tasks.append(_Task(chosen, exchange, self._http(chosen, exchange)))
        self._run(tasks)
        return [task.exchange.result for task in tasks]

    def stream(
        self,
        *,
        client_ip: str = "127.0.0.1",
        client_port: int = 0,
        tls: bool = False,
        worker: int | None = None,
    ) -> Result:
        """Open a TCP (or TLS) connection through the gateway: preread, then log.

        :returns: a result whose status is 200, or 500 where a plugin ended the connection.
        """
        request = Request(
            "", "", scheme="https" if tls else "http", client_ip=client_ip, client_port=client_port
        )
        self._complete(request)
        exchange = Exchange(self, request, "stream")
        chosen = self._choose(worker)
        self._run([_Task(chosen, exchange, self._tcp(chosen, exchange))])
        return exchange.result

    def _complete(self, request: Request) -> None:
        if not request.port:
            request.port = self.https_port if request.scheme == "https" else self.http_port
        if not request.client_ip:
            request.client_ip = "127.0.0.1"
        if not request.client_port:
            self._next_port = self._next_port + 1 if self._next_port < 60000 else 40001
            request.client_port = self._next_port
        self.requests_seen += 1
        if request.method:
            if "host" not in request.headers:
                first = Headers({"Host": f"localhost:{request.port}"})
                for name, value in request.headers.lines():
                    first.add(name, value)
                request.headers = first
            request.host = request.host or request.headers["host"].partition(":")[0]
            if request.body and "content-length" not in request.headers:
                request.headers.add("Content-Length", str(len(request.body)))

    def _choose(self, worker: int | None) -> _Worker:
        if worker is not None:
            return self.workers[worker]
        self._next_worker += 1
        return self.workers[(self._next_worker - 1) % len(self.workers)]

    def _run(self, tasks: list[_Task]) -> None:
        if self._dispatcher is None:
            self._run_all(tasks)
            return
        records = _Records()
        logger = logging.getLogger("kongps")
        logger.addHandler(records)
        try:
            self._run_all(tasks)
        finally:
            logger.removeHandler(records)
        for task in tasks:
            task.exchange.result.server_log = list(records.texts)

    def _run_all(self, tasks: list[_Task]) -> None:
        running = [task for task in tasks if task.advance()]
        for task in running:
            task.begin()
        while running:
            left = []
            for task in running:
                if task.end(self.timeout):
                    # At once, as in nginx: nobody else takes the connection just put back.
                    task.begin()
                    left.append(task)
            stuck = all(task.idle for task in running) and all(task.waits is None for task in left)
            running = left
            if stuck:
                for task in running:
                    task.advance(error=Hang("an instance that never starts"))
                return

    # --- the phases ---------------------------------------------------------------------------

    def _http(self, worker: _Worker, x: Exchange) -> _Steps:
        try:
            if x.request.scheme == "https":
                outcome = yield from self._phase(worker, x, "certificate")
                if outcome == "refused":
                    x.log("err", "the TLS handshake was aborted")
                    x.collect()
                    return
            yield from self._until_response(worker, x)
            x.finish()
        except Hang as error:
            self._hung(x, error)
            return
        try:
            yield from self._phase(worker, x, "log")
        except Hang as error:
            x.log("err", str(error))
        x.collect()

    def _until_response(self, worker: _Worker, x: Exchange) -> _Steps:
        yield from self._phase(worker, x, "rewrite")
        if x.ended:
            return
        if not x.route_it():
            x.phase = ""
            if self.version.number >= (3, 0):
                x.error(404, "no Route matched with those values", None, source="error")
            else:
                x.exit(404, {"message": "no Route matched with those values"}, None)
            return
        yield from self._phase(worker, x, "access")
        if x.ended:
            return
        # Kong buffers the response for a plugin that has a response handler.
        x.buffered = x.buffered or (
            self.version.has_response_phase
            and any("response" in item.phases for item in self._plugins if self._applies(item, x))
        )
        x.send_to_service()
        if not x.ended and self.version.has_response_phase:
            yield from self._phase(worker, x, "response")

    def _tcp(self, worker: _Worker, x: Exchange) -> _Steps:
        x.routed = True
        x.target = (self.service.host, self.service.port)
        x.status = 200
        try:
            yield from self._phase(worker, x, "preread")
            x.result.status = x.status
            if not x.ended:
                x.result.source = "service"
            yield from self._phase(worker, x, "log")
        except Hang as error:
            self._hung(x, error)
        x.collect()

    def _hung(self, x: Exchange, error: Exception) -> None:
        x.log("err", str(error))
        x.result.hung = True
        x.result.status = 0
        x.collect()

    def _applies(self, plugin: _Plugin, x: Exchange) -> bool:
        entity = plugin.entity
        if entity.scope == "global":
            return True
        if x.phase in ("certificate", "rewrite") or self.route is None:
            return False
        if entity.scope == "consumer":
            return x.consumer is not None and x.consumer.get("username") == entity.consumer
        return True

    def _phase(self, worker: _Worker, x: Exchange, phase: str) -> _Steps:
        x.phase = phase
        outcome = "done"
        # A copy: a plugin that is configured meanwhile starts with the next request.
        for plugin in list(self._plugins):
            if phase not in plugin.phases or not self._applies(plugin, x):
                continue
            x.plugin = plugin.entity
            before = time.perf_counter()
            event = Event(plugin.entity.name, phase)
            x.result.events.append(event)
            try:
                event.outcome = yield from self._event(worker, x, plugin, event)
            except LuaError as error:
                event.outcome = "refused"
                x.log("err", str(error))
                if phase in _ENDS_REQUEST:
                    x.unexpected()
            finally:
                event.seconds = time.perf_counter() - before - event.start_seconds
                x.plugin = None
            if event.outcome in ("exit", "refused"):
                outcome = event.outcome
            if phase != "log" and (x.ended or event.outcome in ("exit", "refused")):
                break
        return outcome

    # --- one event ----------------------------------------------------------------------------

    def _event(self, worker: _Worker, x: Exchange, plugin: _Plugin, event: Event) -> _Steps:
        for _ in range(RESTARTS):
            before = time.perf_counter()
            try:
                instance = yield from self._instance(worker, plugin)
            except RpcError as error:
                x.log("err", error.message)
                if self._fails_closed(error) and x.phase != "log":
                    x.unexpected()
                    return "exit"
                return "timeout" if error.kind == "timeout" else "error"
            finally:
                event.start_seconds += time.perf_counter() - before
            try:
                yield from self._steps(worker, x, event, instance.id)
            except RpcError as error:
                if worker.rpc.starts_again(error) and instance.id is not None:
                    worker.instances.pop(self._key(plugin), None)
                    continue
                return self._failed(x, error)
            except Exit:
                return "exit"
            return "done"
        raise Hang(f"Kong would start instances of {plugin.entity.name} for good")

    def _fails_closed(self, error: RpcError) -> bool:
        # 2.3 to 2.8 let a request pass whose instance could not be started.
        return self.version.oldest or self.version.number >= (3, 0)

    def _failed(self, x: Exchange, error: RpcError) -> str:
        outcome = "timeout" if error.kind == "timeout" else "error"
        if self.protocol == "msgpack" or not self.version.lost_again:
            x.log("err", error.message)
            return outcome
        x.log("err", f"pluginserver error: {error.message}")
        if x.phase in _ENDS_REQUEST:
            x.unexpected()
        # The handshake, too, ends where Kong's error cannot be sent.
        return "refused" if error.kind == "method" or x.phase == "certificate" else outcome

    def _steps(self, worker: _Worker, x: Exchange, event: Event, instance: int | None) -> _Steps:
        rpc = worker.rpc
        asked = yield partial(rpc.begin_event, event, instance)
        while asked is not None:
            arrived = time.perf_counter()
            call = x.add_call(asked.function, asked.args)
            try:
                given = rpc.run(x, asked)
            except (LuaError, RpcError) as error:
                call.error = str(error)
                rpc.refused(x, asked, error)
                raise
            except (Exit, Hang):
                rpc.ended(x, asked)
                raise
            finally:
                call.args = asked.args
                call.seconds = time.perf_counter() - arrived
            call.step = given.method.partition(".")[2] or given.method
            if call.step == "StepError":
                call.error = str(given.data)
            else:
                call.answer = given.data
            try:
                asked = yield partial(rpc.reply, asked, given)
            finally:
                call.seconds = time.perf_counter() - arrived

    # --- instances ----------------------------------------------------------------------------

    def _key(self, plugin: _Plugin) -> str:
        entity = plugin.entity
        service = self.service.id if entity.scope == "service" else ""
        route = self.route.id if self.route and entity.scope == "route" else ""
        consumer = ""
        if entity.scope == "consumer" and entity.consumer:
            found = self.find_consumer(entity.consumer, by_username=True)
            consumer = found.id if found else ""
        if self.version.oldest:
            return f"plugins:{entity.name}:{route}:{service}:{consumer}:"
        return f"plugins:{entity.name}:{route}:{service}:{consumer}::{self.workspace_id}"

    def _config(self, plugin: _Plugin) -> str:
        entity = plugin.entity
        config = dict(plugin.config)
        config["__key__"] = self._key(plugin)
        config["__seq__"] = plugin.seq
        if self.version.number >= (3, 0):
            config["__plugin_id"] = entity.id
            config["__ws_id"] = self.workspace_id
        if entity.scope == "service":
            config["service_id"] = self.service.id
        elif entity.scope == "route" and self.route is not None:
            config["route_id"] = self.route.id
        elif entity.scope == "consumer" and entity.consumer:
            found = self.find_consumer(entity.consumer, by_username=True)
            config["consumer_id"] = found.id if found else None
        return json_text(config, empty_as_object=self.version.oldest)

    def _instance(self, worker: _Worker, plugin: _Plugin) -> _Steps:
        key = self._key(plugin)
        while True:
            known = worker.instances.get(key)
            if known is None:
                known = worker.instances[key] = _Instance()
                break
            if known.starting:
                yield None
                continue
            if known.seq == plugin.seq:
                return known
            break
        old = known.id
        known.starting = True
        seq = plugin.seq
        try:
            start = {"Name": plugin.entity.name, "Config": self._config(plugin)}
            found = started((yield partial(worker.rpc.begin, "plugin.StartInstance", [start])))
        except RpcError as error:
            if self._stuck(error):
                # These Kongs send the event without an instance, once, and then wait for good
                # for the instance that never came.
                lost = _Instance()
                return lost
            if worker.instances.get(key) is known:
                del worker.instances[key]
            known.starting = False
            raise
        except LuaError:
            if worker.instances.get(key) is known:
                del worker.instances[key]
            known.starting = False
            raise
        known.id = found
        known.seq = seq
        known.starting = False
        worker.instances.setdefault(key, known)
        if old is not None:
            with contextlib.suppress(RpcError):
                yield partial(worker.rpc.begin, "plugin.CloseInstance", [old])
        return known

    def _stuck(self, error: RpcError) -> bool:
        return error.kind == "answer" and (2, 3) <= self.version.number < (3, 0)


def _load(plugin: object, *, lua_style: bool) -> Plugin:
    from kongps.plugins.loader import from_object, load_plugin
    from kongps.plugins.plugin import Plugin as Loaded

    if isinstance(plugin, Loaded):
        return plugin
    if isinstance(plugin, (str, os.PathLike)):
        path = Path(plugin)
        name = path.name.partition(".")[0]
        return load_plugin(str(path.parent), name, lua_style=lua_style)
    return from_object(plugin, lua_style=lua_style)
