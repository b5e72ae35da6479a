"""The PDK: what a plugin's handler can ask of Kong.

A handler gets a :class:`Kong` and calls it as a Lua or Go plugin would::

    def access(self, kong):
        if kong.request.get_header("x-key") is None:
            kong.response.exit(401, {"message": "no key"})
        kong.service.request.set_header("x-checked", "yes")

Each call is one question to Kong and waits for the answer. Every method raises

* :class:`kongps.PDKError` when Kong answers with an error, when the phase does not allow the
  function, or when no plugin server can call it;
* :class:`TypeError` or :class:`ValueError`, naming function and argument, for an argument that
  Kong would not take.

The last two are raised before anything is sent: Kong would silently abandon the event. A
function that the Kong at hand is too old for returns None (Kong logs that it does not know it).
"""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace, namespace
from kongps.pdk.client import TLS, Client
from kongps.pdk.cluster import Cluster
from kongps.pdk.ctx import Ctx, PluginCtx, SharedCtx
from kongps.pdk.entities import (
    Consumer,
    Credential,
    Headers,
    HeaderValue,
    MemoryStats,
    NginxStatistics,
    Route,
    Service,
    UriCaptures,
    VaultReference,
)
from kongps.pdk.functions import FUNCTIONS
from kongps.pdk.ip import IP
from kongps.pdk.log import Inspect, Log
from kongps.pdk.nginx import Nginx
from kongps.pdk.node import Node
from kongps.pdk.plugin import PluginNamespace
from kongps.pdk.request import Request
from kongps.pdk.response import Response
from kongps.pdk.router import Router
from kongps.pdk.service import ServiceNamespace, ServiceRequest, ServiceResponse
from kongps.pdk.table import Table
from kongps.pdk.telemetry import Telemetry
from kongps.pdk.tracing import Tracing
from kongps.pdk.vault import Vault

__all__ = [
    "Client",
    "Cluster",
    "Consumer",
    "Credential",
    "Ctx",
    "FUNCTIONS",
    "HeaderValue",
    "Headers",
    "IP",
    "Inspect",
    "Kong",
    "Log",
    "MemoryStats",
    "Nginx",
    "NginxStatistics",
    "Node",
    "PluginCtx",
    "PluginNamespace",
    "Request",
    "Response",
    "Route",
    "Router",
    "Service",
    "ServiceNamespace",
    "ServiceRequest",
    "ServiceResponse",
    "SharedCtx",
    "TLS",
    "Table",
    "Telemetry",
    "Tracing",
    "UriCaptures",
    "Vault",
    "VaultReference",
]


class Kong(Namespace):
    """``kong``: what a handler gets; good for the event it was made for."""

    __slots__ = ()

    client = namespace(Client)
    cluster = namespace(Cluster)
    ctx = namespace(Ctx)
    ip = namespace(IP)
    log = namespace(Log)
    nginx = namespace(Nginx)
    node = namespace(Node)
    plugin = namespace(PluginNamespace)
    request = namespace(Request)
    response = namespace(Response)
    router = namespace(Router)
    service = namespace(ServiceNamespace)
    table = namespace(Table)
    telemetry = namespace(Telemetry)
    tracing = namespace(Tracing)
    vault = namespace(Vault)
