"""The stand-in for Kong that tests use: its configuration, and the requests sent to it."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from kongps.errors import KongpsError
from kongps.settings import Settings
from kongps.testing.entities import (
    Consumer,
    PluginConfig,
    Request,
    Response,
    Result,
    Route,
    Service,
    entity_id,
)
from kongps.testing.exchange import Exchange
from kongps.testing.flow import RequestFlow
from kongps.testing.protobuf_rpc import FrameReader
from kongps.testing.tasks import Task, run_all
from kongps.testing.values import Headers, HeaderValue, LuaError, unpacker
from kongps.testing.versions import parse_version
from kongps.testing.wire import (
    Calls,
    Connection,
    Reader,
    RpcError,
    SessionConnection,
    SocketConnection,
)
from kongps.testing.worker import EXCHANGERS, ConfiguredPlugin, Worker

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin

    Upstream = Union[Response, Callable[[Request], Response]]
    Plugins = Union[Mapping[str, Mapping[str, Any]], Iterable[Union[str, PluginConfig]]]


class _Records(logging.Handler):
    """Keeps what the plugin server in this process logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record).rstrip())


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
    :param pool_order: ``"lifo"`` as Kong does; ``"fifo"`` sends the calls of an event over all
        connections in turn.
    :param connections: how many connections each worker opens before the first request.
    :raises KongpsError: the plugin cannot be loaded, the plugin server does not answer or does not
        know a plugin, or Kong would refuse a configuration.
    """

    hostname = "kong.test"
    node_id = entity_id("node", "stand-in")
    workspace_id = entity_id("workspace", "default")
    cluster_id: str | None = None
    client_certificate: str | None = None
    http_port = 8000
    https_port = 8443

    requests_seen = 0
    _next_worker = 0
    _next_port = 40000
    _dispatcher: Any = None

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
        _check(protocol, workers, (socket, plugin, plugins_directory))
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
        self.worker_pid = os.getpid()
        self._calls = Calls()
        self._socket = os.fspath(socket) if socket is not None else None
        names: list[str] = []
        if socket is None:
            found = _load(plugin, plugins_directory, lua_style)
            names = sorted(found)
            self._serve(found)
        self.workers = [Worker(self, pool_order) for _ in range(workers)]
        for worker in self.workers:
            worker.pool.open(connections)
        self.plugins: list[ConfiguredPlugin] = []
        self._seq = self.version.first_seq
        for entity in self._entities(plugins, names, config):
            self.add(entity)

    # --- setting up ---------------------------------------------------------------------------

    def _serve(self, plugins: dict[str, Plugin]) -> None:
        from kongps.server.core import make_dispatcher

        self._dispatcher = make_dispatcher(plugins, self._calls)

    def _connect(self) -> Connection:
        reader: Reader = FrameReader() if self.protocol == "protobuf" else unpacker()
        if self._socket is not None:
            return SocketConnection(self._socket, reader, self.timeout)
        from kongps.core.session import Session

        session = Session(self._dispatcher, Settings().max_message)
        return SessionConnection(session, reader, self._calls)

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
            raise KongpsError(f"the plugin server did not list its plugins: {error}") from None

    def call(self, method: str, *args: Any) -> Any:
        """Send the plugin server one call of its own, such as ``plugin.GetPluginInfo``.

        :returns: the result, as MsgPack:1 has it over either protocol.
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
            raise KongpsError(f"the plugin server has no information about plugin {entity.name!r}")
        self.plugins.append(ConfiguredPlugin(entity, info, self._seq))
        self.plugins.sort(key=lambda item: -item.priority)

    def configure(self, name: str, config: Mapping[str, Any]) -> None:
        """Change a plugin's configuration: its next event starts a new instance.

        :raises KeyError: no such plugin is configured.
        :raises ConfigError: the configuration does not fit the plugin's schema.
        """
        found = [plugin for plugin in self.plugins if plugin.entity.name == name]
        if not found:
            raise KeyError(name)
        self._seq += 1
        for plugin in found:
            plugin.configure(config)
            plugin.seq = self._seq

    def reload(self) -> None:
        """Load the same declarative configuration again. Kong 3 then starts new instances for all
        plugins, earlier versions only for those whose configuration changed."""
        if self.version.number >= (3, 0):
            self._seq += 1
            for plugin in self.plugins:
                plugin.seq = self._seq

    def remove(self, name: str) -> None:
        """Take a plugin out of the configuration. Kong does not notify the plugin server."""
        self.plugins = [item for item in self.plugins if item.entity.name != name]

    def restart(self) -> None:
        """Restart Kong: workers forget their instances and connections."""
        for worker in self.workers:
            worker.restart()

    def close(self) -> None:
        """Close the connections and end what still runs."""
        for worker in self.workers:
            worker.pool.close()
        if self._dispatcher is not None:
            self._dispatcher.abandon_all_events()

    def __enter__(self) -> Kong:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(item.entity.name for item in self.plugins) or "no plugins"
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
        return self._run([self._task(request, worker) for request in requests])

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
        return self._run([self._task(request, worker, "stream")])[0]

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
                host = ("Host", f"localhost:{request.port}")
                request.headers = Headers([host, *request.headers.lines()])
            request.host = request.host or request.headers["host"].partition(":")[0]
            if request.body and "content-length" not in request.headers:
                request.headers.add("Content-Length", str(len(request.body)))

    def _task(self, request: Request, worker: int | None, subsystem: str = "http") -> Task:
        self._complete(request)
        if worker is None:
            worker = self._next_worker % len(self.workers)
            self._next_worker += 1
        chosen = self.workers[worker]
        exchange = Exchange(self, request, subsystem)
        flow = RequestFlow(self, chosen, exchange)
        return Task(chosen.rpc, exchange, flow.http() if subsystem == "http" else flow.tcp())

    def _run(self, tasks: list[Task]) -> list[Result]:
        results = [task.exchange.result for task in tasks]
        if self._dispatcher is None:
            run_all(tasks, self.timeout)
            return results
        records = _Records()
        logger = logging.getLogger("kongps")
        logger.addHandler(records)
        try:
            run_all(tasks, self.timeout)
        finally:
            logger.removeHandler(records)
        for result in results:
            result.server_log = list(records.texts)
        return results


def _check(protocol: str, workers: int, sources: tuple[object, ...]) -> None:
    if sum(item is not None for item in sources) != 1:
        raise ValueError("give one of socket, plugin and plugins_directory")
    if workers < 1:
        raise ValueError("workers must be at least 1")
    if protocol not in EXCHANGERS:
        raise ValueError(f"protocol {protocol!r}: not 'msgpack' or 'protobuf'")


def _load(
    plugin: object, directory: str | os.PathLike[str] | None, lua_style: bool
) -> dict[str, Plugin]:
    """The plugins to serve in this process, by name."""
    from kongps.plugins.loader import from_object, load_directory, load_plugin
    from kongps.plugins.plugin import Plugin as Loaded

    if directory is not None:
        found = load_directory(os.fspath(directory), lua_style=lua_style)
        if found.errors:
            raise found.errors[0]
        return dict(found.plugins)
    if isinstance(plugin, Loaded):
        loaded = plugin
    elif isinstance(plugin, (str, os.PathLike)):
        path = Path(plugin)
        name = path.name.partition(".")[0]
        loaded = load_plugin(str(path.parent), name, lua_style=lua_style)
    else:
        loaded = from_object(plugin, lua_style=lua_style)
    return {loaded.name: loaded}
