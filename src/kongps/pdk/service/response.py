"""``kong.service.response``: what the service answered."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk._check import check_limit
from kongps.pdk.entities import Headers

__all__ = ["ServiceResponse"]


class ServiceResponse(Namespace):
    """``kong.service.response``: what the service answered, before plugins change it.

    Kong 2.x abandons a log event that calls any of these.
    """

    __slots__ = ()

    def get_status(self) -> int | None:
        """The status of the service's response.

        Phases: response, log. Since Kong 2.0.

        :returns: the status, None when the service was not asked.
        """
        return self._call("kong.service.response.get_status")

    def get_header(self, name: str) -> str | None:
        """The first value of a header of the service's response.

        Phases: response, log. Since Kong 2.0.

        :param name: the header's name, in any case.
        :returns: the value, None when it is not there.
        """
        return self._call("kong.service.response.get_header", name)

    def get_headers(self, max_headers: int | None = None) -> Headers:
        """The headers of the service's response.

        Phases: response, log. Since Kong 2.0.

        Kong 3.9 gives a plugin server an empty dict, in both phases; use :meth:`get_header`, or
        ``kong.response.get_headers``.

        :param max_headers: read no more than so many, 1 to 1000. Default 100.
        :returns: each name, in lower case, with the list of its values.
        :raises ValueError: for a limit that Kong does not take.
        """
        check_limit("kong.service.response.get_headers", "max_headers", max_headers)
        return self._call("kong.service.response.get_headers", max_headers) or {}

    def get_raw_body(self) -> bytes | None:
        """The body of the service's response.

        Phases: response, log. Since Kong 2.0.

        Kong must have buffered it, as it does for a plugin with a ``response`` handler or after
        ``kong.service.request.enable_buffering``.

        :returns: the body.
        """
        body = self._call("kong.service.response.get_raw_body")
        return body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body

    def get_body(
        self, mimetype: str | None = None, max_args: int | None = None
    ) -> dict[str, Any] | list[Any] | None:
        """The body of the service's response, decoded by Kong; see :meth:`get_raw_body`.

        Phases: response, log. Since Kong 2.0.

        Kong abandons the event for a JSON body with a ``null`` in it; decode :meth:`get_raw_body`
        in the plugin where the service may send such.

        :param mimetype: decode as ``"application/json"``,
            ``"application/x-www-form-urlencoded"`` or ``"multipart/form-data"`` instead of what
            the response's ``Content-Type`` says.
        :param max_args: read no more than so many form arguments, 1 to 1000. Default 100.
        :returns: as for ``kong.request.get_body``.
        :raises ValueError: for a limit that Kong does not take.
        :raises PDKError: when Kong 2.x cannot decode it.
        """
        check_limit("kong.service.response.get_body", "max_args", max_args)
        return self._call("kong.service.response.get_body", mimetype, max_args)
