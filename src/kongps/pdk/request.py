"""``kong.request``: the client's request."""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk._check import check_limit
from kongps.pdk.entities import Headers, UriCaptures

__all__ = ["Request"]


class Request(Namespace):
    """``kong.request``: the client's request, as it reached Kong.

    The ``get_forwarded_…`` functions take the ``X-Forwarded-…`` headers of proxies that are in
    Kong's ``trusted_ips``. Text that is not UTF-8 has its bytes in surrogates
    (``text.encode("utf-8", "surrogateescape")`` gives them back).
    """

    __slots__ = ()

    def get_scheme(self) -> str:
        """``"http"`` or ``"https"``, as the request reached Kong.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_scheme")

    def get_host(self) -> str:
        """The host of the request's URL or of its ``Host`` header, in lower case.

        Phases: rewrite, access, response. Since Kong 2.0.

        :returns: the host without the port.
        """
        return self._call("kong.request.get_host")

    def get_port(self) -> int:
        """The port of Kong that the request came in on.

        Phases: certificate, rewrite, access, response, preread. Since Kong 2.0.
        """
        return self._call("kong.request.get_port")

    def get_forwarded_scheme(self) -> str:
        """``"http"`` or ``"https"``, with regard to ``X-Forwarded-Proto``.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_forwarded_scheme")

    def get_forwarded_host(self) -> str:
        """The host that the client asked for, with regard to ``X-Forwarded-Host``.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_forwarded_host")

    def get_forwarded_port(self) -> int:
        """The port that the client asked for, with regard to ``X-Forwarded-Port``.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_forwarded_port")

    def get_forwarded_path(self) -> str | None:
        """The path that the client asked for, with regard to ``X-Forwarded-Path``.

        Phases: rewrite, access, response. Since Kong 2.1.

        :returns: the path as it was sent; None on a Kong that does not have the function.
        """
        return self._call("kong.request.get_forwarded_path")

    def get_forwarded_prefix(self) -> str | None:
        """The part of the path that is not passed on, with regard to ``X-Forwarded-Prefix``.

        Phases: rewrite, access, response. Since Kong 2.2.

        Without that header Kong knows the prefix from the access phase on.

        :returns: the prefix, None when the whole path is passed on.
        """
        return self._call("kong.request.get_forwarded_prefix")

    def get_http_version(self) -> float | None:
        """The HTTP version of the request.

        Phases: rewrite, access, response. Since Kong 2.0.

        :returns: 1.0, 1.1, 2.0, …; None for one that Kong does not know.
        """
        return self._call("kong.request.get_http_version")

    def get_method(self) -> str:
        """The request's method in upper case, such as ``"GET"``.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_method")

    def get_path(self) -> str:
        """The request's path without the query.

        Phases: rewrite, access, response. Since Kong 2.0.

        Kong 3.x normalises it (``/a/../b`` is ``/b``, ``%20`` a space): compare this one, not
        :meth:`get_raw_path`, where access depends on it. Kong 2.x gives it as it was sent.
        """
        return self._call("kong.request.get_path")

    def get_raw_path(self) -> str | None:
        """The request's path as it was sent, without the query.

        Phases: rewrite, access, response. Since Kong 3.0.

        :returns: the path; None on a Kong that does not have the function.
        """
        return self._call("kong.request.get_raw_path")

    def get_path_with_query(self) -> str:
        """The request's path and query as they were sent.

        Phases: rewrite, access, response. Since Kong 2.0.
        """
        return self._call("kong.request.get_path_with_query")

    def get_raw_query(self) -> str:
        """The request's query as it was sent, without the ``?``.

        Phases: rewrite, access, response. Since Kong 2.0.

        :returns: the query; empty when there is none.
        """
        return self._call("kong.request.get_raw_query")

    def get_query_arg(self, name: str) -> str | bool | None:
        """A query argument's first value.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param name: the argument's name; case matters.
        :returns: the decoded value; True for one without ``=``; None when it is not there. Of an
            argument behind the first 100 Kong knows nothing.
        """
        return self._call("kong.request.get_query_arg", name)

    def get_query(self, max_args: int | None = None) -> Headers:
        """The query's arguments.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param max_args: read no more than so many, 1 to 1000. Default 100.
        :returns: each name with the list of its decoded values; the list of an argument without
            ``=`` is empty.
        :raises ValueError: for a limit that Kong does not take.
        """
        check_limit("kong.request.get_query", "max_args", max_args)
        return self._call("kong.request.get_query", max_args) or {}

    def get_header(self, name: str) -> str | None:
        """A header's first value.

        Phases: rewrite, access, response, log. Since Kong 2.0. Kong 2.0.5 abandons a log event
        that calls it.

        :param name: the header's name, in any case.
        :returns: the value, None when it is not there.
        """
        return self._call("kong.request.get_header", name)

    def get_headers(self, max_headers: int | None = None) -> Headers:
        """The request's headers.

        Phases: rewrite, access, response, log. Since Kong 2.0.

        :param max_headers: read no more than so many, 1 to 1000. Default 100. In the log phase
            Kong gives up to 100, whatever is asked for.
        :returns: each name, in lower case, with the list of its values.
        :raises ValueError: for a limit that Kong does not take.
        """
        check_limit("kong.request.get_headers", "max_headers", max_headers)
        return self._call("kong.request.get_headers", max_headers) or {}

    def get_raw_body(self, max_allowed_file_size: int | None = None) -> bytes | None:
        """The request's body.

        Phases: rewrite, access, response. Since Kong 2.0.

        A body that does not fit nginx's ``client_body_buffer_size`` (8 KiB by default) is in a
        file: Kong 2.x answers with an error, and Kong 3.9 **abandons the event** over MsgPack,
        which ends the request with a 500. Raise that setting of Kong where bodies are read.

        :param max_allowed_file_size: let Kong read a body of up to so many bytes from its file;
            -1: any. Kongs that do not know it ignore it.
        :returns: the body; empty when there is none.
        :raises PDKError: for a body in a file, on Kong 2.x.
        """
        body = self._call("kong.request.get_raw_body", max_allowed_file_size)
        return body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body

    def get_body(
        self,
        mimetype: str | None = None,
        max_args: int | None = None,
        max_allowed_file_size: int | None = None,
    ) -> dict[str, Any] | list[Any] | None:
        """The request's body, decoded by Kong.

        Phases: rewrite, access, response. Since Kong 2.0.

        Kong abandons the event for a JSON body with a ``null`` in it (and 3.9 for one that does
        not fit its buffer, see :meth:`get_raw_body`). Where clients may send such, decode
        :meth:`get_raw_body` in the plugin.

        :param mimetype: decode as ``"application/json"``,
            ``"application/x-www-form-urlencoded"`` or ``"multipart/form-data"`` instead of what
            the request's ``Content-Type`` says.
        :param max_args: read no more than so many form arguments, 1 to 1000. Default 100.
        :param max_allowed_file_size: see :meth:`get_raw_body`.
        :returns: for forms a dict of str, True (without ``=``) or lists of these; for JSON the
            object or list. An empty one is ``[]``, as Lua cannot tell. None when Kong 3.9 cannot
            decode it.
        :raises ValueError: for a limit that Kong does not take.
        :raises PDKError: when Kong 2.x cannot decode it, or there is no content type.
        """
        check_limit("kong.request.get_body", "max_args", max_args)
        return self._call("kong.request.get_body", mimetype, max_args, max_allowed_file_size)

    def get_start_time(self) -> int | None:
        """When Kong began to handle the request.

        Phases: rewrite, access, response, log. Since Kong 3.0.

        :returns: milliseconds since 1970; None on a Kong that does not have the function.
        """
        return self._call("kong.request.get_start_time")

    def get_uri_captures(self) -> UriCaptures:
        """What the route's regular expression captured of the path.

        Phases: rewrite, access, response, log. Since Kong 3.1.

        :returns: ``{"unnamed": {0: whole, 1: …}, "named": {name: …}}``; both are empty for a route
            without captures, in rewrite (the route is not known yet), and on a Kong that does not
            have the function.
        """
        captures = self._call("kong.request.get_uri_captures") or {}
        unnamed = captures.get("unnamed") or {}
        if isinstance(unnamed, list):
            unnamed = dict(enumerate(unnamed, 1))
        return {"unnamed": unnamed, "named": captures.get("named") or {}}

    def get_forwareded_port(self) -> int:
        """Cannot be called: a misprint in Kong 2.0's documentation of :meth:`get_forwarded_port`.

        Phases: none. Since Kong 2.0.

        :raises PDKError: always.
        """
        return self._call("kong.request.get_forwareded_port")
