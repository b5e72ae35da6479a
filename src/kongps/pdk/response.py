"""``kong.response``: the response to the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk._check import check_headers, check_limit, check_range
from kongps.pdk.entities import Headers, HeaderValue

__all__ = ["Response"]


class Response(Namespace):
    """``kong.response``: the response to the client.

    What is set in rewrite and access is put on the response that later comes from the service.
    """

    __slots__ = ()

    def get_status(self) -> int:
        """The status that the client gets.

        Phases: response, log. Since Kong 2.0. Kong 2.0.5 abandons a log event that
        calls it.
        """
        return self._call("kong.response.get_status")

    def get_header(self, name: str) -> str | None:
        """The first value of a header that the client gets.

        Phases: response, log. Since Kong 2.0.

        :param name: the header's name, in any case.
        :returns: the value, None when it is not there.
        """
        return self._call("kong.response.get_header", name)

    def get_headers(self, max_headers: int | None = None) -> Headers:
        """The headers that the client gets.

        Phases: response, log. Since Kong 2.0.

        :param max_headers: read no more than so many, 1 to 1000. Default 100. In the log phase
            Kong gives up to 100, whatever is asked for.
        :returns: each name, in lower case, with the list of its values.
        :raises ValueError: for a limit that Kong does not take.
        """
        check_limit("kong.response.get_headers", "max_headers", max_headers)
        return self._call("kong.response.get_headers", max_headers) or {}

    def get_source(self) -> str:
        """Where the response comes from.

        Phases: response, log. Since Kong 2.0.

        :returns: ``"service"``; ``"exit"`` when a plugin ended the request; ``"error"`` when Kong
            did, such as for a service that cannot be reached.
        """
        return self._call("kong.response.get_source")

    def set_status(self, status: int) -> None:
        """Sets the status that the client gets.

        Phases: rewrite, access, response. Since Kong 2.0.

        Kong takes it in rewrite and access, but the service's status replaces it.

        :param status: 100 to 599.
        :raises ValueError: for another status.
        """
        check_range("kong.response.set_status", "status", status, 100, 599)
        self._call("kong.response.set_status", status)

    def set_header(self, name: str, value: HeaderValue) -> None:
        """Sets a header of the response, in place of all of that name.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param name: the header's name.
        :param value: its value; a list of strings makes one header of each. Of an empty string
            Kong makes a space. ``Transfer-Encoding`` is ignored.
        """
        self._call("kong.response.set_header", name, value)

    def add_header(self, name: str, value: HeaderValue) -> None:
        """Adds a header to the response and keeps those of that name.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param name: the header's name.
        :param value: its value; a list of strings makes one header of each.
        """
        self._call("kong.response.add_header", name, value)

    def clear_header(self, name: str) -> None:
        """Removes all headers of a name from the response.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param name: the header's name.
        """
        self._call("kong.response.clear_header", name)

    def set_headers(self, headers: Mapping[str, HeaderValue]) -> None:
        """Sets several headers, each in place of all of its name.

        Phases: rewrite, access, response. Since Kong 2.0.

        :param headers: names and values, as for :meth:`set_header`. A value that is itself a dict
            is taken by Kong and sets nothing.
        :raises TypeError: for a name that is no string, or a list of anything but strings.
        """
        check_headers("kong.response.set_headers", "headers", headers)
        self._call("kong.response.set_headers", headers)

    def get_raw_body(self) -> None:
        """Cannot be called from a plugin server; see ``kong.service.response.get_raw_body``.

        Phases: none. Since Kong 2.7.

        :raises PDKError: always.
        """
        self._call("kong.response.get_raw_body")

    def set_raw_body(self, body: str | bytes) -> None:
        """Cannot be called from a plugin server; see :meth:`exit`, which works in response.

        Phases: none. Since Kong 2.7.

        :raises PDKError: always.
        """
        self._call("kong.response.set_raw_body", body)

    def exit(
        self,
        status: int,
        body: str | bytes | Mapping[str, Any] | list[Any] | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> NoReturn:
        """Ends the request with a response of the plugin's own, and the handler with it.

        Phases: rewrite, access, response, preread. Since Kong 2.0.

        Nothing behind the call is run, ``finally`` blocks excepted. In rewrite and access the
        service is not asked; in response its answer is dropped.

        :param status: 100 to 599. In a stream session one of 200, 400, 403, 500, 502 and 503.
        :param body: str or bytes are sent as they are; a dict or list as JSON, with
            ``Content-Type: application/json`` unless `headers` has one. In a stream session str
            or bytes only.
        :param headers: headers of the response, as for :meth:`set_headers`.
        :raises ValueError: for another status.
        """
        check_range("kong.response.exit", "status", status, 100, 599)
        self._call("kong.response.exit", status, body, headers)
        raise AssertionError("kong.response.exit returned")

    def error(
        self,
        status: int,
        message: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> NoReturn:
        """Ends the request with an error in the form that the client accepts, and the handler.

        Phases: rewrite, access, response. Since Kong 2.1.

        The body is JSON, HTML, XML or plain text, or gRPC's headers, by the request's ``Accept``.

        :param status: 400 to 599.
        :param message: what the body says. Default: Kong's text for the status.
        :param headers: headers of the response, as for :meth:`set_headers`.
        :raises ValueError: for another status.
        """
        check_range("kong.response.error", "status", status, 400, 599)
        self._call("kong.response.error", status, message, headers)
        raise AssertionError("kong.response.error returned")
