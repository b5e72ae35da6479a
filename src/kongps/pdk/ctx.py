"""``kong.ctx``: data that lives as long as the request."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace, namespace

__all__ = ["Ctx", "PluginCtx", "SharedCtx"]


class SharedCtx(Namespace):
    """``kong.ctx.shared``: seen by all plugins of the request, those in Lua too."""

    __slots__ = ()

    def get(self, key: str) -> Any:
        """What was stored under a key.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        On Kong 2.0.5 nothing that was set came back, in the same event or a later one.

        :param key: the name; a plugin's name in it keeps plugins apart.
        :returns: the value as MessagePack carries it, None when nothing is there.
        """
        return self._call("kong.ctx.shared.get", key)

    def set(self, key: str, value: Any) -> None:
        """Stores a value for the rest of the request.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param key: the name; a plugin's name in it keeps plugins apart.
        :param value: anything made of str, bytes, numbers, booleans, lists and dicts; None
            removes the key.
        :raises TypeError: for a value that cannot be sent.
        """
        self._call("kong.ctx.shared.set", key, value)


class PluginCtx(Namespace):
    """``kong.ctx.plugin``, which Kong does not have for plugin servers."""

    __slots__ = ()

    def get(self, key: str) -> Any:
        """Cannot be called from a plugin server; use :attr:`Ctx.shared`.

        Phases: none. No Kong version has it.

        :raises PDKError: always.
        """
        return self._call("kong.ctx.plugin.get", key)

    def set(self, key: str, value: Any) -> None:
        """Cannot be called from a plugin server; use :attr:`Ctx.shared`.

        Phases: none. No Kong version has it.

        :raises PDKError: always.
        """
        self._call("kong.ctx.plugin.set", key, value)


class Ctx(Namespace):
    """``kong.ctx``: data that lives as long as the request."""

    __slots__ = ()

    shared = namespace(SharedCtx)
    plugin = namespace(PluginCtx)
