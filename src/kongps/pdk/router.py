"""``kong.router``: where the request was routed."""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk.entities import Route, Service

__all__ = ["Router"]


class Router(Namespace):
    """``kong.router``: where the request was routed."""

    __slots__ = ()

    def get_route(self) -> Route | None:
        """The route that matched the request.

        Phases: access, response, log. Since Kong 2.0. Kong 2.x abandons a log event that calls it.

        :returns: the route, None when the request matched none.
        """
        return self._call("kong.router.get_route")

    def get_service(self) -> Service | None:
        """The service to which the request goes.

        Phases: access, response, log. Since Kong 2.0. Kong 2.x abandons a log event that calls it.

        :returns: the service, None for a route without one.
        """
        return self._call("kong.router.get_service")
