"""What Kong calls besides events: plugins, instances, status.

None of it is on the path of an event; each command takes the call's argument as Python values and
returns what Kong gets, by the names that go-pluginserver gave the fields.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

from kongps.errors import KongpsError, NoInstance
from kongps.server.status import instance_status

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.server.instances import Instances
    from kongps.server.status import Status


class Commands:
    """Carries out Kong's calls.

    :param dispatcher: takes the calls.
    :param instances: the plugins' instances.
    :param status: the server's.
    :param directory: the plugins directory, empty for plugins from elsewhere.
    """

    def __init__(
        self, dispatcher: Dispatcher, instances: Instances, status: Status, directory: str
    ) -> None:
        self._instances = instances
        self._status = status
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
            dispatcher.on_command(method, command)

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
        """What is loaded and what runs."""
        return self._status.whole()

    def start_instance(self, argument: Any) -> dict[str, Any]:
        """Starts an instance of a plugin; see ``Instances.start``."""
        if not isinstance(argument, dict) or not isinstance(argument.get("Name"), str):
            raise KongpsError("StartInstance takes a map with the Name and Config of an instance")
        return instance_status(self._instances.start(argument["Name"], argument.get("Config")))

    def instance_status(self, id: Any) -> dict[str, Any]:
        """Name, configuration and start time of an instance."""
        return instance_status(self._instances.find(_instance_id(id)))

    def close_instance(self, id: Any) -> dict[str, Any]:
        """Closes an instance; returns its status."""
        return instance_status(self._instances.close(_instance_id(id)))


def _instance_id(id: Any) -> int:
    if isinstance(id, float) and id.is_integer():  # Lua knows only doubles
        id = int(id)
    if not isinstance(id, int) or isinstance(id, bool):
        raise KongpsError("an instance's id is a whole number")
    if not -(2**63) <= id < 2**63:
        raise NoInstance(reason="an id has at most 64 bits")
    return id
