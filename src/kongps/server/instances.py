"""The lifecycle of instances: started by Kong, closed by Kong or when idle, back from the store.

A plugin's ``start()`` and ``close()`` are called once for each of its instances, where its handlers
run.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable

from kongps.core.dispatch.instance import Instance
from kongps.core.report import report
from kongps.errors import ConfigError, KongpsError, NoInstance
from kongps.plugin_names import shown_name, valid_name
from kongps.plugins.plugin import missing_plugin
from kongps.server.configs import config_bytes, decode_config, sendable
from kongps.server.placement import CLOSE, START

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.core.dispatch.event import Runner
    from kongps.plugins.plugin import Plugin
    from kongps.server.placement import Placement
    from kongps.server.store import InstanceStore

CallLater = Callable[[float, Callable[[], object]], Any]

# Ids fit the positive int32 that ProtoBuf:1 has for them.
HIGHEST_INSTANCE_ID = 2**31 - 1

# Seconds after which an instance without room for its configuration may start at its next event.
NO_ROOM_FOR = 10.0

# Bytes of configurations in memory, as Kong sends them; their objects take a few times as much.
# Over a thousand of 200 KB each, which is more than certificates and rules take.
MAX_CONFIGS_SIZE = 256 << 20

# Idle instances that are closed in one go: events wait meanwhile.
MOST_CLOSED_AT_ONCE = 200


class Instances:
    """The instances of a server's plugins.

    :param dispatcher: where those in memory live.
    :param plugins: the plugins served, by name.
    :param errors: why plugins could not be loaded, by name.
    :param placement: where plugin code runs.
    :param max_instances: most instances without an event under way; before one more starts, the
        one that was used least recently is closed.
    :param call_later: such as ``Loop.call_later``; without it nothing is done later, and no
        ``start`` is late.

    :ivar store: where instances outlive their time in memory; None for nowhere.
    :ivar last_start: when Kong last started an instance, by plugin, seconds since the epoch.
    :ivar last_close: when it last closed one.
    :ivar closing: how many have yet to close.
    """

    store: InstanceStore | None = None

    def __init__(
        self,
        dispatcher: Dispatcher,
        plugins: dict[str, Plugin],
        errors: dict[str, str],
        placement: Placement,
        *,
        max_instances: int,
        call_later: CallLater | None,
    ) -> None:
        self.dispatcher = dispatcher
        self.plugins = plugins
        self.errors = errors
        self.max_instances = max_instances
        self.last_start: dict[str, float] = {}
        self.last_close: dict[str, float] = {}
        self.placement = placement
        self.closing = 0
        self._call_later = call_later
        self._close_when_started: set[Instance] = set()
        self._config_sizes: dict[int, int] = {}  # bytes of those in memory, by id
        self._configs_size = 0  # of all together
        self._stored: set[int] = set()  # ids of those in memory that the store has taken
        dispatcher.on_missing_instance(self._restart)

    def plugin(self, name: Any) -> Plugin:
        """The plugin with a name.

        :raises KongpsError: when there is none, or when it could not be loaded.
        """
        if isinstance(name, str):
            if name in self.plugins:
                return self.plugins[name]
            if name in self.errors:
                raise KongpsError(self.errors[name])
            name = shown_name(name)
        raise KongpsError(f"there is no plugin {name!r} on this server")

    def find(self, id: int) -> Instance:
        """An instance in memory, or one from the store as it was: not started.

        :raises NoInstance: when there is none.
        """
        try:
            return self.dispatcher.instance(id)
        except KongpsError:
            kept = self.store.find(id) if self.store is not None else None
            if kept is None:
                raise
        config: dict[str, Any] = {}
        with contextlib.suppress(ConfigError):
            config = sendable(decode_config(kept.config))
        plugin = self.plugins.get(kept.plugin) or missing_plugin(kept.plugin)
        return Instance(id, plugin, config, kept.started, {}, None)

    # --- starting --------------------------------------------------------------------------------

    def start(self, name: str, text: Any) -> Instance:
        """Starts an instance of a plugin for one configuration.

        It does not fail for what is wrong with the plugin or the configuration: Kong 2.8 then
        hangs every later request of that configuration, 3.9 asks without end. The instance
        starts, the reason is logged, and its events fail.

        :param name: the plugin's name.
        :param text: the configuration, JSON text.
        """
        name = shown_name(name)
        instance = self._start(self._new_id(), name, text, time.time(), "started")
        if isinstance(text, (str, bytes)):
            self._keep(instance, name, config_bytes(text))
        if name in self.plugins:
            self.last_start[name] = instance.started
        return instance

    def _new_id(self) -> int:
        while True:
            id = 1 + secrets.randbelow(HIGHEST_INSTANCE_ID)
            if self.store is not None and self.store.knows(id):
                continue
            try:
                self.dispatcher.instance(id)
            except KongpsError:
                return id

    def _keep(self, instance: Instance, name: str, config: bytes) -> None:
        """Puts an instance into the store, if it could ever start from there.

        A name that no plugin can have is stored only for the other workers, who have to fail its
        events too, and need no configuration for that.
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

    def _restart(self, id: int) -> Instance:
        """Starts an instance again that is not in memory, for an event.

        :raises NoInstance: when it is not in the store either.
        """
        kept = self.store.find(id) if self.store is not None else None
        if kept is None:
            raise NoInstance(id)
        instance = self._start(id, kept.plugin, kept.config, kept.started, "started again")
        self._stored.add(id)
        return instance

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
            plugin = self.plugin(name)
            size = len(config_bytes(text))
            self._make_room_for_config(id, size)
            config = decode_config(text)
            handlers = self.placement.construct(plugin, config)
            runners = self.placement.runners(plugin)
        except KongpsError as error:
            failure = str(error)
        except BaseException as error:  # whatever a plugin's constructor raises is its own
            failure, raised = f"its constructor raised {type(error).__name__}", error
        shown = name if name in self.plugins else repr(name)
        if failure is not None:
            failure = _report_failure(shown, id, failure, raised, config)
        else:
            report(logging.INFO, "instance %d of plugin %s %s", id, shown, how)
        start = handlers.pop(START, None)
        instance = Instance(id, plugin, sendable(config), started, handlers, failure, runners)
        self.dispatcher.add_instance(instance)
        if config:
            self._config_sizes[id] = size
            self._configs_size += size
        if start is not None:
            self._call_start(instance, start)
        return instance

    def _call_start(self, instance: Instance, start: Callable[[], Any]) -> None:
        """Calls the plugin's ``start``; events wait until it has ended, and fail if it fails."""
        ended = False

        def end(failure: str | None, raised: BaseException | None = None) -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            if timer is not None:
                timer.cancel()
            if failure is not None:
                failure = _report_failure(
                    instance.plugin.name, instance.id, failure, raised, instance.config
                )
            self.dispatcher.release_events(instance, failure)
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
        timeout = self.dispatcher.rules.handler_timeout
        timer: Any = None
        if self._call_later is not None and timeout != float("inf"):
            timer = self._call_later(
                timeout, lambda: end(f"its start() has not ended in {timeout:g} s")
            )
        self.placement.call(instance.plugin, START, start, done)

    # --- making room -----------------------------------------------------------------------------

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
        if missing <= self._configs_size:  # else it is too large for all of it
            for instance in self.dispatcher.idle_instances(0.0):
                freed = self._config_sizes.get(instance.id, 0)
                if missing > 0 and freed and self._comes_back(instance):
                    missing -= freed
                    chosen.append(instance)
        reason = f"configurations may take {MAX_CONFIGS_SIZE} bytes of memory"
        if missing > 0:
            if self._call_later is not None:
                self._call_later(NO_ROOM_FOR, lambda: self._try_again(id))
            raise KongpsError(
                f"{reason}, and others use too much of that; have fewer or smaller ones, or divide "
                "the plugins among several servers"
            )
        self._put_away(chosen, reason)

    def _try_again(self, id: int) -> None:
        """Lets the next event start an instance again that had no room for its configuration."""
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
                instance.id,
                instance.plugin.name,
                how,
                reason,
            )
            self._close(instance)

    # --- closing ---------------------------------------------------------------------------------

    def _remove(self, id: int) -> Instance:
        """Takes an instance out of memory.

        :raises NoInstance: when it is not there.
        """
        instance = self.dispatcher.remove_instance(id)
        self._stored.discard(id)
        self._configs_size -= self._config_sizes.pop(id, 0)
        return instance

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
            if raised is not None:  # a plugin that fails to close harms no other
                report(
                    logging.ERROR,
                    "plugin %s, close of instance %d raised %s",
                    instance.plugin.name,
                    instance.id,
                    type(raised).__name__,
                    error=raised,
                    config=instance.config,
                )

        self.closing += 1
        self.placement.call(instance.plugin, CLOSE, instance.close, done)

    def trim_store(self) -> None:
        """Makes the store forget what has not been used for long."""
        if self.store is not None:
            self.store.touch([instance.id for instance in self.dispatcher.all_instances()])
            self.store.trim()

    def close(self, id: int) -> Instance:
        """Closes an instance for Kong; events of it that are under way go on to their end.

        :raises NoInstance: when there is none.
        """
        instance = self.find(id)
        if self.store is not None:
            self.store.close_instance(id)
        with contextlib.suppress(KongpsError):  # it is only in the store
            self._remove(id)
        self.last_close[instance.plugin.name] = time.time()
        self._close(instance)
        report(logging.INFO, "instance %d of plugin %s closed", id, instance.plugin.name)
        return instance

    def drop(self, id: int) -> None:
        """Closes an instance that Kong has closed in another worker, if it is in memory here."""
        with contextlib.suppress(KongpsError):
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


def _report_failure(
    plugin: str, id: int, reason: str, raised: BaseException | None, config: dict[str, Any]
) -> str:
    """Logs that an instance did not start; returns what its events fail with."""
    failure = f"plugin {plugin} did not start for instance {id}: {reason}"
    report(logging.ERROR, "%s; its requests fail", failure, error=raised, config=config)
    return failure
