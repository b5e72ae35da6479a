"""The table of ``kong.log.serialize``."""

from __future__ import annotations

import time
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.values import Headers, query_table, single_or_list


def serialized(x: Exchange) -> dict[str, Any]:
    """What ``kong.log.serialize`` makes of a request in the log phase."""
    request = x.request
    sent = x.result.service_request
    authority = request.headers.get("host", request.host).partition(":")[0]
    found: dict[str, Any] = {
        "client_ip": x.forwarded_ip,
        "started_at": int(x.started * 1000),
        "upstream_uri": sent.path if sent else (x.path or ""),
        "request": {
            "method": request.method,
            "uri": request.uri,
            "url": f"{request.scheme}://{authority}:{request.port}{request.uri}",
            "querystring": query_table(x.query),
            "headers": single_or_list(x.service_headers.multi()),
            "size": _size(request.headers, request.body),
        },
        "response": {
            "status": x.status,
            "headers": single_or_list(x.headers.multi()),
            "size": _size(x.headers, x.response_body),
        },
        "latencies": _latencies(x),
        "tries": (x.ctx.get("balancer_data") or {}).get("tries", []),
    }
    entities = {"route": x.route_entity(), "service": x.service_entity(), "consumer": x.consumer}
    found.update((name, entity) for name, entity in entities.items() if entity is not None)
    if x.credential is not None:
        keys = ("id", "consumer_id")
        found["authenticated_entity"] = {key: x.credential.get(key) for key in keys}
    if x.version.number >= (3, 0):
        found["workspace"] = x.kong.workspace_id
        found["workspace_name"] = "default"
        found["source"] = "upstream" if x.result.source == "service" else "kong"
        if x.version.knows("3.5"):
            found["request"]["id"] = x.request_id
        if x.service_response is not None:
            found["upstream_status"] = x.service_response.status
    for key, value in x.serialized.items():
        _set(found, key, value)
    return found


def _size(headers: Headers, body: bytes) -> int:
    return len(body) + sum(len(f"{name}: {value}\r\n") for name, value in headers.lines())


def _latencies(x: Exchange) -> dict[str, int]:
    total = int((time.perf_counter() - x.clock) * 1000)
    proxied = int(x.proxied_seconds * 1000)
    found = {
        "kong": max(total - proxied, 0),
        "proxy": proxied if x.result.service_request else -1,
        "request": total,
    }
    return {**found, "receive": 0} if x.version.number >= (3, 0) else found


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    """Set what a plugin added; a key such as ``a.b`` is one in an inner table, None removes."""
    *parents, last = key.split(".")
    for part in parents:
        inner = table.get(part)
        if not isinstance(inner, dict):
            inner = table[part] = {}
        table = inner
    if value is None:
        table.pop(last, None)
    else:
        table[last] = value
