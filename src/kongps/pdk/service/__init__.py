"""``kong.service``: the connection to the service."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace, namespace
from kongps.pdk._check import check_range
from kongps.pdk.service.request import ServiceRequest
from kongps.pdk.service.response import ServiceResponse

__all__ = ["ServiceNamespace", "ServiceRequest", "ServiceResponse"]

_LONGEST_TIMEOUT = 2147483646


class ServiceNamespace(Namespace):
    """``kong.service``: the connection to the service."""

    __slots__ = ()

    request = namespace(ServiceRequest)
    response = namespace(ServiceResponse)

    def set_upstream(self, host: str) -> bool | None:
        """Sends the request to another of Kong's upstreams.

        Phases: access. Since Kong 2.0.

        :param host: the upstream's name.
        :returns: True; None when Kong (3.x) has no such upstream.
        :raises PDKError: when Kong 2.x has no such upstream.
        """
        return self._call("kong.service.set_upstream", host)

    def set_target(self, host: str, port: int) -> None:
        """Sends the request to another host, without load balancing and health checks.

        Phases: access, preread. Since Kong 2.0.

        :param host: a name or an address.
        :param port: 0 to 65535.
        :raises ValueError: for another port.
        """
        check_range("kong.service.set_target", "port", port, 0, 65535)
        self._call("kong.service.set_target", host, port)

    def set_retries(self, retries: int) -> None:
        """Sets how often Kong tries again to reach the service.

        Phases: access. Since Kong 3.8.

        :param retries: 0 to 32767.
        :raises ValueError: for another number.
        """
        check_range("kong.service.set_retries", "retries", retries, 0, 32767)
        self._call("kong.service.set_retries", retries)

    def set_timeouts(self, connect_timeout: int, write_timeout: int, read_timeout: int) -> None:
        """Sets how long Kong waits for the service.

        Phases: access. Since Kong 3.8.

        :param connect_timeout: milliseconds to connect, 1 to 2147483646.
        :param write_timeout: milliseconds between two writes, 1 to 2147483646.
        :param read_timeout: milliseconds between two reads, 1 to 2147483646.
        :raises ValueError: for another time.
        """
        function = "kong.service.set_timeouts"
        check_range(function, "connect_timeout", connect_timeout, 1, _LONGEST_TIMEOUT)
        check_range(function, "write_timeout", write_timeout, 1, _LONGEST_TIMEOUT)
        check_range(function, "read_timeout", read_timeout, 1, _LONGEST_TIMEOUT)
        self._call(function, connect_timeout, write_timeout, read_timeout)

    def set_tls_verify(self, on: bool) -> bool | None:
        """Sets whether the service's certificate is checked for this request.

        Phases: rewrite, access, preread. Since Kong 2.1.

        :param on: True to check it. Without trusted certificates every check then fails.
        :returns: True, or None when Kong (3.x) failed.
        :raises PDKError: when Kong 2.x failed.
        """
        return self._call("kong.service.set_tls_verify", on)

    def set_tls_verify_depth(self, depth: int) -> bool | None:
        """Sets how long a chain of certificates may be when the service's is checked.

        Phases: rewrite, access, preread. Since Kong 2.1.

        :param depth: 0 or more.
        :returns: True, or None when Kong (3.x) failed.
        :raises ValueError: for a negative depth.
        :raises PDKError: when Kong 2.x failed.
        """
        check_range("kong.service.set_tls_verify_depth", "depth", depth, 0, 2147483647)
        return self._call("kong.service.set_tls_verify_depth", depth)

    def set_target_retry_callback(self, retry_callback: Any) -> None:
        """Cannot be called from a plugin server: it takes a Lua function.

        Phases: none. Since Kong 3.8.

        :raises PDKError: always.
        """
        self._call("kong.service.set_target_retry_callback", retry_callback)

    def set_tls_cert_key(self, chain: Any, key: Any) -> None:
        """Cannot be called from a plugin server: it takes certificates parsed in Lua.

        Phases: none. Since Kong 2.0.

        :raises PDKError: always.
        """
        self._call("kong.service.set_tls_cert_key", chain, key)

    def set_tls_verify_store(self, store: Any) -> None:
        """Cannot be called from a plugin server: it takes an OpenSSL object of Lua.

        Phases: none. Since Kong 2.1.

        :raises PDKError: always.
        """
        self._call("kong.service.set_tls_verify_store", store)
