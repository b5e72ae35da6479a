"""What a server holds: for GetStatus, and for the log line of SIGUSR1."""

from __future__ import annotations

import logging
import os
import resource
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Dispatcher
    from kongps.core.dispatch.instance import Instance
    from kongps.server.instances import Instances
    from kongps.server.placement import Placement

logger = logging.getLogger("kongps")

# What is added up over the workers of a server.
SUMMED = ("Events", "EventsHandled", "Instances", "Connections", "Memory")

# Fields of a plugin of which the latest of any worker counts.
LATEST = ("LoadTime", "Modtime", "LastStartInstance", "LastCloseInstance")


class Status:
    """Gathers the status of one process.

    :param connections: gives the number of Kong's connections.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        instances: Instances,
        placement: Placement,
        connections: Callable[[], int],
    ) -> None:
        self._dispatcher = dispatcher
        self._instances = instances
        self._placement = placement
        self.connections = connections

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

    def whole(self) -> dict[str, Any]:
        """The numbers, and what is loaded and runs, plugin by plugin."""
        plugins = self._instances.plugins
        instances: dict[str, list[dict[str, Any]]] = {name: [] for name in plugins}
        for instance in self._dispatcher.all_instances():
            instances.setdefault(instance.plugin.name, []).append(instance_status(instance))
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
                    "RunsIn": {
                        phase: self._placement.where(plugin, phase) for phase in plugin.phases
                    },
                }
                for name, plugin in plugins.items()
            },
        }


def instance_status(instance: Instance) -> dict[str, Any]:
    """What Kong gets of an instance."""
    return {
        "Name": instance.plugin.name,
        "Id": instance.id,
        "Config": instance.config,
        "StartTime": instance.started,
    }


def merged(parts: list[dict[str, Any]], pid: int) -> dict[str, Any]:
    """The status of a server, from that of its workers.

    :param parts: what ``Status.whole`` gave in each.
    :param pid: the process id of the server.
    """
    whole: dict[str, Any] = {"Pid": pid, **added_up(parts)}
    whole["Workers"] = [{name: part[name] for name in ("Pid", *SUMMED)} for part in parts]
    plugins: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, plugin in part["Plugins"].items():
            known = plugins.setdefault(name, {**plugin, "Instances": []})
            ids = {row["Id"] for row in known["Instances"]}
            known["Instances"] += [row for row in plugin["Instances"] if row["Id"] not in ids]
            for field in LATEST:
                known[field] = max(known[field], plugin[field])
    whole["Plugins"] = plugins
    return whole


def added_up(parts: list[dict[str, Any]]) -> dict[str, int]:
    """The sums of what several workers hold."""
    return {name: sum(part[name] for part in parts) for name in SUMMED}


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
