"""``kong.request``."""

from __future__ import annotations

from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions.body import decode_body
from kongps.testing.functions.table import (
    BODY,
    CONTENT_TYPES,
    REQUEST,
    as_text,
    check_limit,
    check_string,
    in_request,
    pdk,
)
from kongps.testing.values import (
    BodyPath,
    Failure,
    Headers,
    LuaError,
    MultiMap,
    decode_query,
    normalize_path,
    text,
)


@pdk("kong.request.get_scheme", REQUEST, not_in_log=True)
def _scheme(x: Exchange) -> str:
    return x.request.scheme


def _host(x: Exchange) -> str:
    return x.request.headers.get("host", x.request.host).partition(":")[0].lower()


@pdk("kong.request.get_host", REQUEST, not_in_log=True)
def _get_host(x: Exchange) -> str:
    return _host(x)


@pdk("kong.request.get_port", f"certificate, {REQUEST}", not_in_log=True)
def _get_port(x: Exchange) -> int:
    return x.request.port


@pdk("kong.request.get_forwarded_scheme", REQUEST, not_in_log=True)
def _forwarded_scheme(x: Exchange) -> str:
    return (x.forwarded("proto") or x.request.scheme).lower()


@pdk("kong.request.get_forwarded_host", REQUEST, not_in_log=True)
def _forwarded_host(x: Exchange) -> str:
    return (x.forwarded("host") or _host(x)).partition(":")[0].lower()


@pdk("kong.request.get_forwarded_port", REQUEST, not_in_log=True)
def _request_forwarded_port(x: Exchange) -> Any:
    given = x.forwarded("port")
    if given and given.isdigit():
        return int(given)
    port = x.request.headers.get("host", "").partition(":")[2]
    if port.isdigit():
        # Between 2.3 and 3.0 the port of the Host header came as it stood there.
        return port if (2, 3) <= x.version.number < (3, 0) else int(port)
    return x.request.port


@pdk("kong.request.get_forwarded_path", REQUEST, since="2.1", not_in_log=True)
def _forwarded_path(x: Exchange) -> str:
    return x.forwarded("path") or x.request.raw_path


@pdk("kong.request.get_forwarded_prefix", REQUEST, since="2.2", not_in_log=True)
def _forwarded_prefix(x: Exchange) -> Any:
    return x.forwarded("prefix") or x.stripped_prefix()


@pdk("kong.request.get_http_version", REQUEST, not_in_log=True)
def _http_version(x: Exchange) -> float:
    return x.request.http_version


@pdk("kong.request.get_method", REQUEST, not_in_log=True)
def _get_method(x: Exchange) -> str:
    return x.request.method


@pdk("kong.request.get_path", REQUEST, not_in_log=True)
def _get_path(x: Exchange) -> str:
    path = x.request.raw_path
    return normalize_path(path) if x.version.number >= (3, 0) else path


@pdk("kong.request.get_raw_path", REQUEST, since="3.0", not_in_log=True)
def _get_raw_path(x: Exchange) -> str:
    return x.request.raw_path


@pdk("kong.request.get_path_with_query", REQUEST, not_in_log=True)
def _path_with_query(x: Exchange) -> str:
    return x.request.uri


@pdk("kong.request.get_raw_query", REQUEST, not_in_log=True)
def _raw_query(x: Exchange) -> str:
    return x.request.query


@pdk("kong.request.get_query_arg", REQUEST)
def _query_arg(x: Exchange, name: Any) -> Any:
    wanted = check_string(name, "query argument name")
    in_request(x)
    return next((value for key, value in decode_query(x.query, 100) if key == wanted), None)


@pdk("kong.request.get_query", REQUEST, step="StepMultiMap")
def _get_query(x: Exchange, max_args: Any = None) -> MultiMap:
    limit = check_limit(max_args, "max_args")
    in_request(x)
    found = MultiMap()
    for name, value in decode_query(x.query, limit):
        values = found.setdefault(name, [])
        if value is not True:
            values.append(value)
    return found


@pdk("kong.request.get_header", REQUEST)
def _get_header(x: Exchange, name: Any) -> Any:
    if x.phase == "log" and x.version.number >= (3, 0) and not isinstance(name, (str, bytes)):
        return None
    return _current_headers(x).get(check_string(name, "header name"))


@pdk("kong.request.get_headers", REQUEST, step="StepMultiMap")
def _get_headers(x: Exchange, max_headers: Any = None) -> MultiMap:
    if x.phase == "log":
        return MultiMap(_current_headers(x).multi())
    return MultiMap(_current_headers(x).multi(check_limit(max_headers, "max_headers")))


def _current_headers(x: Exchange) -> Headers:
    # nginx has one set of request headers: what a plugin changed for the service is what the
    # next reader sees.
    return x.service_headers


def _buffered_body(x: Exchange) -> bytes | Failure:
    if len(x.request.body) > x.kong.body_buffer_size:
        if x.version.binary_bodies:
            raise LuaError(
                "the request body did not fit into nginx's body buffer", drops_connection=True
            )
        return Failure(
            "request body did not fit into client body buffer, "
            "consider raising 'client_body_buffer_size'"
        )
    return x.body


@pdk("kong.request.get_raw_body", BODY)
def _get_raw_body(x: Exchange, max_size: Any = None) -> Any:
    if len(x.request.body) > x.kong.body_buffer_size and x.kong.protocol == "protobuf":
        return BodyPath(x.body_file())
    body = _buffered_body(x)
    return body if isinstance(body, Failure) else as_text(body, x)


@pdk("kong.request.get_body", BODY)
def _get_body(x: Exchange, mimetype: Any = None, max_args: Any = None, size: Any = None) -> Any:
    content_type = mimetype
    if content_type is None:
        content_type = x.service_headers.get("content-type")
        if content_type is None:
            return Failure("missing content type")
    limit = check_limit(max_args, "max_args") if max_args is not None else 100
    kind = check_string(content_type, "mimetype").partition(";")[0].strip().lower()
    if kind not in CONTENT_TYPES:
        return Failure(f"unsupported content type '{text(content_type)}'")
    body = _buffered_body(x)
    if isinstance(body, Failure):
        return body
    return decode_body(body, kind, text(content_type), limit)


@pdk("kong.request.get_start_time", REQUEST, since="3.0")
def _start_time(x: Exchange) -> int:
    return int(x.started * 1000)


@pdk("kong.request.get_uri_captures", REQUEST, since="3.1")
def _uri_captures(x: Exchange) -> dict[str, Any]:
    return x.captures
