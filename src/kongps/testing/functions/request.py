"""``kong.request``."""

from __future__ import annotations

from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.body import decoded_body, raw_body
from kongps.testing.functions.table import BODY, REQUEST, pdk
from kongps.testing.values import (
    BodyPath,
    Failure,
    LuaError,
    MultiMap,
    decode_query,
    normalize_path,
)


def _host(x: Exchange) -> str:
    return x.request.headers.get("host", x.request.host).partition(":")[0].lower()


def _forwarded_host(x: Exchange) -> str:
    return (x.forwarded("host") or _host(x)).partition(":")[0].lower()


def _forwarded_port(x: Exchange) -> Any:
    given = x.forwarded("port")
    if given and given.isdigit():
        return int(given)
    port = x.request.headers.get("host", "").partition(":")[2]
    if port.isdigit():
        # Between 2.3 and 3.0 the port of the Host header came as it stood there.
        return port if (2, 3) <= x.version.number < (3, 0) else int(port)
    return x.request.port


def _path(x: Exchange) -> str:
    path = x.request.raw_path
    return normalize_path(path) if x.version.number >= (3, 0) else path


# Values of the request that can be read in each of its phases but log, with the version in which
# each function came.
for _name, _since, _get in (
    ("get_scheme", "2.0", lambda x: x.request.scheme),
    ("get_host", "2.0", _host),
    ("get_forwarded_scheme", "2.0", lambda x: (x.forwarded("proto") or x.request.scheme).lower()),
    ("get_forwarded_host", "2.0", _forwarded_host),
    ("get_forwarded_port", "2.0", _forwarded_port),
    ("get_forwarded_path", "2.1", lambda x: x.forwarded("path") or x.request.raw_path),
    ("get_forwarded_prefix", "2.2", lambda x: x.forwarded("prefix") or x.stripped_prefix()),
    ("get_http_version", "2.0", lambda x: x.request.http_version),
    ("get_method", "2.0", lambda x: x.request.method),
    ("get_path", "2.0", _path),
    ("get_raw_path", "3.0", lambda x: x.request.raw_path),
    ("get_path_with_query", "2.0", lambda x: x.request.uri),
    ("get_raw_query", "2.0", lambda x: x.request.query),
):
    pdk(f"kong.request.{_name}", REQUEST, since=_since, not_in_log=True)(_get)
pdk("kong.request.get_port", f"certificate, {REQUEST}", not_in_log=True)(lambda x: x.request.port)
pdk("kong.request.get_start_time", REQUEST, since="3.0")(lambda x: int(x.started * 1000))
pdk("kong.request.get_uri_captures", REQUEST, since="3.1")(lambda x: x.captures)


@pdk("kong.request.get_query_arg", REQUEST)
def _query_arg(x: Exchange, name: Any) -> Any:
    wanted = check.string(name, "query argument name")
    check.in_request(x)
    return next((value for key, value in decode_query(x.query, 100) if key == wanted), None)


@pdk("kong.request.get_query", REQUEST, step="StepMultiMap")
def _get_query(x: Exchange, max_args: Any = None) -> MultiMap:
    limit = check.limit(max_args, "max_args")
    check.in_request(x)
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
    # nginx has one set of request headers: what a plugin changed for the service is what the
    # next reader sees.
    return x.service_headers.get(check.string(name, "header name"))


@pdk("kong.request.get_headers", REQUEST, step="StepMultiMap")
def _get_headers(x: Exchange, max_headers: Any = None) -> MultiMap:
    limit = 0 if x.phase == "log" else check.limit(max_headers, "max_headers")
    return MultiMap(x.service_headers.multi(limit))


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
    return raw_body(x, _buffered_body(x))


@pdk("kong.request.get_body", BODY)
def _get_body(x: Exchange, mimetype: Any = None, max_args: Any = None, size: Any = None) -> Any:
    content_type = x.service_headers.get("content-type") if mimetype is None else mimetype
    return decoded_body(content_type, max_args, lambda: _buffered_body(x))
