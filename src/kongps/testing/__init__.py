"""A stand-in for Kong, to test plugins and plugin servers without a gateway.

:class:`Kong` takes HTTP requests, runs a plugin's phases for them in Kong's order, answers its PDK
calls as Kong does, and reports what happened to each request. See ``docs/testing.md``.
"""

from __future__ import annotations

from kongps.testing.entities import (
    Call,
    Consumer,
    Event,
    LogLine,
    PluginConfig,
    Request,
    Response,
    Result,
    Route,
    Service,
)
from kongps.testing.gateway import Kong
from kongps.testing.values import Headers

__all__ = [
    "Call",
    "Consumer",
    "Event",
    "Headers",
    "Kong",
    "LogLine",
    "PluginConfig",
    "Request",
    "Response",
    "Result",
    "Route",
    "Service",
]
