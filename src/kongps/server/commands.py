"""What Kong calls besides events: plugins, instances, status; and the log line of SIGUSR1.

None of it is on the path of an event; each command takes the call's argument as Python values and
returns what Kong gets, by the names that go-pluginserver gave the fields.
"""

from __future__ import annotations

import logging
import os
import resource
from typing import TYPE_CHECKING, Any, Callable

from kongps.errors import KongpsError, NoInstance

if TYPE_CHECKING:
    from kongps.core.dispatch.instance import Instance
    from kongps.server.instances import Instances

logger = logging.getLogger("kongps")


class Commands:
    """Carries out Kong's calls.

    :param instances: the plugins' instances; their dispatcher takes the calls.
    :param connections: gives the number of Kong's connections.
    :param directory: the plugins directory, empty for plugins from elsewhere.
    """

    def __init__(
        self, instances: Instances, connections: Callable[[], int], directory: str
    ) -> None:
        self.connections = connections
        self._instances = instances
        self._dispatcher = instances.dispatcher
        self._directory = directory
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
            self._dispatcher.on_command(method, command)

    def set_plugin_dir(self, directory: Any) -> str:
        """Confirms the plugins directory; a peer cannot make the server load from another."""
        if isinstance(directory, str) and self._directory:
            try:
                if os.path.samefile(directory, self._directory):
                    return "ok"
            except OSError:
                pass
        raise KongpsError("the plugins directory is set by the server's command line")

    def get_plugin_names(self, _: Any) -> list[str]:
        """The names of the plugins served."""
        return list(self._instances.plugins)

    def get_plugin_info(self, name: Any) -> dict[str, Any]:
        """Name, phases, version, priority and schema of a plugin."""
        plugin = self._instances.plugin(name)
        return {**plugin.info(), "ModTime": plugin.modified, "LoadTime": plugin.loaded}

    def get_status(self, _: Any) -> dict[str, Any]:
        """The numbers, and what is loaded and runs, plugin by plugin."""
        plugins, where = self._instances.plugins, self._instances.placement.where
        instances: dict[str, list[dict[str, Any]]] = {name: [] for name in plugins}
        for instance in self._dispatcher.all_instances():
            instances.setdefault(instance.plugin.name, []).append(_instance_status(instance))
        return {
            **self.numbers(),
            "Plugins": {
                name: {
                    "Name": name,
                    "Modtime": plugin.modified,
                    "LoadTime": plugin.loaded,
                    "Instances": instances[name],
                    "LastStartInstance": self._instances.last_start.get(name, 0),
                    "LastCloseInstance": self._instances.last_close.get(name, 0),
                    "RunsIn": {phase: where(plugin, phase) for phase in plugin.phases},
                }
                for name, plugin in plugins.items()
            },
        }

    def numbers(self) -> dict[str, int]:
        """Live events, instances, connections; memory in bytes."""
        return {
            "Pid": os.getpid(),
            "Events": self._dispatcher.live_events,
            "EventsHandled": self._dispatcher.handled,
            "Instances": self._dispatcher.live_instances,
            "Connections": self.connections(),
            "Memory": _resident(),
        }

    def start_instance(self, argument: Any) -> dict[str, Any]:
        """Starts an instance of a plugin; see ``Instances.start``."""
        if not isinstance(argument, dict) or not isinstance(argument.get("Name"), str):
            raise KongpsError("StartInstance takes a map with the Name and Config of an instance")
        return _instance_status(self._instances.start(argument["Name"], argument.get("Config")))

    def instance_status(self, id: Any) -> dict[str, Any]:
        """Name, configuration and start time of an instance."""
        return _instance_status(self._instances.find(_instance_id(id)))

    def close_instance(self, id: Any) -> dict[str, Any]:
        """Closes an instance; returns its status."""
        return _instance_status(self._instances.close(_instance_id(id)))


def _instance_id(id: Any) -> int:
    if isinstance(id, float) and id.is_integer():  # Lua knows only doubles
        id = int(id)
    if not isinstance(id, int) or isinstance(id, bool):
        raise KongpsError("an instance's id is a whole number")
    if not -(2**63) <= id < 2**63:
        raise NoInstance(reason="an id has at most 64 bits")
    return id


def _instance_status(instance: Instance) -> dict[str, Any]:
    """What Kong gets of an instance."""
    return {
        "Name": instance.plugin.name,
        "Id": instance.id,
        "Config": instance.config,
        "StartTime": instance.started,
    }


def log_numbers(numbers: dict[str, Any]) -> None:
    """Logs the numbers of a process or of a server, as SIGUSR1 asks for."""
    logger.info(
        "%(Events)d live events, %(Instances)d instances, %(Connections)d connections, "
        "%(EventsHandled)d events handled, %(Memory)d bytes of memory, pid %(Pid)d",
        numbers,
    )


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where that cannot be read."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
