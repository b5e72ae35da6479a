"""A loaded plugin: all that the server knows of what a plugin's author wrote."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional

from kongps.errors import KongpsError
from kongps.phases import PHASE_NAMES

if TYPE_CHECKING:
    from kongps.core.dispatch.namespace import Namespace

__all__ = ["HOOKS", "Placed", "Plugin", "missing_plugin"]

# What is called once for each object: by which names a plugin has it.
HOOKS = {"start": ("start", "Start"), "close": ("close", "Close")}


class Placed(NamedTuple):
    """Where the handlers of a plugin run, and why.

    :ivar runs_in: ``inline``, ``threads`` or ``asyncio``.
    :ivar reason: a clause that follows the plugin's name: ``it imports threading (line 3)``.
    """

    runs_in: str
    reason: str


@dataclass(eq=False, repr=False)
class Plugin:
    """A plugin, whichever way it was written. The loader makes it complete; nothing is added.

    :ivar name: its name in Kong.
    :ivar version: such as ``1.0.0``; Kong from 3.0 on wants up to three numbers.
    :ivar priority: Kong runs plugins with a higher priority first.
    :ivar schema: the whole schema, ``{"name": …, "fields": […]}``, JSON values only.
    :ivar make: makes the plugin's object from a configuration.
    :ivar handlers: the names of the object's handlers, by phase.
    :ivar pdk: the class of what its handlers get, ``MODULE:NAME``. Imported when the first instance
        starts: ``kongps dump`` needs no PDK.
    :ivar place: decides where its handlers run, see :mod:`kongps.plugins.runs_in`. Called when
        that is first needed, which ``kongps dump`` never does.
    :ivar pipelined: whether PDK calls without a result need not be waited for, over ProtoBuf:1.
    :ivar on_error: what becomes of a request whose handler failed: ``open`` lets it through,
        ``closed`` ends it with a 500, None: as the server's setting says.
    :ivar blocking: what the plugin's attribute of that name says: True for threads, False for
        inline, None when there is none.
    :ivar coroutines: its phases whose handlers are ``async def``, and ``start`` and ``close`` if
        they are.
    :ivar path: the file it was loaded from; empty when it came from an object.
    :ivar modified: when that file was changed, in seconds since the epoch.
    :ivar loaded: when it was loaded, in seconds since the epoch.
    """

    name: str
    version: str
    priority: int
    schema: dict[str, Any]
    make: Callable[[dict[str, Any]], Any]
    handlers: Mapping[str, str]
    pdk: str
    place: Callable[[], Placed]
    pipelined: bool = True
    on_error: Optional[str] = None
    blocking: Optional[bool] = None
    coroutines: frozenset[str] = frozenset()
    path: str = ""
    modified: float = 0.0
    loaded: float = field(default_factory=time.time)

    def __repr__(self) -> str:
        return f"<Plugin {self.name} {self.version} ({', '.join(self.phases)})>"

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases it has handlers for, in Kong's order."""
        return tuple(phase for phase in PHASE_NAMES if phase in self.handlers)

    @cached_property
    def kong(self) -> type[Namespace]:
        """The class of what a handler gets as its argument."""
        return pkgutil.resolve_name(self.pdk)  # type: ignore[no-any-return]

    @property
    def async_kong(self) -> type[Namespace]:
        """The class of what a handler that is ``async def`` gets."""
        from kongps.pdk.aio import AsyncKong

        return AsyncKong

    @cached_property
    def placed(self) -> Placed:
        """Where its plain handlers run, and why; ``asyncio`` if it has none."""
        return self.place()

    def where(self, what: str) -> str:
        """Where one of its functions runs: ``inline``, ``threads`` or ``asyncio``.

        :param what: a phase, or ``start`` or ``close``.
        """
        return "asyncio" if what in self.coroutines else self.placed.runs_in

    def describe_where(self) -> str:
        """Where its handlers run and why, in a line for the log and ``kongps doctor``."""
        runs_in, reason = self.placed
        places = {"inline": "inline", "threads": "in threads", "asyncio": "under asyncio"}
        text = f"its handlers run {places[runs_in]}: {reason}"
        apart = [phase for phase in self.phases if self.where(phase) != runs_in]
        return f"{text}; {', '.join(apart)} under asyncio: async def" if apart else text

    def new(self, config: dict[str, Any]) -> dict[str, Callable[..., Any]]:
        """Makes an object of the plugin for one configuration.

        :param config: what Kong sent, decoded; Kong's own keys such as ``__key__`` included.
        :return: the object's handlers by phase, each to be called with one argument, a ``kong``;
            and ``start`` and ``close``, to be called without, when the object has them.
        :raises ConfigError: when the configuration does not fit the plugin's structure.
        :raises Exception: whatever the plugin's constructor raised.
        """
        made = self.make(config)
        called = {phase: getattr(made, name) for phase, name in self.handlers.items()}
        for hook, names in HOOKS.items():
            found = [name for name in names if callable(getattr(type(made), name, None))]
            if found:
                called[hook] = getattr(made, found[0])
        return called

    def info(self) -> dict[str, Any]:
        """What Kong asks of a plugin: Name, Phases, Version, Priority and Schema."""
        return {
            "Name": self.name,
            "Phases": list(self.phases),
            "Version": self.version,
            "Priority": self.priority,
            "Schema": self.schema,
        }


def missing_plugin(name: str) -> Plugin:
    """The plugin of an instance whose plugin this server does not have: no handlers, no objects.

    :param name: the name by which Kong asked for it.
    """

    def make(config: dict[str, Any]) -> NoReturn:
        raise KongpsError(f"there is no plugin {name!r} on this server")

    return Plugin(
        name,
        version="",
        priority=0,
        schema={},
        make=make,
        handlers={},
        pdk="kongps.core.dispatch.namespace:Namespace",
        place=lambda: Placed("inline", "it has no handlers"),
    )
