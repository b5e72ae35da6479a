"""The table of PDK functions: what may be called, with what, and in which phases.

Kong silently abandons an event when a PDK function is called in a wrong phase or with a
wrong argument, so every call is checked against this table before it is sent. The phases are
those in which a real gateway answers a *plugin server*. They differ from Kong's documentation
where a recording of Kong 3.9 does: most request functions need nginx's request, which is gone
when the log event runs in its timer; ``kong.response.exit`` works in response;
``kong.service.set_target`` fails in rewrite. The functions that read the connection or look at no
phase at all are allowed in ``preread`` too.

Calling a function of the Lua PDK that no plugin server can use raises :class:`kongps.PDKError` with
the reason that the second table gives.
"""

from __future__ import annotations

from kongps.core.wire.function import Function, ask_once, register
from kongps.pdk.asked_once import ASKED_ONCE, ONLY

__all__ = ["FUNCTIONS"]

_ALL = ("certificate", "rewrite", "access", "response", "preread", "log")
# Functions that read nginx's variables of the connection; the log event has none.
_CONNECTION = ("certificate", "rewrite", "access", "response", "preread")
_REQUEST = ("rewrite", "access", "response")
# Kong keeps these for the log event.
_REQUEST_AND_LOG = ("rewrite", "access", "response", "log")
_AUTHENTICATED = ("access", "response", "log")
_TO_CLIENT = ("rewrite", "access", "response")
_FROM_SERVICE = ("response", "log")
_TO_SERVICE = ("rewrite", "access")

_TERMINAL = {"kong.response.exit", "kong.response.error"}  # they end the request and the handler

_HEADER = "string|number|boolean|string[]"
_LOG = "...: any"
_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")

_BODY_FILTER = "it works in the body_filter phase alone, which Kong does not give to plugin servers"
_NO_PLUGIN_CTX = (
    "Kong has no kong.ctx.plugin for plugin servers; use kong.ctx.shared with a key that carries "
    "the plugin's name"
)
_TRACER = "it is a method of Kong's tracer, and a plugin server can call functions only"
_LUA_FUNCTION = "it takes a Lua function, which a plugin server cannot send"
_SPAN = (
    "spans are Lua objects that stay inside Kong; trace in the plugin with a library of your own, "
    "taking the trace's id from the request's headers"
)

