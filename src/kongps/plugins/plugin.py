"""A loaded plugin: the seam between what a plugin's author wrote and what the server runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Optional

from kongps.phases import PHASE_NAMES

if TYPE_CHECKING:
    from kongps.core.dispatch.dispatcher import Namespace

__all__ = ["PDK_CLASSES", "Plugin"]


def _typed_pdk() -> type[Namespace]:
    from kongps.pdk import Kong

    return Kong


def _lua_style_pdk() -> type[Namespace]:
    from kongps.kong_pdk.pdk import LuaStyleKong

    return LuaStyleKong


def _python_style_pdk() -> type[Namespace]:
    from kongps.kong_pdk.pdk import PlainKong

    return PlainKong


def _bare_pdk() -> type[Namespace]:
    from kongps.core.dispatch.dispatcher import Namespace

    return Namespace


# What a handler gets, by the way its plugin was written: the typed PDK; or, for plugins of
# kong-python-pdk's layout, any name after `kong.`, with (value, err) or with exceptions; for native
# ones no more than the event, since they name PDK functions themselves.
PDK_CLASSES: dict[str, Callable[[], type[Namespace]]] = {
    "typed": _typed_pdk,
    "lua-style": _lua_style_pdk,
    "python-style": _python_style_pdk,
    "native": _bare_pdk,
}


# What is called once for each object: by which names a plugin has it.
HOOKS = {"start": ("start", "Start"), "close": ("close", "Close")}


class Plugin:
    """A plugin, whichever way it was written.

    :ivar name: its name in Kong.
    :ivar version: such as ``1.0.0``; Kong from 3.0 on wants up to three numbers.
    :ivar priority: Kong runs plugins with a higher priority first.
    :ivar phases: the phases it has handlers for, in Kong's order.
    :ivar schema: the whole schema, ``{"name": …, "fields": […]}``, JSON values only.
    :ivar pipelined: whether PDK calls without a result need not be waited for, over ProtoBuf:1.
    :ivar on_error: what becomes of a request whose handler failed: ``open`` lets it through,
        ``closed`` ends it with a 500, None is as the server is told.
    :ivar blocking: whether its handlers block and run in threads; None: as it turns out.
    :ivar coroutines: its phases whose handlers are ``async def``, and ``start`` and ``close`` if
        they are.
    :ivar made_for_threads: whether it was written for a server that runs handlers in threads.
    :ivar path: the file it was loaded from; empty when it came from an object.
    :ivar modified: when that file was changed, in seconds since the epoch.
    :ivar loaded: when it was loaded, in seconds since the epoch.

    :param make: makes the plugin's object from a configuration.
    :param handlers: the names of the object's handlers, by phase.
    :param pdk: which of ``PDK_CLASSES`` its handlers get.
    """

    __slots__ = (
        "_handlers",
        "_make",
        "_pdk",
        "blocking",
        "coroutines",
        "loaded",
        "made_for_threads",
        "modified",
        "name",
        "on_error",
        "path",
        "phases",
        "pipelined",
        "priority",
        "schema",
        "version",
    )

    def __init__(
        self,
        name: str,
        *,
        version: str,
        priority: int,
        schema: dict[str, Any],
        make: Callable[[dict[str, Any]], Any],
        handlers: Mapping[str, str],
        pdk: str = "typed",
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
        self.path = path
        self.modified = modified
        self.loaded = time.time()
        self._make = make
        self._handlers = dict(handlers)
        self._pdk = pdk
        self.pipelined = pipelined
        self.on_error = on_error
        self.blocking = blocking
        self.coroutines = coroutines
        self.made_for_threads = pdk in ("lua-style", "python-style")

    def __repr__(self) -> str:
        return f"<Plugin {self.name} {self.version} ({', '.join(self.phases)})>"

    @property
    def kong(self) -> type[Namespace]:
        """The class of what a handler gets as its argument."""
        return PDK_CLASSES[self._pdk]()

    @property
    def async_kong(self) -> type[Namespace]:
        """The class of what a handler that is ``async def`` gets."""
        from kongps.pdk.aio import AsyncKong

        return AsyncKong

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


def _method(made: object, names: tuple[str, ...]) -> Optional[Callable[[], Any]]:
    for name in names:
        if callable(getattr(type(made), name, None)):
            return getattr(made, name)  # type: ignore[no-any-return]
    return None
