"""PDK functions whose answer stays the same for a whole event, so that Kong is asked only once.

One row for each function, with the functions that do change its answer: a call of one of those
drops the cached answer. Only answers that a plugin cannot change itself (texts, numbers, booleans,
nil) are cached, so functions that return tables are not here. Nor are those whose answer depends on
what Kong does meanwhile.
"""

from __future__ import annotations

_HEADER_SETTERS = ("set_header", "add_header", "clear_header", "set_headers")
_REQUEST_HEADER_SETTERS = tuple(f"kong.service.request.{name}" for name in _HEADER_SETTERS)
_RESPONSE_HEADER_SETTERS = tuple(f"kong.response.{name}" for name in _HEADER_SETTERS)
_QUERY_SETTERS = tuple(
    f"kong.service.request.{name}" for name in ("set_raw_query", "set_query", "clear_query_arg")
)

ASKED_ONCE: dict[str, tuple[str, ...]] = {
    # The client's connection stays the same.
    "kong.client.get_ip": (),
    "kong.client.get_port": (),
    "kong.client.get_forwarded_ip": (),
    "kong.client.get_forwarded_port": (),
    "kong.request.get_scheme": (),
    "kong.request.get_port": (),
    "kong.request.get_http_version": (),
    # The request line as the client sent it; setters write what goes to the service.
    "kong.request.get_path": (),
    "kong.request.get_raw_path": (),
    "kong.request.get_path_with_query": (),
    # Read from the request that nginx holds, which setters do change.
    "kong.request.get_method": ("kong.service.request.set_method",),
    "kong.request.get_raw_query": _QUERY_SETTERS,
    "kong.request.get_query_arg": _QUERY_SETTERS,
    "kong.request.get_header": _REQUEST_HEADER_SETTERS,
    # Host and X-Forwarded-… are headers of the request.
    "kong.request.get_host": _REQUEST_HEADER_SETTERS,
    "kong.request.get_forwarded_scheme": _REQUEST_HEADER_SETTERS,
    "kong.request.get_forwarded_host": _REQUEST_HEADER_SETTERS,
    "kong.request.get_forwarded_port": _REQUEST_HEADER_SETTERS,
    "kong.request.get_forwarded_path": _REQUEST_HEADER_SETTERS,
    "kong.request.get_forwarded_prefix": _REQUEST_HEADER_SETTERS,
    # Fixed when the request began.
    "kong.request.get_start_time": (),
    "kong.nginx.req_start_time": (),
    "kong.nginx.get_subsystem": (),
    "kong.nginx.get_var": (),
    "kong.plugin.get_id": (),
    # The service has answered; setters write what goes to the client, in the same place.
    "kong.service.response.get_status": (),
    "kong.service.response.get_header": _RESPONSE_HEADER_SETTERS,
    # Kong itself.
    "kong.cluster.get_id": (),
    "kong.node.get_id": (),
    "kong.node.get_hostname": (),
}

# For these arguments only: other variables of nginx change.
ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "kong.nginx.get_var": (("request_id",), ("kong_request_id",)),
}