# Name, parameters, phases, and the Kong that had it first.
_CALLABLE: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("kong.client.get_ip", "", _CONNECTION, "2.0"),
    ("kong.client.get_forwarded_ip", "", _CONNECTION, "2.0"),
    ("kong.client.get_port", "", _CONNECTION, "2.0"),
    ("kong.client.get_forwarded_port", "", _CONNECTION, "2.0"),
    ("kong.client.get_credential", "", _AUTHENTICATED, "2.0"),
    ("kong.client.get_consumer", "", _AUTHENTICATED, "2.0"),
    (
        "kong.client.load_consumer",
        "consumer_id: string, search_by_username?: boolean",
        _AUTHENTICATED,
        "2.0",
    ),
    ("kong.client.authenticate", "consumer?: table, credential?: table", ("access",), "2.0"),
    ("kong.client.get_protocol", "allow_terminated?: boolean", ("access", "response"), "2.0"),
    ("kong.client.tls.request_client_certificate", "", ("certificate",), "2.1"),
    ("kong.client.tls.disable_session_reuse", "", ("certificate",), "2.1"),
    ("kong.client.tls.get_full_client_certificate_chain", "", _REQUEST, "2.1"),
    ("kong.client.tls.set_client_verify", "result: string", _TO_CLIENT, "2.1"),
    ("kong.cluster.get_id", "", _ALL, "2.3"),
    ("kong.ctx.shared.get", "key: string", _ALL, "2.0"),
    ("kong.ctx.shared.set", "key: string, value?: any", _ALL, "2.0"),
    ("kong.ip.is_trusted", "address: string", _ALL, "2.0"),
    ("kong.log", _LOG, _ALL, "2.0"),
    *((f"kong.log.{level}", _LOG, _ALL, "2.0") for level in _LEVELS),
    ("kong.log.deprecation", _LOG, _ALL, "2.6"),
    ("kong.log.inspect", _LOG, _ALL, "2.0"),
    ("kong.log.inspect.on", "", _ALL, "2.0"),
    ("kong.log.inspect.off", "", _ALL, "2.0"),
    ("kong.log.set_format", "format?: string", _ALL, "2.0"),
    (
        "kong.log.set_serialize_value",
        "key: string, value?: string|number|boolean|table, options?: table",
        _REQUEST_AND_LOG,
        "2.3",
    ),
    ("kong.log.serialize", "", ("log",), "2.1"),
    ("kong.nginx.get_var", "name: string", ("rewrite", "access", "response", "preread"), "2.0"),
    ("kong.nginx.get_tls1_version_str", "", _ALL, "2.0"),
    ("kong.nginx.get_ctx", "key: string", _ALL, "2.0"),
    ("kong.nginx.set_ctx", "key: string, value?: any", _ALL, "2.0"),
    ("kong.nginx.req_start_time", "", ("rewrite", "access", "response", "preread", "log"), "2.0"),
    ("kong.nginx.get_subsystem", "", _ALL, "2.0"),
    ("kong.nginx.get_statistics", "", _ALL, "3.0"),
    ("kong.node.get_id", "", _ALL, "2.0"),
    ("kong.node.get_memory_stats", "unit?: string, scale?: number", _ALL, "2.0"),
    ("kong.node.get_hostname", "", _ALL, "2.3"),
    ("kong.plugin.get_id", "", _ALL, "3.3"),
    ("kong.request.get_scheme", "", _REQUEST, "2.0"),
    ("kong.request.get_host", "", _REQUEST, "2.0"),
    ("kong.request.get_port", "", _CONNECTION, "2.0"),
    ("kong.request.get_forwarded_scheme", "", _REQUEST, "2.0"),
    ("kong.request.get_forwarded_host", "", _REQUEST, "2.0"),
    ("kong.request.get_forwarded_port", "", _REQUEST, "2.0"),
    ("kong.request.get_forwarded_path", "", _REQUEST, "2.1"),
    ("kong.request.get_forwarded_prefix", "", _REQUEST, "2.2"),
    ("kong.request.get_http_version", "", _REQUEST, "2.0"),
    ("kong.request.get_method", "", _REQUEST, "2.0"),
    ("kong.request.get_path", "", _REQUEST, "2.0"),
    ("kong.request.get_raw_path", "", _REQUEST, "3.0"),
    ("kong.request.get_path_with_query", "", _REQUEST, "2.0"),
    ("kong.request.get_raw_query", "", _REQUEST, "2.0"),
    ("kong.request.get_query_arg", "name: string", _REQUEST, "2.0"),
    ("kong.request.get_query", "max_args?: number", _REQUEST, "2.0"),
    ("kong.request.get_header", "name: string", _REQUEST_AND_LOG, "2.0"),
    ("kong.request.get_headers", "max_headers?: number", _REQUEST_AND_LOG, "2.0"),
    ("kong.request.get_raw_body", "max_allowed_file_size?: number", _REQUEST, "2.0"),
    (
        "kong.request.get_body",
        "mimetype?: string, max_args?: number, max_allowed_file_size?: number",
        _REQUEST,
        "2.0",
    ),
    ("kong.request.get_start_time", "", _REQUEST_AND_LOG, "3.0"),
    ("kong.request.get_uri_captures", "", _REQUEST_AND_LOG, "3.1"),
    ("kong.response.get_status", "", _FROM_SERVICE, "2.0"),
    ("kong.response.get_header", "name: string", _FROM_SERVICE, "2.0"),
    ("kong.response.get_headers", "max_headers?: number", _FROM_SERVICE, "2.0"),
    ("kong.response.get_source", "", _FROM_SERVICE, "2.0"),
    ("kong.response.set_status", "status: number", _TO_CLIENT, "2.0"),
    ("kong.response.set_header", f"name: string, value: {_HEADER}", _TO_CLIENT, "2.0"),
    ("kong.response.add_header", f"name: string, value: {_HEADER}", _TO_CLIENT, "2.0"),
    ("kong.response.clear_header", "name: string", _TO_CLIENT, "2.0"),
    ("kong.response.set_headers", "headers: table", _TO_CLIENT, "2.0"),
    (
        "kong.response.exit",
        "status: number, body?: string|table, headers?: table",
        ("rewrite", "access", "response", "preread"),
        "2.0",
    ),
    ("kong.response.error", "status: number, message?: string, headers?: table", _TO_CLIENT, "2.1"),
    ("kong.router.get_route", "", _AUTHENTICATED, "2.0"),
    ("kong.router.get_service", "", _AUTHENTICATED, "2.0"),
    ("kong.service.set_upstream", "host: string", ("access",), "2.0"),
    ("kong.service.set_target", "host: string, port: number", ("access", "preread"), "2.0"),
    ("kong.service.set_retries", "retries: number", ("access",), "3.8"),
    (
        "kong.service.set_timeouts",
        "connect_timeout: number, write_timeout: number, read_timeout: number",
        ("access",),
        "3.8",
    ),
    ("kong.service.set_tls_verify", "on: boolean", ("rewrite", "access", "preread"), "2.1"),
    ("kong.service.set_tls_verify_depth", "depth: number", ("rewrite", "access", "preread"), "2.1"),
    ("kong.service.request.enable_buffering", "", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_scheme", "scheme: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_path", "path: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_raw_query", "query: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_method", "method: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_query", "args: table", _TO_SERVICE, "2.0"),
    ("kong.service.request.clear_query_arg", "name: string", _TO_SERVICE, "3.9"),
    ("kong.service.request.set_header", f"header: string, value: {_HEADER}", _TO_SERVICE, "2.0"),
    ("kong.service.request.add_header", f"header: string, value: {_HEADER}", _TO_SERVICE, "2.0"),
    ("kong.service.request.clear_header", "header: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_headers", "headers: table", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_raw_body", "body: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.set_body", "args: table, mimetype?: string", _TO_SERVICE, "2.0"),
    ("kong.service.request.disable_tls", "", ("preread",), "2.0"),
    ("kong.service.response.get_status", "", _FROM_SERVICE, "2.0"),
    ("kong.service.response.get_header", "name: string", _FROM_SERVICE, "2.0"),
    ("kong.service.response.get_headers", "max_headers?: number", _FROM_SERVICE, "2.0"),
    ("kong.service.response.get_raw_body", "", _FROM_SERVICE, "2.0"),
    (
        "kong.service.response.get_body",
        "mimetype?: string, max_args?: number",
        _FROM_SERVICE,
        "2.0",
    ),
    ("kong.table.new", "narr?: number, nrec?: number", _ALL, "2.0"),
    ("kong.table.merge", "t1?: table, t2?: table", _ALL, "2.4"),
    (
        "kong.telemetry.log",
        "plugin_name: string, plugin_config: table, message_type: string, message?: string, "
        "attributes?: table",
        _ALL,
        "3.8",
    ),
    ("kong.tracing.active_span", "", _ALL, "3.3"),
    ("kong.tracing.get_root_span", "", _ALL, "3.9"),
    ("kong.tracing.get_spans", "", _ALL, "3.9"),
    ("kong.vault.get", "reference: string", _ALL, "2.8"),
    ("kong.vault.is_reference", "reference: string", _ALL, "2.8"),
    ("kong.vault.parse_reference", "reference: string", _ALL, "2.8"),
    ("kong.vault.update", "options: table", _ALL, "3.4"),
    ("kong.vault.flush", "", _ALL, "3.3"),
    ("kong.vault.warmup", "input: table", _ALL, "3.5"),
)

# Name, parameters, the Kong that had it first, and why no plugin server can call it.
_UNAVAILABLE = (
    (
        "kong.client.tls.disable_http2_alpn",
        "",
        "3.9",
        "it works in the client_hello phase alone, which Kong does not give to plugin servers",
    ),
    ("kong.ctx.plugin.get", "key: string", "", _NO_PLUGIN_CTX),
    ("kong.ctx.plugin.set", "key: string, value?: any", "", _NO_PLUGIN_CTX),
    (
        "kong.log.new",
        "namespace: string, format?: string",
        "2.0",
        (
            "it makes a Lua object that cannot be sent; use kong.log itself, which Kong already "
            "prefixes with the plugin's name"
        ),
    ),
    (
        "kong.request.get_forwareded_port",
        "",
        "2.0",
        (
            "the name is a misprint in the documentation of Kong 2.0; use "
            "kong.request.get_forwarded_port"
        ),
    ),
    (
        "kong.response.get_raw_body",
        "",
        "2.7",
        f"{_BODY_FILTER}; use kong.service.response.get_raw_body in response",
    ),
    (
        "kong.response.set_raw_body",
        "body: string",
        "2.7",
        f"{_BODY_FILTER}; use kong.response.exit in response",
    ),
    (
        "kong.service.set_target_retry_callback",
        "retry_callback: any",
        "3.8",
        f"{_LUA_FUNCTION}; choose the target with kong.service.set_target",
    ),
    (
        "kong.service.set_tls_cert_key",
        "chain: any, key: any",
        "2.0",
        (
            "it takes a certificate and a key that were parsed in Lua, which a plugin server "
            "cannot send; give the service a client_certificate instead"
        ),
    ),
    (
        "kong.service.set_tls_verify_store",
        "store: any",
        "2.1",
        (
            "it takes an OpenSSL object of Lua, which a plugin server cannot send; give the "
            "service ca_certificates instead"
        ),
    ),
    (
        "kong.table.clear",
        "tab: table",
        "2.0",
        (
            "it would clear Kong's copy of the table and leave the plugin's as it is; use the "
            "clear method of the dict or list"
        ),
    ),
    ("kong.tracing.new_span", "", "3.0", _SPAN),
    ("kong.tracing.start_span", "name: string, options?: table", "3.3", _SPAN),
    ("kong.tracing.set_active_span", "span: table", "3.3", _SPAN),
    ("kong.tracing.process_span", "processor: any", "3.0", _LUA_FUNCTION),
    ("kong.tracing.set_should_sample", "should_sample: boolean", "3.4", _TRACER),
    (
        "kong.tracing.get_sampling_decision",
        "parent_should_sample: boolean, sampling_rate: number",
        "3.6",
        _TRACER,
    ),
    (
        "kong.vault.try",
        "callback: any, options: table",
        "3.0",
        f"{_LUA_FUNCTION}; get the secret with kong.vault.get and, when it no longer works, again",
    ),
    ("kong.vault.init_worker", "", "3.4", "Kong itself calls it, once, when a worker starts"),
)

FUNCTIONS = (
    *(
        Function(name, params, phases=phases, since=since, terminal=name in _TERMINAL)
        for name, params, phases, since in _CALLABLE
    ),
    *(
        Function(name, params, phases=(), since=since, unavailable=reason)
        for name, params, since, reason in _UNAVAILABLE
    ),
)

register(FUNCTIONS)
ask_once(ASKED_ONCE, ONLY)
