"""``kong.nginx``: nginx under Kong."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk.entities import NginxStatistics

__all__ = ["Nginx"]


class Nginx(Namespace):
    """``kong.nginx``: nginx under Kong."""

    __slots__ = ()

    def get_var(self, name: str) -> str | None:
        """One of nginx's variables for this request.

        Phases: rewrite, access, response, preread. Since Kong 2.0.

        :param name: the variable without ``$``, such as ``"request_id"``.
        :returns: its text, also where it is a number; None when there is none.
        """
        return self._call("kong.nginx.get_var", name)

    def get_tls1_version_str(self) -> str | None:
        """The TLS version of the client's connection.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :returns: such as ``"TLSv1.3"``; None without TLS on Kong 3.x.
        :raises PDKError: without TLS on Kong 2.x (``bad request``).
        """
        return self._call("kong.nginx.get_tls1_version_str")

    def get_ctx(self, key: str) -> Any:
        """A value of nginx's context of this request, Kong's own among them.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        Kong abandons the event when the value holds what it cannot send, such as a function. On
        Kong 2.0.5 nothing that :meth:`set_ctx` set came back.

        :param key: the name, such as ``"KONG_PROCESSING_START"``.
        :returns: the value as MessagePack carries it, None when nothing is there.
        """
        return self._call("kong.nginx.get_ctx", key)

    def set_ctx(self, key: str, value: Any) -> None:
        """Stores a value in nginx's context of this request, which Kong itself uses too.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param key: the name; prefer ``kong.ctx.shared``, which cannot collide with Kong's names.
        :param value: anything made of str, bytes, numbers, booleans, lists and dicts; None
            removes the key.
        :raises TypeError: for a value that cannot be sent.
        """
        self._call("kong.nginx.set_ctx", key, value)

    def req_start_time(self) -> float | None:
        """When the request arrived.

        Phases: rewrite, access, response, preread, log. Since Kong 2.0.

        :returns: seconds since 1970, to the millisecond; None in a stream session.
        """
        return self._call("kong.nginx.req_start_time")

    def get_subsystem(self) -> str:
        """Which part of nginx handles this connection.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :returns: ``"http"`` or ``"stream"``.
        """
        return self._call("kong.nginx.get_subsystem")

    def get_statistics(self) -> NginxStatistics:
        """Counts of connections and requests of this node.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.0.

        :returns: a dict of numbers; empty on a Kong that does not have the function.
        """
        return self._call("kong.nginx.get_statistics") or NginxStatistics()
