"""Plugins for tests that need no file."""

from __future__ import annotations

from typing import Any, Optional

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
    pipelined: bool = True,
    on_error: Optional[str] = None,
    path: str = "",
    runs_in: str = "inline",
) -> None:
    """Makes a plugin complete, as its loader would.

    :param kong: the class of what handlers get.
    """
    Plugin.__init__(
        plugin,
        name,
        version="1.0.0",
        priority=0,
        schema={},
        make=dict,
        handlers={},
        pdk=lambda: kong,
        place=lambda: Placed(runs_in, "the test says so"),
        pipelined=pipelined,
        on_error=on_error,
        path=path,
    )
