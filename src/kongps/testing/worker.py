"""An nginx worker of the gateway: its connections, and the plugin instances that it has started."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kongps.testing.entities import PluginConfig
from kongps.testing.msgpack_rpc import MsgPackExchanger
from kongps.testing.protobuf_rpc import ProtobufExchanger
from kongps.testing.schema import fill
from kongps.testing.values import LuaError, json_text
from kongps.testing.wire import Pool, RpcError

if TYPE_CHECKING:
    from kongps.testing.gateway import Kong
    from kongps.testing.tasks import Steps

EXCHANGERS = {"msgpack": MsgPackExchanger, "protobuf": ProtobufExchanger}


class ConfiguredPlugin:
    """A plugin's configuration, with what the plugin server reports about the plugin.

    :ivar seq: rises with each change of the configuration.
    """

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
        """Take a configuration; ConfigError when it does not fit the schema."""
        self.config = fill(self.schema, config) if self.schema else dict(config)


@dataclass
class _Instance:
    """What a worker knows about the instance of one plugin configuration."""

    id: int | None = None
    seq: int = -1
    starting: bool = False


class Worker:
    """An nginx worker.

    :ivar rpc: its calls to the plugin server.
    :ivar instances: the instances it has started, by the key of their configuration.
    :ivar server_pid: the plugin server's process id, if the server sends it.
    """

    def __init__(self, kong: Kong, order: str) -> None:
        self.server_pid: Any = None
        self.pool = Pool(kong._connect, order=order)
        self.rpc = EXCHANGERS[kong.protocol](self.pool, self._notified, kong.version)
        self._kong = kong
        self.instances: dict[str, _Instance] = {}

    def _notified(self, label: str, value: Any) -> None:
        if label == "serverPid":
            if self.server_pid not in (None, value):
                self.instances.clear()
            self.server_pid = value

    def restart(self) -> None:
        """Forget the instances, and close the connections."""
        self.pool.close()
        self.instances.clear()
        self.server_pid = None

    def instance(self, plugin: ConfiguredPlugin) -> Steps:
        """The id of the instance to send an event to, started if need be.

        It is None when the instance could not be started and Kong sends the event all the same.

        :raises RpcError: the instance could not be started.
        """
        key = self._key(plugin)
        while key in self.instances and self.instances[key].starting:
            yield None
        known = self.instances.setdefault(key, _Instance())
        if known.seq == plugin.seq:
            return known.id
        old = known.id
        known.starting = True
        seq = plugin.seq
        try:
            start = {"Name": plugin.entity.name, "Config": self._config(plugin)}
            status = yield partial(self.rpc.begin, "plugin.StartInstance", [start])
            if not isinstance(status, Mapping) or not isinstance(status.get("Id"), int):
                raise LuaError(f"StartInstance returned no instance: {status!r}")
        except (RpcError, LuaError) as error:
            if isinstance(error, RpcError) and self._waits_for_good(error):
                return None
            if self.instances.get(key) is known:
                del self.instances[key]
            known.starting = False
            raise
        known.id = status["Id"]
        known.seq = seq
        known.starting = False
        self.instances.setdefault(key, known)
        if old is not None:
            with contextlib.suppress(RpcError):
                yield partial(self.rpc.begin, "plugin.CloseInstance", [old])
        return known.id

    def forget(self, plugin: ConfiguredPlugin) -> None:
        """Start a new instance at the plugin's next event."""
        self.instances.pop(self._key(plugin), None)

    def _waits_for_good(self, error: RpcError) -> bool:
        # These Kongs send one event without an instance; every later one waits without end for
        # the instance that never came.
        return error.kind == "answer" and (2, 3) <= self._kong.version.number < (3, 0)

    def _key(self, plugin: ConfiguredPlugin) -> str:
        kong = self._kong
        of = self._scope(plugin.entity)
        key = f"plugins:{plugin.entity.name}:{of.get('route_id', '')}:{of.get('service_id', '')}:"
        key += f"{of.get('consumer_id') or ''}:"
        return key if kong.version.oldest else f"{key}:{kong.workspace_id}"

    def _config(self, plugin: ConfiguredPlugin) -> str:
        kong = self._kong
        config = {**plugin.config, "__key__": self._key(plugin), "__seq__": plugin.seq}
        if kong.version.number >= (3, 0):
            config["__plugin_id"] = plugin.entity.id
            config["__ws_id"] = kong.workspace_id
        config.update(self._scope(plugin.entity))
        return json_text(config, empty_as_object=kong.version.oldest)

    def _scope(self, entity: PluginConfig) -> dict[str, str | None]:
        """What a configuration is for, as Kong adds it: one id, or nothing for a global one."""
        kong = self._kong
        if entity.scope == "service":
            return {"service_id": kong.service.id}
        if entity.scope == "route" and kong.route is not None:
            return {"route_id": kong.route.id}
        if entity.scope == "consumer" and entity.consumer:
            found = kong.find_consumer(entity.consumer, by_username=True)
            return {"consumer_id": found.id if found else None}
        return {}
