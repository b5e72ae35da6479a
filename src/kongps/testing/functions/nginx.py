"""``kong.nginx``, ``kong.node`` and ``kong.plugin``."""

from __future__ import annotations

from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.table import as_key, pdk, put
from kongps.testing.values import (
    Failure,
    LuaError,
    decode_query,
    lua_tostring,
    lua_type,
    normalize_path,
)

pdk("kong.nginx.get_ctx")(lambda x, key: x.ctx.get(as_key(key)))
pdk("kong.nginx.set_ctx", since="2.3")(lambda x, key, value=None: put(x.ctx, key, value))
pdk("kong.nginx.req_start_time")(lambda x: int(x.started * 1000) / 1000)
pdk("kong.nginx.get_subsystem")(lambda x: x.subsystem)
pdk("kong.node.get_id")(lambda x: x.kong.node_id)
pdk("kong.node.get_hostname", since="2.3")(lambda x: x.kong.hostname)
pdk("kong.plugin.get_id", since="3.3")(lambda x: x.plugin.id if x.plugin else None)


@pdk("kong.nginx.get_var", not_in_log=True)
def _get_var(x: Exchange, name: Any) -> Any:
    name = check.string(name, "name")
    kong, request = x.kong, x.request
    if name in kong.nginx_vars:
        return kong.nginx_vars[name]
    if name.startswith("http_"):
        given = request.headers.all(name[5:].replace("_", "-"))
        return ", ".join(given) if given else None
    if name.startswith("arg_"):
        return next((v for k, v in decode_query(x.query) if k == name[4:] and v is not True), None)
    values = {
        "args": x.query,
        "content_length": request.headers.get("content-length"),
        "content_type": request.headers.get("content-type"),
        "host": request.headers.get("host", request.host).partition(":")[0].lower(),
        "hostname": kong.hostname,
        "https": "on" if request.scheme == "https" else "",
        "is_args": "?" if x.query else "",
        "method": request.method,
        "query_string": x.query,
        "realip_remote_addr": request.client_ip,
        "realip_remote_port": str(request.client_port),
        "remote_addr": x.forwarded_ip,
        "remote_port": str(request.client_port),
        "request": f"{request.method} {request.uri} HTTP/{request.http_version}",
        "request_id": x.request_id,
        "request_method": request.method,
        "request_uri": request.uri,
        "scheme": request.scheme,
        "server_port": str(request.port),
        "server_protocol": f"HTTP/{request.http_version}",
        "uri": normalize_path(request.raw_path),
    }
    return values.get(name)


@pdk("kong.nginx.get_tls1_version_str")
def _tls_version(x: Exchange) -> Any:
    if x.request.scheme == "https" and x.phase != "log":
        return "TLSv1.3"
    return Failure("bad request")


@pdk("kong.nginx.get_statistics", since="3.0")
def _statistics(x: Exchange) -> dict[str, int]:
    total = x.kong.requests_seen
    return {
        "connections_active": 1,
        "connections_reading": 0,
        "connections_writing": 1,
        "connections_waiting": 0,
        "connections_accepted": total,
        "connections_handled": total,
        "total_requests": total,
    }


_UNITS = {"k": (10, "KiB"), "m": (20, "MiB"), "g": (30, "GiB"), "b": (0, "B")}


@pdk("kong.node.get_memory_stats", step="StepMemoryStats")
def _memory_stats(x: Exchange, unit: Any = None, scale: Any = None) -> Any:
    if unit is not None and (not isinstance(unit, str) or unit.lower() not in _UNITS):
        raise LuaError(f"invalid unit '{lua_tostring(unit)}' (expected 'k/K', 'm/M', or 'g/G')")
    if scale is not None and lua_type(scale) != "number":
        raise LuaError("scale must be a number")
    digits = 2 if scale is None else int(scale)

    def shown(size: int) -> Any:
        if unit is None or unit.lower() == "b":
            return size
        shift, name = _UNITS[unit.lower()]
        return f"{size / (1 << shift):.{digits}f} {name}"

    vm = "http_allocated_gc" if x.subsystem == "http" else "stream_allocated_gc"
    return {
        "workers_lua_vms": [{vm: shown(45 << 20), "pid": x.kong.worker_pid}],
        "lua_shared_dicts": {
            name: {"allocated_slabs": shown(slabs), "capacity": shown(capacity)}
            for name, slabs, capacity in (
                ("kong", 40960, 5242880),
                ("kong_locks", 61440, 8388608),
                ("kong_healthchecks", 40960, 5242880),
                ("kong_cluster_events", 40960, 5242880),
                ("kong_rate_limiting_counters", 86016, 12582912),
                ("kong_core_db_cache", 212992, 33554432),
                ("kong_core_db_cache_miss", 86016, 12582912),
                ("kong_db_cache", 204800, 33554432),
                ("kong_db_cache_miss", 86016, 12582912),
                ("kong_secrets", 40960, 5242880),
            )
        },
    }
