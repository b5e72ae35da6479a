"""A loaded plugin: all that the server knows of what a plugin's author wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional

from kongps.errors import KongpsError
from kongps.phases import PHASE_NAMES

if TYPE_CHECKING:
    from kongps.core.dispatch.namespace import Namespace

__all__ = [
    "HOOKS",
    "Placed",
    "Plugin",
    "bare_pdk",
    "lua_style_pdk",
    "missing_plugin",
    "python_style_pdk",
    "typed_pdk",
]

# What a handler gets as its argument, by the way its plugin was written. Imported when the first
# instance starts: `kongps dump` needs none of them.


def typed_pdk() -> type[Namespace]:
    """The typed PDK, for plugins with a structure."""
    from kongps.pdk import Kong

    return Kong


def lua_style_pdk() -> type[Namespace]:
    """Any name after ``kong.``, with ``(value, err)``: kong-python-pdk's layout."""
    from kongps.kong_pdk.pdk import LuaStyleKong

    return LuaStyleKong


def python_style_pdk() -> type[Namespace]:
    """Any name after ``kong.``, with exceptions: that layout with ``--no-lua-style``."""
    from kongps.kong_pdk.pdk import PlainKong

    return PlainKong


def bare_pdk() -> type[Namespace]:
    """No more than the event: native plugins name PDK functions themselves."""
    from kongps.core.dispatch.namespace import Namespace

    return Namespace


# What is called once for each object: by which names a plugin has it.
HOOKS = {"start": ("start", "Start"), "close": ("close", "Close")}


class Placed(NamedTuple):
    """Where the handlers of a plugin run, and why.

    :ivar runs_in: ``inline``, ``threads`` or ``asyncio``.
    :ivar reason: a clause that follows the plugin's name: ``it imports threading (line 3)``.
    """

    runs_in: str
    reason: str


class Plugin:
    """A plugin, whichever way it was written. The loader makes it complete; nothing is added.

    :ivar name: its name in Kong.
    :ivar version: such as ``1.0.0``; Kong from 3.0 on wants up to three numbers.
    :ivar priority: Kong runs plugins with a higher priority first.
    :ivar phases: the phases it has handlers for, in Kong's order.
    :ivar schema: the whole schema, ``{"name": …, "fields": […]}``, JSON values only.
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

    :param make: makes the plugin's object from a configuration.
    :param handlers: the names of the object's handlers, by phase.
    :param pdk: gives the class of what its handlers get.
    :param place: decides where its handlers run, see :mod:`kongps.plugins.runs_in`. Called when
        that is first needed, which ``kongps dump`` never does.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str,
        priority: int,
        schema: dict[str, Any],
        make: Callable[[dict[str, Any]], Any],
        handlers: Mapping[str, str],
        pdk: Callable[[], type[Namespace]],
        place: Callable[[], Placed],
        pipelined: bool = True,
        on_error: Optional[str] = None,
        blocking: Optional[bool] = None,
        coroutines: frozenset[str] = frozenset(),
        path: str = "",
        modified: float = 0.0,
    ) -> None:
        self.name = name
        self.version = version
        self.priority = priority
        self.schema = schema
        self.phases = tuple(phase for phase in PHASE_NAMES if phase in handlers)
        self.pipelined = pipelined
        self.on_error = on_error
        self.blocking = blocking
        self.coroutines = coroutines
        self.path = path
        self.modified = modified
        self.loaded = time.time()
        self._make = make
        self._handlers = dict(handlers)
        self._pdk = pdk
        self._place = place
        self._placed: Optional[Placed] = None

    def __repr__(self) -> str:
        return f"<Plugin {self.name} {self.version} ({', '.join(self.phases)})>"

    @property
    def kong(self) -> type[Namespace]:
        """The class of what a handler gets as its argument."""
        return self._pdk()

    @property
    def async_kong(self) -> type[Namespace]:
        """The class of what a handler that is ``async def`` gets."""
        from kongps.pdk.aio import AsyncKong

        return AsyncKong

    @property
    def placed(self) -> Placed:
        """Where its handlers run, and why, as decided once for the plugin."""
        if self._placed is None:
            self._placed = self._place()
        return self._placed

    @property
    def runs_in(self) -> str:
        """Where its plain handlers run: ``inline`` or ``threads``; ``asyncio`` if it has none."""
        return self.placed.runs_in

    @property
    def runs_in_reason(self) -> str:
        """Why, in a clause that follows the plugin's name: ``it imports threading (line 3)``."""
        return self.placed.reason

    def where(self, what: str) -> str:
        """Where one of its functions runs: ``inline``, ``threads`` or ``asyncio``.

        :param what: a phase, or ``start`` or ``close``.
        """
        return "asyncio" if what in self.coroutines else self.runs_in

    def describe_where(self) -> str:
        """Where its handlers run and why, in a line for the log and ``kongps doctor``."""
        places = {"inline": "inline", "threads": "in threads", "asyncio": "under asyncio"}
        text = f"its handlers run {places[self.runs_in]}: {self.runs_in_reason}"
        apart = [phase for phase in self.phases if self.where(phase) != self.runs_in]
        return f"{text}; {', '.join(apart)} under asyncio: async def" if apart else text

    def new(self, config: dict[str, Any]) -> dict[str, Callable[..., Any]]:
        """Makes an object of the plugin for one configuration.

        :param config: what Kong sent, decoded; Kong's own keys such as ``__key__`` included.
        :return: the object's handlers by phase, each to be called with one argument, a ``kong``;
            and ``start`` and ``close``, to be called without, when the object has them.
        :raises ConfigError: when the configuration does not fit the plugin's structure.
        :raises Exception: whatever the plugin's constructor raised.
        """
        made = self._make(config)
        handlers = {phase: getattr(made, name) for phase, name in self._handlers.items()}
        for hook, names in HOOKS.items():
            found = _method(made, names)
            if found is not None:
                handlers[hook] = found
        return handlers

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
        pdk=bare_pdk,
        place=lambda: Placed("inline", "it has no handlers"),
    )


def _method(made: object, names: tuple[str, ...]) -> Optional[Callable[[], Any]]:
    for name in names:
        if callable(getattr(type(made), name, None)):
            return getattr(made, name)  # type: ignore[no-any-return]
    return None
