"""``kong.client``: who makes the request, and as whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kongps.core.dispatch.namespace import Namespace, namespace
from kongps.pdk.entities import Consumer, Credential

__all__ = ["Client", "TLS"]

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class TLS(Namespace):
    """``kong.client.tls``: the client's TLS connection."""

    __slots__ = ()

    def request_client_certificate(self) -> bool | None:
        """Asks the client for its certificate during the handshake.

        The client may go on without one; see :meth:`get_full_client_certificate_chain`. Kong's
        parameter for a list of authorities is an OpenSSL object and cannot be given from here.

        Phases: certificate. Since Kong 2.1.

        :returns: True when the client will be asked, None when Kong (3.x) failed.
        :raises PDKError: when Kong 2.x failed.
        """
        return self._call("kong.client.tls.request_client_certificate")

    def disable_session_reuse(self) -> bool | None:
        """Keeps the client from resuming this TLS session later, by ticket or by id.

        Phases: certificate. Since Kong 2.1.

        :returns: True, or None when Kong (3.x) failed.
        :raises PDKError: when Kong 2.x failed.
        """
        return self._call("kong.client.tls.disable_session_reuse")

    def get_full_client_certificate_chain(self) -> str | None:
        """The client's certificate and the intermediate ones it sent, in PEM.

        Phases: rewrite, access, response. Since Kong 2.1.

        :returns: the certificates, the client's own first; None when there is none.
        :raises PDKError: when Kong 2.x failed.
        """
        return self._call("kong.client.tls.get_full_client_certificate_chain")

    def set_client_verify(self, result: str) -> None:
        """Sets what Kong's log says about the check of the client's certificate.

        Phases: rewrite, access, response. Since Kong 2.1.

        :param result: ``"SUCCESS"``, ``"NONE"`` or ``"FAILED:"`` and a reason.
        :raises ValueError: for anything else.
        """
        if isinstance(result, str) and not (
            result in ("SUCCESS", "NONE") or result.startswith("FAILED:")
        ):
            raise ValueError(
                "kong.client.tls.set_client_verify: the argument 'result' must be SUCCESS, NONE "
                f"or FAILED:<reason>, not {result!r}"
            )
        self._call("kong.client.tls.set_client_verify", result)

    def disable_http2_alpn(self) -> None:
        """Cannot be called from a plugin server: it belongs to the client_hello phase.

        Phases: none. Since Kong 3.9.

        :raises PDKError: always.
        """
        self._call("kong.client.tls.disable_http2_alpn")


class Client(Namespace):
    """``kong.client``: the client's address and its identity."""

    __slots__ = ()

    tls = namespace(TLS)

    def get_ip(self) -> str:
        """The address that connected to Kong: a load balancer's, where there is one.

        Phases: certificate, rewrite, access, response, preread. Since Kong 2.0.

        :returns: an IPv4 or IPv6 address.
        """
        return self._call("kong.client.get_ip")

    def get_forwarded_ip(self) -> str:
        """The client's address, taking the word of proxies that Kong trusts.

        Kong's ``trusted_ips`` and ``real_ip_header`` decide which those are.

        Phases: certificate, rewrite, access, response, preread. Since Kong 2.0.

        :returns: an IPv4 or IPv6 address.
        """
        return self._call("kong.client.get_forwarded_ip")

    def get_port(self) -> int:
        """The port from which Kong was connected to.

        Phases: certificate, rewrite, access, response, preread. Since Kong 2.0.
        """
        return self._call("kong.client.get_port")

    def get_forwarded_port(self) -> int | None:
        """The client's port, taking the word of proxies that Kong trusts.

        Phases: certificate, rewrite, access, response, preread. Since Kong 2.0.

        :returns: the port; None when a trusted proxy gave an address and no port.
        """
        return self._call("kong.client.get_forwarded_port")

    def get_credential(self) -> Credential | None:
        """The credential with which the request was authenticated.

        Phases: access, response, log. Since Kong 2.0.

        :returns: the credential, None when the request is not authenticated.
        """
        return self._call("kong.client.get_credential")

    def get_consumer(self) -> Consumer | None:
        """The consumer as which the request was authenticated.

        Phases: access, response, log. Since Kong 2.0.

        :returns: the consumer, None when there is none.
        """
        return self._call("kong.client.get_consumer")

    def load_consumer(
        self, consumer_id: str, search_by_username: bool | None = None
    ) -> Consumer | None:
        """Looks a consumer up in Kong's datastore.

        Phases: access, response, log. Since Kong 2.0.

        :param consumer_id: the consumer's id; with `search_by_username` also its username.
        :param search_by_username: search by username what is not found by id. Default: no.
        :returns: the consumer, None when there is none.
        :raises ValueError: for an id that is no UUID, without `search_by_username`.
        :raises PDKError: when Kong 2.x could not read its datastore; 3.9 gives None then.
        """
        if (
            not search_by_username
            and isinstance(consumer_id, str)
            and _UUID.fullmatch(consumer_id) is None
        ):
            raise ValueError(
                "kong.client.load_consumer: the argument 'consumer_id' must be a UUID unless "
                f"search_by_username is set, not {consumer_id!r}"
            )
        return self._call("kong.client.load_consumer", consumer_id, search_by_username)

    def authenticate(
        self,
        consumer: Consumer | Mapping[str, Any] | None,
        credential: Credential | Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the request an authenticated one.

        Phases: access. Since Kong 2.0.

        :param consumer: the consumer; None takes away one that was set.
        :param credential: the credential; None takes away one that was set.
        :raises ValueError: when both are None.
        """
        if consumer is None and credential is None:
            raise ValueError(
                "kong.client.authenticate: one of the arguments 'consumer' and 'credential' must "
                "be given"
            )
        self._call("kong.client.authenticate", consumer, credential)

    def get_protocol(self, allow_terminated: bool | None = None) -> str | None:
        """The protocol by which the route was matched.

        Phases: access, response. Since Kong 2.0.

        :param allow_terminated: take ``X-Forwarded-Proto`` from a trusted proxy. Default: no.
        :returns: ``"http"``, ``"https"``, ``"grpc"``, ``"tcp"``, …; None without a route.
        :raises PDKError: without a route, on Kong 2.x.
        """
        return self._call("kong.client.get_protocol", allow_terminated)
