"""The table of PDK functions: what may be called, with what, and in which phases.

Kong abandons an event without a word when a PDK function is called in a wrong phase or with a
wrong argument, so every call is checked against this table before it is sent. The phases are
those in which a real gateway answers a *plugin server*. They differ from Kong's documentation
where a recording of Kong 3.9 does: most request functions need nginx's request, which is gone
when the log event runs in its timer; ``kong.response.exit`` works in response;
``kong.service.set_target`` fails in rewrite. The functions that read the connection or look at no
phase at all are allowed in ``preread`` too.

A row with ``unavailable`` is a function of the Lua PDK that no plugin server can use; calling it
raises :class:`kongps.PDKError` with that sentence.
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

_HEADER = "string|number|boolean|string[]"
_LOG = "...: any"

_LUA_FUNCTION = "it takes a Lua function, which a plugin server cannot send"
_SPAN = (
    "spans are Lua objects that stay inside Kong; trace in the plugin with a library of your own, "
    "taking the trace's id from the request's headers"
)

FUNCTIONS = (
    # kong.client
    Function("kong.client.get_ip", phases=_CONNECTION, since="2.0"),
    Function("kong.client.get_forwarded_ip", phases=_CONNECTION, since="2.0"),
    Function("kong.client.get_port", phases=_CONNECTION, since="2.0"),
    Function("kong.client.get_forwarded_port", phases=_CONNECTION, since="2.0"),
    Function("kong.client.get_credential", phases=_AUTHENTICATED, since="2.0"),
    Function("kong.client.get_consumer", phases=_AUTHENTICATED, since="2.0"),
    Function(
        "kong.client.load_consumer",
        "consumer_id: string, search_by_username?: boolean",
        phases=_AUTHENTICATED,
        since="2.0",
    ),
    Function(
        "kong.client.authenticate",
        "consumer?: table, credential?: table",
        phases=("access",),
        since="2.0",
    ),
    Function(
        "kong.client.get_protocol",
        "allow_terminated?: boolean",
        phases=("access", "response"),
        since="2.0",
    ),
    # kong.client.tls
    Function("kong.client.tls.request_client_certificate", phases=("certificate",), since="2.1"),
    Function("kong.client.tls.disable_session_reuse", phases=("certificate",), since="2.1"),
    Function("kong.client.tls.get_full_client_certificate_chain", phases=_REQUEST, since="2.1"),
    Function("kong.client.tls.set_client_verify", "result: string", phases=_TO_CLIENT, since="2.1"),
    Function(
        "kong.client.tls.disable_http2_alpn",
        phases=(),
        since="3.9",
        unavailable="it works in the client_hello phase alone, which Kong does not give to "
        "plugin servers",
    ),
    # kong.cluster
    Function("kong.cluster.get_id", phases=_ALL, since="2.3"),
    # kong.ctx
    Function("kong.ctx.shared.get", "key: string", phases=_ALL, since="2.0"),
    Function("kong.ctx.shared.set", "key: string, value?: any", phases=_ALL, since="2.0"),
    Function(
        "kong.ctx.plugin.get",
        "key: string",
        phases=(),
        since="",
        unavailable="Kong has no kong.ctx.plugin for plugin servers; use kong.ctx.shared with a "
        "key that carries the plugin's name",
    ),
    Function(
        "kong.ctx.plugin.set",
        "key: string, value?: any",
        phases=(),
        since="",
        unavailable="Kong has no kong.ctx.plugin for plugin servers; use kong.ctx.shared with a "
        "key that carries the plugin's name",
    ),
    # kong.ip
    Function("kong.ip.is_trusted", "address: string", phases=_ALL, since="2.0"),
    # kong.log
    Function("kong.log", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.emerg", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.alert", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.crit", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.err", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.warn", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.notice", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.info", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.debug", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.deprecation", _LOG, phases=_ALL, since="2.6"),
    Function("kong.log.inspect", _LOG, phases=_ALL, since="2.0"),
    Function("kong.log.inspect.on", phases=_ALL, since="2.0"),
    Function("kong.log.inspect.off", phases=_ALL, since="2.0"),
    Function("kong.log.set_format", "format?: string", phases=_ALL, since="2.0"),
    Function(
        "kong.log.set_serialize_value",
        "key: string, value?: string|number|boolean|table, options?: table",
        phases=_REQUEST_AND_LOG,
        since="2.3",
    ),
    Function("kong.log.serialize", phases=("log",), since="2.1"),
    Function(
        "kong.log.new",
        "namespace: string, format?: string",
        phases=(),
        since="2.0",
        unavailable="it makes a Lua object that cannot be sent; use kong.log itself, which Kong "
        "already prefixes with the plugin's name",
    ),
    # kong.nginx
    Function(
        "kong.nginx.get_var",
        "name: string",
        phases=("rewrite", "access", "response", "preread"),
        since="2.0",
    ),
    Function("kong.nginx.get_tls1_version_str", phases=_ALL, since="2.0"),
    Function("kong.nginx.get_ctx", "key: string", phases=_ALL, since="2.0"),
    Function("kong.nginx.set_ctx", "key: string, value?: any", phases=_ALL, since="2.0"),
    Function(
        "kong.nginx.req_start_time",
        phases=("rewrite", "access", "response", "preread", "log"),
        since="2.0",
    ),
    Function("kong.nginx.get_subsystem", phases=_ALL, since="2.0"),
    Function("kong.nginx.get_statistics", phases=_ALL, since="3.0"),
    # kong.node
    Function("kong.node.get_id", phases=_ALL, since="2.0"),
    Function(
        "kong.node.get_memory_stats", "unit?: string, scale?: number", phases=_ALL, since="2.0"
    ),
    Function("kong.node.get_hostname", phases=_ALL, since="2.3"),
    # kong.plugin
    Function("kong.plugin.get_id", phases=_ALL, since="3.3"),
    # kong.request
    Function("kong.request.get_scheme", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_host", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_port", phases=_CONNECTION, since="2.0"),
    Function("kong.request.get_forwarded_scheme", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_forwarded_host", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_forwarded_port", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_forwarded_path", phases=_REQUEST, since="2.1"),
    Function("kong.request.get_forwarded_prefix", phases=_REQUEST, since="2.2"),
    Function("kong.request.get_http_version", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_method", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_path", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_raw_path", phases=_REQUEST, since="3.0"),
    Function("kong.request.get_path_with_query", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_raw_query", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_query_arg", "name: string", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_query", "max_args?: number", phases=_REQUEST, since="2.0"),
    Function("kong.request.get_header", "name: string", phases=_REQUEST_AND_LOG, since="2.0"),
    Function(
        "kong.request.get_headers", "max_headers?: number", phases=_REQUEST_AND_LOG, since="2.0"
    ),
    Function(
        "kong.request.get_raw_body", "max_allowed_file_size?: number", phases=_REQUEST, since="2.0"
    ),
    Function(
        "kong.request.get_body",
        "mimetype?: string, max_args?: number, max_allowed_file_size?: number",
        phases=_REQUEST,
        since="2.0",
    ),
    Function("kong.request.get_start_time", phases=_REQUEST_AND_LOG, since="3.0"),
    Function("kong.request.get_uri_captures", phases=_REQUEST_AND_LOG, since="3.1"),
    Function(
        "kong.request.get_forwareded_port",
        phases=(),
        since="2.0",
        unavailable="the name is a misprint in the documentation of Kong 2.0; use "
        "kong.request.get_forwarded_port",
    ),
    # kong.response
    Function("kong.response.get_status", phases=_FROM_SERVICE, since="2.0"),
    Function("kong.response.get_header", "name: string", phases=_FROM_SERVICE, since="2.0"),
    Function(
        "kong.response.get_headers", "max_headers?: number", phases=_FROM_SERVICE, since="2.0"
    ),
    Function("kong.response.get_source", phases=_FROM_SERVICE, since="2.0"),
    Function("kong.response.set_status", "status: number", phases=_TO_CLIENT, since="2.0"),
    Function(
        "kong.response.set_header",
        f"name: string, value: {_HEADER}",
        phases=_TO_CLIENT,
        since="2.0",
    ),
    Function(
        "kong.response.add_header",
        f"name: string, value: {_HEADER}",
        phases=_TO_CLIENT,
        since="2.0",
    ),
    Function("kong.response.clear_header", "name: string", phases=_TO_CLIENT, since="2.0"),
    Function("kong.response.set_headers", "headers: table", phases=_TO_CLIENT, since="2.0"),
    Function(
        "kong.response.get_raw_body",
        phases=(),
        since="2.7",
        unavailable="it works in the body_filter phase alone, which Kong does not give to plugin "
        "servers; use kong.service.response.get_raw_body in response",
    ),
    Function(
        "kong.response.set_raw_body",
        "body: string",
        phases=(),
        since="2.7",
        unavailable="it works in the body_filter phase alone, which Kong does not give to plugin "
        "servers; use kong.response.exit in response",
    ),
    Function(
        "kong.response.exit",
        "status: number, body?: string|table, headers?: table",
        phases=("rewrite", "access", "response", "preread"),
        since="2.0",
        terminal=True,
    ),
    Function(
        "kong.response.error",
        "status: number, message?: string, headers?: table",
        phases=_TO_CLIENT,
        since="2.1",
        terminal=True,
    ),
    # kong.router
    Function("kong.router.get_route", phases=_AUTHENTICATED, since="2.0"),
    Function("kong.router.get_service", phases=_AUTHENTICATED, since="2.0"),
    # kong.service
    Function("kong.service.set_upstream", "host: string", phases=("access",), since="2.0"),
    Function(
        "kong.service.set_target",
        "host: string, port: number",
        phases=("access", "preread"),
        since="2.0",
    ),
    Function("kong.service.set_retries", "retries: number", phases=("access",), since="3.8"),
    Function(
        "kong.service.set_timeouts",
        "connect_timeout: number, write_timeout: number, read_timeout: number",
        phases=("access",),
        since="3.8",
    ),
    Function(
        "kong.service.set_tls_verify",
        "on: boolean",
        phases=("rewrite", "access", "preread"),
        since="2.1",
    ),
    Function(
        "kong.service.set_tls_verify_depth",
        "depth: number",
        phases=("rewrite", "access", "preread"),
        since="2.1",
    ),
    Function(
        "kong.service.set_target_retry_callback",
        "retry_callback: any",
        phases=(),
        since="3.8",
        unavailable=_LUA_FUNCTION + "; choose the target with kong.service.set_target",
    ),
    Function(
        "kong.service.set_tls_cert_key",
        "chain: any, key: any",
        phases=(),
        since="2.0",
        unavailable="it takes a certificate and a key that were parsed in Lua, which a plugin "
        "server cannot send; give the service a client_certificate instead",
    ),
    Function(
        "kong.service.set_tls_verify_store",
        "store: any",
        phases=(),
        since="2.1",
        unavailable="it takes an OpenSSL object of Lua, which a plugin server cannot send; give "
        "the service ca_certificates instead",
    ),
    # kong.service.request
    Function("kong.service.request.enable_buffering", phases=_TO_SERVICE, since="2.0"),
    Function("kong.service.request.set_scheme", "scheme: string", phases=_TO_SERVICE, since="2.0"),
    Function("kong.service.request.set_path", "path: string", phases=_TO_SERVICE, since="2.0"),
    Function(
        "kong.service.request.set_raw_query", "query: string", phases=_TO_SERVICE, since="2.0"
    ),
    Function("kong.service.request.set_method", "method: string", phases=_TO_SERVICE, since="2.0"),
    Function("kong.service.request.set_query", "args: table", phases=_TO_SERVICE, since="2.0"),
    Function(
        "kong.service.request.clear_query_arg", "name: string", phases=_TO_SERVICE, since="3.9"
    ),
    Function(
        "kong.service.request.set_header",
        f"header: string, value: {_HEADER}",
        phases=_TO_SERVICE,
        since="2.0",
    ),
    Function(
        "kong.service.request.add_header",
        f"header: string, value: {_HEADER}",
        phases=_TO_SERVICE,
        since="2.0",
    ),
    Function(
        "kong.service.request.clear_header", "header: string", phases=_TO_SERVICE, since="2.0"
    ),
    Function("kong.service.request.set_headers", "headers: table", phases=_TO_SERVICE, since="2.0"),
    Function("kong.service.request.set_raw_body", "body: string", phases=_TO_SERVICE, since="2.0"),
    Function(
        "kong.service.request.set_body",
        "args: table, mimetype?: string",
        phases=_TO_SERVICE,
        since="2.0",
    ),
    Function("kong.service.request.disable_tls", phases=("preread",), since="2.0"),
    # kong.service.response
    Function("kong.service.response.get_status", phases=_FROM_SERVICE, since="2.0"),
    Function("kong.service.response.get_header", "name: string", phases=_FROM_SERVICE, since="2.0"),
    Function(
        "kong.service.response.get_headers",
        "max_headers?: number",
        phases=_FROM_SERVICE,
        since="2.0",
    ),
    Function("kong.service.response.get_raw_body", phases=_FROM_SERVICE, since="2.0"),
    Function(
        "kong.service.response.get_body",
        "mimetype?: string, max_args?: number",
        phases=_FROM_SERVICE,
        since="2.0",
    ),
    # kong.table
    Function("kong.table.new", "narr?: number, nrec?: number", phases=_ALL, since="2.0"),
    Function("kong.table.merge", "t1?: table, t2?: table", phases=_ALL, since="2.4"),
    Function(
        "kong.table.clear",
        "tab: table",
        phases=(),
        since="2.0",
        unavailable="it would clear Kong's copy of the table and leave the plugin's as it is; use "
        "the clear method of the dict or list",
    ),
    # kong.telemetry
    Function(
        "kong.telemetry.log",
        "plugin_name: string, plugin_config: table, message_type: string, message?: string, "
        "attributes?: table",
        phases=_ALL,
        since="3.8",
    ),
    # kong.tracing
    Function("kong.tracing.active_span", phases=_ALL, since="3.3"),
    Function("kong.tracing.get_root_span", phases=_ALL, since="3.9"),
    Function("kong.tracing.get_spans", phases=_ALL, since="3.9"),
    Function("kong.tracing.new_span", phases=(), since="3.0", unavailable=_SPAN),
    Function(
        "kong.tracing.start_span",
        "name: string, options?: table",
        phases=(),
        since="3.3",
        unavailable=_SPAN,
    ),
    Function(
        "kong.tracing.set_active_span", "span: table", phases=(), since="3.3", unavailable=_SPAN
    ),
    Function(
        "kong.tracing.process_span",
        "processor: any",
        phases=(),
        since="3.0",
        unavailable=_LUA_FUNCTION,
    ),
    Function(
        "kong.tracing.set_should_sample",
        "should_sample: boolean",
        phases=(),
        since="3.4",
        unavailable="it is a method of Kong's tracer, and a plugin server can call functions only",
    ),
    Function(
        "kong.tracing.get_sampling_decision",
        "parent_should_sample: boolean, sampling_rate: number",
        phases=(),
        since="3.6",
        unavailable="it is a method of Kong's tracer, and a plugin server can call functions only",
    ),
    # kong.vault
    Function("kong.vault.get", "reference: string", phases=_ALL, since="2.8"),
    Function("kong.vault.is_reference", "reference: string", phases=_ALL, since="2.8"),
    Function("kong.vault.parse_reference", "reference: string", phases=_ALL, since="2.8"),
    Function("kong.vault.update", "options: table", phases=_ALL, since="3.4"),
    Function("kong.vault.flush", phases=_ALL, since="3.3"),
    Function("kong.vault.warmup", "input: table", phases=_ALL, since="3.5"),
    Function(
        "kong.vault.try",
        "callback: any, options: table",
        phases=(),
        since="3.0",
        unavailable=_LUA_FUNCTION + "; get the secret with kong.vault.get and, when it no longer "
        "works, once more",
    ),
    Function(
        "kong.vault.init_worker",
        phases=(),
        since="3.4",
        unavailable="Kong itself calls it, once, when a worker starts",
    ),
)

register(FUNCTIONS)
ask_once(ASKED_ONCE, ONLY)
