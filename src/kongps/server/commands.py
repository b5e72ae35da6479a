"""The methods that Kong calls besides an event's: plugins, instances, status.

None of them is on the path of an event; each takes the call's argument as Python values and
returns what Kong gets, by the names that go-pluginserver gave the fields.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable

import msgspec

from kongps.core.dispatch.dispatcher import Dispatcher, Instance
from kongps.core.report import report
from kongps.core.wire.msgpack import packb
from kongps.errors import ConfigError, KongpsError, PackError
from kongps.plugins.loader import shown_name, valid_name
from kongps.plugins.plugin import missing_plugin
from kongps.server.placement import CLOSE, START, Handlers
from kongps.settings import MAX_INSTANCES

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Runner
    from kongps.plugins.plugin import Plugin
    from kongps.server.store import InstanceStore

# Ids fit the positive int32 that ProtoBuf:1 has for them.
HIGHEST_INSTANCE_ID = 2**31 - 1

# Bytes of configurations in memory, as Kong sends them; their objects take a few times as much.
# Over a thousand of 200 KB each, which is more than certificates and rules take.
MAX_CONFIGS_SIZE = 256 << 20

# Seconds after which one that found no room there may try again, with its next event.
NO_ROOM_FOR = 10.0

# Idle instances that are closed in one go: events wait meanwhile.
MOST_CLOSED_AT_ONCE = 200


class Methods:
    """Carries out Kong's calls on a set of plugins.

    :param dispatcher: where instances live.
    :param plugins: the plugins served, by name.
    :param directory: the plugins directory they come from, None for plugins from elsewhere.
    :param errors: why plugins of the directory could not be loaded, by name.
    :param max_instances: most instances without an event under way; before one more starts, the
        one that was used least recently is closed.
    :param connections: tells how many connections are open.
    :param handlers: where plugin code runs.
    :param call_later: calls something after some seconds, for an instance that does not start in
        time; such as ``Loop.call_later``. Without it nobody looks.

    :ivar closing: plugins' ``close`` that have been called and not ended.
    :ivar store: where instances outlive their time in memory; None for nowhere.
    """

    store: InstanceStore | None = None

    def __init__(
        self,
        dispatcher: Dispatcher,
        plugins: dict[str, Plugin],
        *,
        directory: str | None = None,
        errors: dict[str, str] | None = None,
        max_instances: int = MAX_INSTANCES,
        connections: Callable[[], int] = int,
        handlers: Handlers | None = None,
        call_later: Callable[[float, Callable[[], object]], object] | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.handlers = handlers or Handlers()
        self.handlers.dispatcher = dispatcher
        self.call_later = call_later
        self.closing = 0
        self._close_when_started: set[Instance] = set()
        self._stored: set[int] = set()  # ids of those in memory that the store has taken
        self._config_sizes: dict[int, int] = {}  # by the ids of those in memory
        self._configs_size = 0  # their sum
        self.plugins = plugins
        self.directory = directory
        self.errors = errors or {}
        self.max_instances = max_instances
        self.connections = connections
        self.last_start: dict[str, float] = {}
        self.last_close: dict[str, float] = {}
        commands: dict[str, Callable[[Any], Any]] = {
            "plugin.SetPluginDir": self.set_plugin_dir,
            "plugin.GetPluginNames": self.get_plugin_names,
            "plugin.GetPluginInfo": self.get_plugin_info,
            "plugin.GetStatus": self.get_status,
            "plugin.StartInstance": self.start_instance,
            "plugin.InstanceStatus": self.instance_status,
            "plugin.CloseInstance": self.close_instance,
        }
        for method, command in commands.items():
            dispatcher.on_command(method, command)
        dispatcher.on_missing_instance(self._from_store)

    def set_plugin_dir(self, directory: Any) -> str:
        """Confirms the plugins directory; a peer cannot make the server load from another."""
        if isinstance(directory, str) and self.directory is not None:
            try:
                if os.path.samefile(directory, self.directory):
                    return "ok"
            except OSError:
                pass
        raise KongpsError("the plugins directory is set by the server's command line")

    def get_plugin_names(self, _: Any) -> list[str]:
        """The names of the plugins served."""
        return list(self.plugins)

    def get_plugin_info(self, name: Any) -> dict[str, Any]:
        """Name, phases, version, priority and schema of a plugin."""
        plugin = self._plugin(name)
        return {
            **plugin.info(),
            "ModTime": plugin.modified,
            "LoadTime": plugin.loaded,
        }

    def get_status(self, _: Any) -> dict[str, Any]:
        """What is loaded and what runs."""
        instances: dict[str, list[dict[str, Any]]] = {name: [] for name in self.plugins}
        for instance in self.dispatcher.all_instances():
            instances.setdefault(instance.plugin.name, []).append(_status(instance))
        return {
            **self.numbers(),
            "Plugins": {
                name: {
                    "Name": name,
                    "Modtime": plugin.modified,
                    "LoadTime": plugin.loaded,
                    "Instances": instances[name],
                    "LastStartInstance": self.last_start.get(name, 0),
                    "LastCloseInstance": self.last_close.get(name, 0),
                }
                for name, plugin in self.plugins.items()
            },
        }

    def numbers(self) -> dict[str, int]:
        """What the server holds: live events, instances, connections; memory in bytes."""
        return {
            "Pid": os.getpid(),
            "Events": self.dispatcher.live_events,
            "EventsHandled": self.dispatcher.handled,
            "Instances": self.dispatcher.live_instances,
            "Connections": self.connections(),
            "Memory": _resident(),
        }

    def start_instance(self, argument: Any) -> dict[str, Any]:
        """Starts an instance of a plugin for one configuration.

        It does not fail for what is wrong with the plugin or the configuration: Kong 2.8 then
        hangs every later request of that configuration, 3.9 asks without end. The instance
        starts, the reason is logged, and its events fail.
        """
        if not isinstance(argument, dict) or not isinstance(argument.get("Name"), str):
            raise KongpsError("StartInstance takes a map with the Name and Config of an instance")
        name, text = shown_name(argument["Name"]), argument.get("Config")
        instance = self._start(self._new_id(), name, text, time.time(), "started")
        if isinstance(text, (str, bytes)):
            self._keep(instance, name, _as_bytes(text))
        if name in self.plugins:
            self.last_start[name] = instance.started
        return _status(instance)

    def _keep(self, instance: Instance, name: str, config: bytes) -> None:
        """Puts an instance into the store, if it could ever start from there.

        What cannot be a plugin's name never will be one. Only other workers are told of it, who
        have to fail its events too, and they need no configuration for that.
        """
        if self.store is None:
            return
        if name not in self.plugins and not valid_name(name):
            if not self.store.shared:
                return
            config = b""
        if self.store.add(instance.id, name, config, instance.started):
            self._stored.add(instance.id)
        if self.store.is_to_be_trimmed:
            self.trim_store()

    def _start(self, id: int, name: str, text: Any, started: float, how: str) -> Instance:
        """Starts an instance, whatever comes of it, and adds it."""
        config: dict[str, Any] = {}
        size = 0
        handlers: dict[str, Callable[..., Any]] = {}
        failure: str | None = None
        raised: BaseException | None = None
        runners: dict[str, Runner] = {}
        plugin = self.plugins.get(name) or missing_plugin(name)
        self._make_room()
        try:
            plugin = self._plugin(name)
            size = _size(text)
            self._make_room_for_config(id, size)
            config = _decode_config(text)
            handlers = self.handlers.construct(plugin, config)
            runners = self.handlers.runners(plugin)
        except KongpsError as error:
            failure = str(error)
        except BaseException as error:  # whatever a plugin's constructor raises is its own
            failure, raised = f"its constructor raised {type(error).__name__}", error
        shown = name if plugin is self.plugins.get(name) else repr(name)
        if failure is not None:
            failure = f"plugin {shown} did not start for instance {id}: {failure}"
            report(logging.ERROR, "%s; its requests fail", failure, error=raised, config=config)
        else:
            report(logging.INFO, "instance %d of plugin %s %s", id, shown, how)
        start = handlers.pop(START, None)
        instance = Instance(id, plugin, _told(config), started, handlers, failure, runners)
        self.dispatcher.add_instance(instance)
        if config:
            self._config_sizes[id] = size
            self._configs_size += size
        if start is not None:
            self._run_start(instance, start)
        return instance

    def _run_start(self, instance: Instance, start: Callable[[], Any]) -> None:
        """Calls the plugin's ``start``; events wait until it has ended, and fail if it fails."""
        name = instance.plugin.name
        ended = False

        def end(failure: str | None, raised: BaseException | None = None) -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            if timer is not None:
                timer.cancel()
            if failure is not None:
                failure = f"plugin {name} did not start for instance {instance.id}: {failure}"
                report(
                    logging.ERROR, "%s; its requests fail", failure, error=raised,
                    config=instance.config,
                )  # fmt: skip
            instance.release_events(failure)
            if instance in self._close_when_started:
                self._close_when_started.remove(instance)
                self.closing -= 1
                self._close(instance)

        def done(_: Any, raised: BaseException | None) -> None:
            if raised is not None:
                end(f"its start() raised {type(raised).__name__}", raised)
            elif ended:  # too late: what it has opened is of no use any more
                self._call_close(instance)
            else:
                end(None)

        instance.hold_events()
        timeout = self.dispatcher.handler_timeout
        timer: Any = None
        if self.call_later is not None and timeout != float("inf"):
            timer = self.call_later(
                timeout, lambda: end(f"its start() has not ended in {timeout:g} s")
            )
        self.handlers.call(instance.plugin, START, start, done)

    def _from_store(self, id: int) -> Instance:
        """Starts an instance again that is not in memory, for an event.

        :raises KongpsError: when it is not in the store either.
        """
        kept = self.store.find(id) if self.store is not None else None
        if kept is None:
            raise KongpsError(f"No plugin instance {id}")
        instance = self._start(id, kept.plugin, kept.config, kept.started, "started again")
        self._stored.add(id)
        return instance

    def _comes_back(self, instance: Instance) -> bool:
        """Whether an instance is in the store, for the next event after it is closed here."""
        if self.store is None or instance.id not in self._stored:
            return False
        return self.store.knows(instance.id)

    def _make_room(self) -> None:
        """Closes the instance that was used least recently, when there are as many as may be.

        Those that come back from the store go first: Kong never learns of it.
        """
        if self.dispatcher.live_instances < self.max_instances:
            return
        idle = self.dispatcher.idle_instances(0.0)
        kept = next((instance for instance in idle if self._comes_back(instance)), None)
        reason = f"there are {self.max_instances} instances, the most allowed (--max-instances)"
        if kept is not None:
            self._put_away([kept], reason)
        else:
            self._put_away(idle[:1], reason, comes_back=False)

    def _make_room_for_config(self, id: int, size: int) -> None:
        """Closes idle instances that come back from the store, if a configuration needs their room.

        :raises KongpsError: when that would not suffice; then none is closed.
        """
        missing = self._configs_size + size - MAX_CONFIGS_SIZE
        if missing <= 0:
            return
        chosen: list[Instance] = []
        if size <= MAX_CONFIGS_SIZE:
            for instance in self.dispatcher.idle_instances(0.0):
                if missing > 0 and instance.id in self._config_sizes and self._comes_back(instance):
                    missing -= self._config_sizes[instance.id]
                    chosen.append(instance)
        reason = f"configurations may take {MAX_CONFIGS_SIZE} bytes of memory"
        if missing > 0:
            if self.call_later is not None:
                self.call_later(NO_ROOM_FOR, lambda: self._try_again(id))
            raise KongpsError(
                f"{reason}, and others use too much of that; have fewer or smaller ones, or divide "
                "the plugins among several servers"
            )
        self._put_away(chosen, reason)

    def _try_again(self, id: int) -> None:
        """Has the next event start an instance again for whose configuration there was no room."""
        with contextlib.suppress(KongpsError):  # it is not here any more
            instance = self.dispatcher.instance(id)
            if instance.failure is not None and self._comes_back(instance):
                self._put_away([instance], "there was no room for its configuration")

    def close_idle(self, seconds: float) -> None:
        """Closes instances that were not used for some time and will be found in the store."""
        if self.store is None or not self.store.working:
            return
        idle = self.dispatcher.idle_instances(seconds)
        kept = (instance for instance in idle if self._comes_back(instance))
        self._put_away(list(islice(kept, MOST_CLOSED_AT_ONCE)), f"not used for {seconds:g} s")

    def _put_away(self, instances: list[Instance], reason: str, *, comes_back: bool = True) -> None:
        if self.store is not None:
            self.store.touch([instance.id for instance in instances])
        how = "until it is used" if comes_back else "for good, since the store does not have it"
        for instance in instances:
            self._remove(instance.id)
            report(
                logging.INFO if comes_back else logging.WARNING,
                "instance %d of plugin %s closed %s: %s",
                instance.id, instance.plugin.name, how, reason,
            )  # fmt: skip
            self._close(instance)

    def _remove(self, id: int) -> Instance:
        """Takes an instance out of memory.

        :raises KongpsError: when it is not there.
        """
        instance = self.dispatcher.remove_instance(id)
        self._stored.discard(id)
        self._configs_size -= self._config_sizes.pop(id, 0)
        return instance

    def trim_store(self) -> None:
        """Has the store forget what nobody has used for long."""
        if self.store is not None:
            self.store.touch([instance.id for instance in self.dispatcher.all_instances()])
            self.store.trim()

    def instance_status(self, id: Any) -> dict[str, Any]:
        """What there is to know of an instance."""
        return _status(self._instance(_instance_id(id)))

    def close_instance(self, id: Any) -> dict[str, Any]:
        """Closes an instance; events of it that are under way go on to their end."""
        instance = self._instance(_instance_id(id))
        with contextlib.suppress(KongpsError):  # it is only in the store
            self._remove(instance.id)
        if self.store is not None:
            self.store.close_instance(instance.id)
        self.last_close[instance.plugin.name] = time.time()
        self._close(instance)
        report(logging.INFO, "instance %d of plugin %s closed", instance.id, instance.plugin.name)
        return _status(instance)

    def drop_instance(self, id: int) -> None:
        """Closes an instance that Kong has closed in another worker."""
        with contextlib.suppress(KongpsError):  # it never was here
            instance = self._remove(id)
            self.last_close[instance.plugin.name] = time.time()
            self._close(instance)

    def close_all(self) -> None:
        """Closes every instance, as the server does at its end. Those in the store stay there."""
        instances = self.dispatcher.all_instances()
        if self.store is not None:
            self.store.close()
        for instance in instances:
            self._remove(instance.id)
            self._close(instance)

    def _close(self, instance: Instance) -> None:
        """Calls the plugin's ``close``, if its object has one and has started."""
        if instance.failure is not None:
            return
        if instance.has_started:
            self._call_close(instance)
        elif instance.close is not None:
            self._close_when_started.add(instance)
            self.closing += 1

    def _call_close(self, instance: Instance) -> None:
        if instance.close is None:
            return

        def done(_: Any, raised: BaseException | None) -> None:
            self.closing -= 1
            if raised is not None:  # the plugin's own fault stays its own
                report(
                    logging.ERROR, "plugin %s, close of instance %d raised %s",
                    instance.plugin.name, instance.id, type(raised).__name__, error=raised,
                    config=instance.config,
                )  # fmt: skip

        self.closing += 1
        self.handlers.call(instance.plugin, CLOSE, instance.close, done)

    def _instance(self, id: int) -> Instance:
        """An instance in memory, or one from the store as it was: not started.

        :raises KongpsError: when there is none.
        """
        try:
            return self.dispatcher.instance(id)
        except KongpsError:
            kept = self.store.find(id) if self.store is not None else None
            if kept is None:
                raise
        config: dict[str, Any] = {}
        with contextlib.suppress(ConfigError):
            config = _told(_decode_config(kept.config))
        plugin = self.plugins.get(kept.plugin) or missing_plugin(kept.plugin)
        return Instance(id, plugin, config, kept.started, {}, None)

    def _plugin(self, name: Any) -> Plugin:
        if isinstance(name, str):
            if name in self.plugins:
                return self.plugins[name]
            if name in self.errors:
                raise KongpsError(self.errors[name])
            name = shown_name(name)
        raise KongpsError(f"there is no plugin {name!r} on this server")

    def _new_id(self) -> int:
        while True:
            id = 1 + secrets.randbelow(HIGHEST_INSTANCE_ID)
            if self.store is not None and self.store.knows(id):
                continue
            try:
                self.dispatcher.instance(id)
            except KongpsError:
                return id


