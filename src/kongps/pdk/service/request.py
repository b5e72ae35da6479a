"""``kong.service.request``: the request that Kong sends to the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk._check import check_choice, check_headers, check_query
from kongps.pdk.entities import HeaderValue

__all__ = ["QueryValue", "ServiceRequest"]

QueryValue = Union[str, bytes, int, float, bool, Sequence[Union[str, bytes, int, float, bool]]]
"""A query argument or form field: a value, True for one without ``=``, or a list of these."""

_METHODS = (
    "GET",
    "HEAD",
    "PUT",
    "POST",
    "DELETE",
    "OPTIONS",
    "MKCOL",
    "COPY",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "LOCK",
    "UNLOCK",
    "PATCH",
    "TRACE",
)
_FORM = "application/x-www-form-urlencoded"
_MIMETYPES = ("application/json", _FORM, "multipart/form-data")


class ServiceRequest(Namespace):
    """``kong.service.request``: the request that Kong sends to the service.

    Changes made here are seen by later plugins in ``kong.request`` where nginx keeps one request
    for both, as it does for headers and the query.
    """

    __slots__ = ()

    def enable_buffering(self) -> None:
        """Makes Kong wait for the service's whole response before it answers the client.

        Phases: rewrite, access. Since Kong 2.0.

        A plugin with a ``response`` handler does not need it: Kong then buffers anyway.
        """
        self._call("kong.service.request.enable_buffering")

    def set_scheme(self, scheme: str) -> None:
        """Sets the scheme with which Kong talks to the service.

        Phases: rewrite, access. Since Kong 2.0.

        :param scheme: ``"http"`` or ``"https"``.
        :raises ValueError: for another scheme.
        """
        check_choice("kong.service.request.set_scheme", "scheme", scheme, ("http", "https"))
        self._call("kong.service.request.set_scheme", scheme)

    def set_path(self, path: str) -> None:
        """Sets the path of the request to the service.

        Phases: rewrite, access. Since Kong 2.0.

        :param path: the path without the query, starting with ``/``. Kong 3.x escapes what has to
            be escaped.
        :raises ValueError: for a path that does not start with ``/``.
        """
        if (isinstance(path, str) and path[:1] != "/") or (
            isinstance(path, bytes) and path[:1] != b"/"
        ):
            raise ValueError(
                "kong.service.request.set_path: the argument 'path' must start with /, "
                f"not {path!r}"
            )
        self._call("kong.service.request.set_path", path)

    def set_raw_query(self, query: str) -> None:
        """Sets the query of the request to the service, as it is.

        Phases: rewrite, access. Since Kong 2.0.

        :param query: the encoded query without ``?``; empty for none.
        """
        self._call("kong.service.request.set_raw_query", query)

    def set_method(self, method: str) -> None:
        """Sets the method of the request to the service.

        Phases: rewrite, access. Since Kong 2.0.

        :param method: GET, HEAD, PUT, POST, DELETE, OPTIONS, PATCH, TRACE, MKCOL, COPY, MOVE,
            PROPFIND, PROPPATCH, LOCK or UNLOCK, in upper case.
        :raises ValueError: for another method.
        """
        check_choice("kong.service.request.set_method", "method", method, _METHODS)
        self._call("kong.service.request.set_method", method)

    def set_query(self, args: Mapping[str, QueryValue]) -> None:
        """Sets the query of the request to the service, encoded by Kong.

        Phases: rewrite, access. Since Kong 2.0.

        :param args: names and values; True makes an argument without ``=``, a list one argument of
            each. Kong sorts them by name.
        :raises TypeError: for a name or value that Kong cannot encode.
        """
        check_query("kong.service.request.set_query", "args", args)
        self._call("kong.service.request.set_query", args)

    def clear_query_arg(self, name: str) -> None:
        """Removes all arguments of a name from the query.

        Phases: rewrite, access. Since Kong 3.9; an older one only logs that it does not know it.

        :param name: the argument's name.
        """
        self._call("kong.service.request.clear_query_arg", name)

    def set_header(self, header: str, value: HeaderValue) -> None:
        """Sets a header of the request to the service, in place of all of that name.

        Phases: rewrite, access. Since Kong 2.0.

        :param header: the header's name; ``Host`` sets the name for TLS too.
        :param value: its value; Kong 3.9 takes a list of strings, for one header each.
        """
        self._call("kong.service.request.set_header", header, value)

    def add_header(self, header: str, value: HeaderValue) -> None:
        """Adds a header to the request to the service and keeps those of that name.

        Phases: rewrite, access. Since Kong 2.0.

        :param header: the header's name.
        :param value: its value; Kong 3.9 takes a list of strings, for one header each.
        """
        self._call("kong.service.request.add_header", header, value)

    def clear_header(self, header: str) -> None:
        """Removes all headers of a name from the request to the service.

        Phases: rewrite, access. Since Kong 2.0.

        :param header: the header's name.
        """
        self._call("kong.service.request.clear_header", header)

    def set_headers(self, headers: Mapping[str, HeaderValue]) -> None:
        """Sets several headers, each in place of all of its name.

        Phases: rewrite, access. Since Kong 2.0.

        :param headers: names and values; a list of strings makes one header of each.
        :raises TypeError: for a name that is no string, or a list of anything but strings.
        """
        check_headers("kong.service.request.set_headers", "headers", headers)
        self._call("kong.service.request.set_headers", headers)

    def set_raw_body(self, body: str | bytes) -> None:
        """Sets the body of the request to the service, and its ``Content-Length``.

        Phases: rewrite, access. Since Kong 2.0.

        :param body: the body, str as UTF-8; empty for none.
        """
        self._call("kong.service.request.set_raw_body", body)

    def set_body(
        self, args: Mapping[str, Any] | Sequence[Any], mimetype: str | None = None
    ) -> bool | None:
        """Sets the body of the request to the service, encoded by Kong.

        Phases: rewrite, access. Since Kong 2.0.

        Without `mimetype` Kong takes the request's ``Content-Type``, and abandons the event when
        that is another than the three below: better name one.

        :param args: the data: for JSON anything, for the forms names and values.
        :param mimetype: ``"application/json"``, ``"application/x-www-form-urlencoded"`` or
            ``"multipart/form-data"``; it becomes the request's ``Content-Type``.
        :returns: True; None when there is no content type (Kong 3.x).
        :raises ValueError: for another `mimetype`.
        :raises TypeError: for a name or value that a form cannot hold.
        :raises PDKError: when there is no content type, on Kong 2.x.
        """
        if isinstance(mimetype, str):
            base = mimetype.partition(";")[0]
            check_choice("kong.service.request.set_body", "mimetype", base, _MIMETYPES)
            if base == _FORM:
                check_query("kong.service.request.set_body", "args", args)
        return self._call("kong.service.request.set_body", args, mimetype)

    def disable_tls(self) -> bool | None:
        """Talks to the service without TLS, in a stream session.

        Phases: preread. Since Kong 2.0.

        It cannot be undone for the session. For HTTP see :meth:`set_scheme`.

        :returns: True, or None when Kong (3.x) failed.
        :raises PDKError: when Kong 2.x failed.
        """
        return self._call("kong.service.request.disable_tls")
