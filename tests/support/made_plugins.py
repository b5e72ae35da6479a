"""Plugins for tests that need no file."""

from __future__ import annotations

from typing import Any

from kongps.pdk import Kong
from kongps.plugins.plugin import Placed, Plugin


def plugin_of(name: str = "one", **fields: Any) -> Plugin:
    """A plugin without handlers of its own, for an instance that is given some.

    :param fields: see :func:`complete`.
    """
    plugin = Plugin.__new__(Plugin)
    complete(plugin, name, **fields)
    return plugin


def complete(
    plugin: Plugin,
    name: str,
    *,
    kong: type[Any] = Kong,
    runs_in: str = "inline",
    **fields: Any,
) -> None:
    """Makes a plugin complete, as its loader would.

    :param kong: the class of what handlers get.
    :param fields: further arguments of ``Plugin``.
    """
    whole: dict[str, Any] = {
        "version": "1.0.0",
        "priority": 0,
        "schema": {},
        "make": dict,
        "handlers": {},
        "pdk": "",
        "place": lambda: Placed(runs_in, "the test says so"),
        **fields,
    }
    Plugin.__init__(plugin, name, **whole)
    plugin.kong = kong
