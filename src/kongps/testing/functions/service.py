"""``kong.router`` and ``kong.service``."""

from __future__ import annotations

from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.body import CONTENT_TYPES, decoded_body, media_type, raw_body
from kongps.testing.functions.table import (
    ACCESS,
    BALANCER,
    ROUTED,
    SERVICE_RESPONSE,
    TO_SERVICE,
    TO_SERVICE_EARLY,
    pdk,
)
from kongps.testing.values import (
    Failure,
    LuaError,
    MultiMap,
    decode_query,
    encode_query,
    json_text,
    lua_tostring,
    lua_type,
    lua_value,
    to_bytes,
)

_METHODS = (
    *("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "MKCOL", "COPY"),
    *("MOVE", "PROPFIND", "PROPPATCH", "LOCK", "UNLOCK"),
)


pdk("kong.router.get_route", ROUTED, step="StepRoute")(lambda x: x.route_entity())
pdk("kong.router.get_service", ROUTED, step="StepService")(lambda x: x.service_entity())


@pdk("kong.service.set_upstream", ACCESS)
def _set_upstream(x: Exchange, host: Any) -> Any:
    name = check.string(host, "host")
    if name not in x.kong.upstreams:
        return Failure(f"could not find an Upstream named '{name}'")
    x.target = (name, x.target[1] if x.target else 80)
    x.host_header = name
    x.ctx["balancer_data"]["host"] = name
    return True


@pdk("kong.service.set_target", BALANCER)
def _set_target(x: Exchange, host: Any, port: Any) -> None:
    name = check.string(host, "host")
    number = check.integer(port, "port", 0, 65535)
    if "balancer_data" not in x.ctx and x.subsystem == "http":
        raise LuaError("attempt to index field 'balancer_data' (a nil value)")
    x.target = (name, number)
    if isinstance(x.ctx.get("balancer_data"), dict):
        x.ctx["balancer_data"].update(host=name, port=number)


@pdk("kong.service.set_retries", ACCESS, since="3.8")
def _set_retries(x: Exchange, retries: Any) -> None:
    x.ctx["balancer_data"]["retries"] = check.integer(retries, "retries", 0, 32767)


@pdk("kong.service.set_timeouts", ACCESS, since="3.8")
def _set_timeouts(x: Exchange, connect: Any, write: Any, read: Any) -> None:
    x.ctx["balancer_data"].update(
        connect_timeout=check.integer(connect, "connect_timeout", 1, 2147483646),
        send_timeout=check.integer(write, "write_timeout", 1, 2147483646),
        read_timeout=check.integer(read, "read_timeout", 1, 2147483646),
    )


@pdk("kong.service.set_tls_verify", BALANCER, since="2.1")
def _set_tls_verify(x: Exchange, on: Any) -> Any:
    if not isinstance(on, bool):
        raise LuaError("argument must be a boolean")
    return True


@pdk("kong.service.set_tls_verify_depth", BALANCER, since="2.1")
def _set_tls_verify_depth(x: Exchange, depth: Any) -> Any:
    if lua_type(depth) != "number":
        raise LuaError("argument must be a number")
    return True


@pdk("kong.service.request.enable_buffering", TO_SERVICE)
def _enable_buffering(x: Exchange) -> None:
    x.buffered = True


@pdk("kong.service.request.set_scheme", TO_SERVICE)
def _set_scheme(x: Exchange, scheme: Any) -> None:
    name = check.string(scheme, "scheme")
    if name not in ("http", "https", "ws", "wss", "grpc", "grpcs"):
        raise LuaError(f"invalid scheme: {name}")
    x.scheme = name


@pdk("kong.service.request.set_path", TO_SERVICE)
def _set_path(x: Exchange, path: Any) -> None:
    given = check.string(path, "path")
    if not given.startswith("/"):
        raise LuaError("path must start with /")
    # The router fills in the path after rewrite, whatever was set there.
    if x.phase != "rewrite":
        x.path = given


@pdk("kong.service.request.set_raw_query", TO_SERVICE_EARLY)
def _set_raw_query(x: Exchange, query: Any) -> None:
    x.query = check.string(query, "query")


@pdk("kong.service.request.set_method", TO_SERVICE_EARLY)
def _set_method(x: Exchange, method: Any) -> None:
    name = check.string(method, "method")
    if name not in _METHODS:
        raise LuaError(f"invalid method: {name}")
    x.method = name


@pdk("kong.service.request.set_query", TO_SERVICE_EARLY)
def _set_query(x: Exchange, args: Any) -> None:
    found = check.table(args, "args")
    x.query = encode_query({lua_tostring(name): value for name, value in found.items()})


@pdk("kong.service.request.clear_query_arg", TO_SERVICE_EARLY, since="3.9")
def _clear_query_arg(x: Exchange, name: Any) -> None:
    wanted = check.string(name, "query argument name")
    parts = x.query.split("&")
    kept = [part for part in parts if all(key != wanted for key, _ in decode_query(part))]
    x.query = "&".join(kept)


def _to_service(x: Exchange, name: Any, value: Any, change: str) -> None:
    found, item = check.header(name, value)
    if found.lower() == "host":
        x.host_header = item[0] if isinstance(item, list) and item else lua_tostring(item)
        return
    getattr(x.service_headers, change)(found, item)


@pdk("kong.service.request.set_header", TO_SERVICE)
def _service_set_header(x: Exchange, name: Any, value: Any = None) -> None:
    _to_service(x, name, value, "set")


@pdk("kong.service.request.add_header", TO_SERVICE_EARLY)
def _service_add_header(x: Exchange, name: Any, value: Any = None) -> None:
    _to_service(x, name, value, "add")


@pdk("kong.service.request.clear_header", TO_SERVICE_EARLY)
def _service_clear_header(x: Exchange, name: Any) -> None:
    x.service_headers.remove(check.string(name, "header name"))


@pdk("kong.service.request.set_headers", TO_SERVICE_EARLY)
def _service_set_headers(x: Exchange, headers: Any) -> None:
    for name, value in check.headers(headers).items():
        _to_service(x, name, value, "set")


@pdk("kong.service.request.set_raw_body", TO_SERVICE)
def _service_set_raw_body(x: Exchange, body: Any) -> None:
    if not isinstance(body, (str, bytes)):
        raise LuaError("body must be a string")
    x.body = to_bytes(body)
    x.service_headers.set("Content-Length", str(len(x.body)))


@pdk("kong.service.request.set_body", TO_SERVICE_EARLY)
def _service_set_body(x: Exchange, args: Any, mimetype: Any = None) -> Any:
    found = check.table(args, "args")
    content_type = x.service_headers.get("content-type", "")
    if mimetype is not None:
        content_type = check.string(mimetype, "mime")
    kind = media_type(content_type)
    if kind not in CONTENT_TYPES:
        return Failure(f"unsupported content type '{content_type}'")
    if kind == "application/json":
        body = to_bytes(json_text(lua_value(args) or {}))
    elif kind == "multipart/form-data":
        boundary = "8fd84e9444e3946c"
        content_type = f"multipart/form-data; boundary={boundary}"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{lua_tostring(name)}"'
            f"\r\n\r\n{lua_tostring(value)}\r\n"
            for name, value in found.items()
        ]
        body = to_bytes("".join(parts) + f"--{boundary}--\r\n")
    else:
        body = to_bytes(encode_query({lua_tostring(k): v for k, v in found.items()}))
    x.body = body
    x.service_headers.set("Content-Type", content_type)
    x.service_headers.set("Content-Length", str(len(body)))
    return True