def _decode_config(text: Any) -> dict[str, Any]:
    """Decodes the configuration of an instance, JSON text.

    :raises ConfigError: when it is no JSON object. The text itself is never shown: it may hold
        secrets.
    """
    if not isinstance(text, (str, bytes)):
        raise ConfigError("config", "expected JSON text")
    try:
        config = msgspec.json.decode(_as_bytes(text))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ConfigError("config", "expected JSON text; this is not JSON") from None
    if config == [] or config is None:  # how Lua writes an empty table
        return {}
    if not isinstance(config, dict):
        raise ConfigError("config", "expected a JSON object")
    return config


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _size(text: Any) -> int:
    """Bytes of a configuration."""
    return len(_as_bytes(text)) if isinstance(text, (str, bytes)) else 0


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where that cannot be read."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """What InstanceStatus tells of a configuration: all of it, if it can be told."""
    try:
        packb(config)
    except PackError:
        return {}
    return config


def _instance_id(id: Any) -> int:
    if isinstance(id, float) and id.is_integer():  # Lua knows only doubles
        id = int(id)
    if not isinstance(id, int) or isinstance(id, bool):
        raise KongpsError("an instance's id is a whole number")
    if not -(2**63) <= id < 2**63:
        raise KongpsError("No plugin instance has an id of more than 64 bits")
    return id


def _status(instance: Instance) -> dict[str, Any]:
    return {
        "Name": instance.plugin.name,
        "Id": instance.id,
        "Config": instance.config,
        "StartTime": instance.started,
    }
