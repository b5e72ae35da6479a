"""``kong.ip``: addresses."""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace

__all__ = ["IP"]


class IP(Namespace):
    """``kong.ip``: addresses."""

    __slots__ = ()

    def is_trusted(self, address: str) -> bool:
        """Whether an address is in Kong's ``trusted_ips``.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param address: an IPv4 or IPv6 address; anything else is not trusted.
        """
        return self._call("kong.ip.is_trusted", address)