def _answered(x: Exchange) -> Any:
    if x.service_response is None:
        return None
    if x.phase == "log" and not x.buffered:
        raise LuaError("API disabled in the current context")
    return x.service_response


@pdk("kong.service.response.get_status", SERVICE_RESPONSE)
def _service_status(x: Exchange) -> Any:
    found = _answered(x)
    return found.status if found else None


@pdk("kong.service.response.get_header", SERVICE_RESPONSE)
def _service_header(x: Exchange, name: Any) -> Any:
    wanted = check.string(name, "header name")
    found = _answered(x)
    return found.headers.get(wanted) if found else None


@pdk("kong.service.response.get_headers", SERVICE_RESPONSE, step="StepMultiMap")
def _service_headers(x: Exchange, max_headers: Any = None) -> MultiMap:
    limit = check.limit(max_headers, "max_headers")
    found = _answered(x)
    # With a buffered response the recorded Kongs give an empty map here.
    if found is None or x.buffered:
        return MultiMap()
    return MultiMap(found.headers.multi(limit))


def _buffered_response(x: Exchange) -> bytes | None:
    if x.service_response is None:
        return None
    if not x.buffered:
        raise LuaError("service body is only available with buffered proxying")
    return x.service_response.body


@pdk("kong.service.response.get_raw_body", SERVICE_RESPONSE)
def _service_raw_body(x: Exchange) -> Any:
    return raw_body(x, _buffered_response(x))


@pdk("kong.service.response.get_body", SERVICE_RESPONSE)
def _service_body(x: Exchange, mimetype: Any = None, max_args: Any = None) -> Any:
    body = _buffered_response(x)
    if body is None or x.service_response is None:
        return None
    content_type = mimetype or x.service_response.headers.get("content-type")
    return decoded_body(content_type, None, lambda: body)
