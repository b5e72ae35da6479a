"""ProtoBuf:1 as data: the messages, and which of them each PDK function takes and gives.

Messages are those of Kong's ``pluginsocket.proto``, package ``kong_plugin_protocol``, proto3; a
name after a field's number is its type, ``[]`` behind it makes it repeated, ``{}`` a map from
strings. Value, Struct, ListValue and Empty are google.protobuf's and known to the codec.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Callable

from kongps.core.wire.body_file import BodyFile
from kongps.errors import AnswerError

MESSAGES = {
    # What Kong asks of a plugin server, and what it gets.
    "CmdGetPluginNames": "",
    "CmdGetPluginInfo": "name=1 string",
    "CmdStartInstance": "name=1 string, config=2 bytes",
    "CmdGetInstanceStatus": "instance_id=1 int32",
    "CmdCloseInstance": "instance_id=1 int32",
    "CmdHandleEvent": "instance_id=1 int32, event_name=2 string",
    "RpcCall": "sequence=1 int64, cmd_get_plugin_names=31 CmdGetPluginNames, "
    "cmd_get_plugin_info=32 CmdGetPluginInfo, cmd_start_instance=33 CmdStartInstance, "
    "cmd_get_instance_status=34 CmdGetInstanceStatus, cmd_close_instance=35 CmdCloseInstance, "
    "cmd_handle_event=36 CmdHandleEvent",
    "PluginNames": "names=1 string[]",
    "PluginInfo": "name=1 string, updated_at=2 int64, loaded_at=3 int64, phases=4 string[], "
    "version=5 string, priority=6 int32, schema=7 string",
    "InstanceStatus": "name=1 string, instance_id=2 int32, config=3 Value, started_at=4 int64",
    "RpcReturn": "sequence=1 int64, plugin_names=31 PluginNames, plugin_info=32 PluginInfo, "
    "instance_status=33 InstanceStatus",
    # What PDK functions take and give.
    "KV": "k=1 string, v=2 Value",
    "Bool": "v=1 bool",
    "Int": "v=1 int32",
    "Number": "v=1 double",
    "String": "v=1 string",
    "ByteString": "v=1 bytes",
    "ExitArgs": "status=1 int32, body=2 bytes, headers=3 Struct",
    "ServiceKey": "id=1 string",
    "CertificateKey": "id=1 string",
    "RawBodyResult": "content=1 bytes, body_filepath=2 string, error=3 string",
    "UriCapturesResult": "unnamed=1 bytes[], named=2 bytes{}",
    "Route": "id=1 string, created_at=2 int64, updated_at=3 int64, name=4 string, "
    "protocols=5 string[], methods=6 string[], hosts=7 string[], paths=8 string[], "
    "headers=9 string[], https_redirect_status_code=10 int32, regex_priority=11 int32, "
    "strip_path=12 bool, preserve_host=13 bool, snis=14 string[], sources=15 string[], "
    "destinations=16 string[], tags=17 string[], service=18 ServiceKey",
    "Service": "id=1 string, created_at=2 int64, updated_at=3 int64, name=4 string, "
    "retries=5 int32, protocol=6 string, host=7 string, port=8 int32, path=9 string, "
    "connect_timeout=10 int32, write_timeout=11 int32, read_timeout=12 int32, "
    "tags=13 string[], client_certificate=14 CertificateKey",
    "Target": "host=1 string, port=2 int32",
    "ConsumerSpec": "id=1 string, by_username=2 bool",
    "Consumer": "id=1 string, created_at=2 int64, username=3 string, custom_id=4 string, "
    "tags=5 string[]",
    "AuthenticatedCredential": "id=1 string, consumer_id=2 string",
    "AuthenticateArgs": "consumer=1 Consumer, credential=2 AuthenticatedCredential",
    "DictStats": "allocated_slabs=1 int64, capacity=2 int64",
    "LuaSharedDicts": "kong=1 DictStats, kong_db_cache=2 DictStats",
    "WorkerLuaVm": "http_allocated_gc=1 int64, pid=2 int64",
    "MemoryStats": "lua_shared_dicts=1 LuaSharedDicts, workers_lua_vms=2 WorkerLuaVm[]",
}

# PDK function: the message of its arguments (the n-th argument is the n-th field; of a Struct
# the only one; of a ListValue all of them) and the message of its result.
RPCS = {
    "kong.client.get_ip": ("Empty", "String"),
    "kong.client.get_forwarded_ip": ("Empty", "String"),
    "kong.client.get_port": ("Empty", "Int"),
    "kong.client.get_forwarded_port": ("Empty", "Int"),
    "kong.client.get_credential": ("Empty", "AuthenticatedCredential"),
    "kong.client.load_consumer": ("ConsumerSpec", "Consumer"),
    "kong.client.get_consumer": ("Empty", "Consumer"),
    "kong.client.authenticate": ("AuthenticateArgs", "Empty"),
    "kong.client.get_protocol": ("Bool", "String"),
    "kong.ctx.shared.set": ("KV", "Empty"),
    "kong.ctx.shared.get": ("String", "Value"),
    "kong.ip.is_trusted": ("String", "Bool"),
    "kong.log.alert": ("ListValue", "Empty"),
    "kong.log.crit": ("ListValue", "Empty"),
    "kong.log.err": ("ListValue", "Empty"),
    "kong.log.warn": ("ListValue", "Empty"),
    "kong.log.notice": ("ListValue", "Empty"),
    "kong.log.info": ("ListValue", "Empty"),
    "kong.log.debug": ("ListValue", "Empty"),
    "kong.log.set_serialize_value": ("KV", "Empty"),
    "kong.log.serialize": ("Empty", "String"),
    "kong.nginx.get_var": ("String", "String"),
    "kong.nginx.get_tls1_version_str": ("Empty", "String"),
    "kong.nginx.set_ctx": ("KV", "String"),
    "kong.nginx.get_ctx": ("String", "Value"),
    "kong.nginx.req_start_time": ("Empty", "Number"),
    "kong.nginx.get_subsystem": ("Empty", "String"),
    "kong.node.get_id": ("Empty", "String"),
    "kong.node.get_memory_stats": ("Empty", "MemoryStats"),
    "kong.request.get_scheme": ("Empty", "String"),
    "kong.request.get_host": ("Empty", "String"),
    "kong.request.get_port": ("Empty", "Int"),
    "kong.request.get_forwarded_scheme": ("Empty", "String"),
    "kong.request.get_forwarded_host": ("Empty", "String"),
    "kong.request.get_forwarded_port": ("Empty", "Int"),
    "kong.request.get_http_version": ("Empty", "Number"),
    "kong.request.get_method": ("Empty", "String"),
    "kong.request.get_path": ("Empty", "String"),
    "kong.request.get_path_with_query": ("Empty", "String"),
    "kong.request.get_raw_query": ("Empty", "String"),
    "kong.request.get_query_arg": ("String", "String"),
    "kong.request.get_query": ("Int", "Struct"),
    "kong.request.get_header": ("String", "String"),
    "kong.request.get_headers": ("Int", "Struct"),
    "kong.request.get_raw_body": ("Empty", "RawBodyResult"),
    "kong.request.get_uri_captures": ("Empty", "UriCapturesResult"),
    "kong.response.get_status": ("Empty", "Int"),
    "kong.response.get_header": ("String", "String"),
    "kong.response.get_headers": ("Int", "Struct"),
    "kong.response.get_source": ("Empty", "String"),
    "kong.response.set_status": ("Int", "Empty"),
    "kong.response.set_header": ("KV", "Empty"),
    "kong.response.add_header": ("KV", "Empty"),
    "kong.response.clear_header": ("String", "Empty"),
    "kong.response.set_headers": ("Struct", "Empty"),
    "kong.response.exit": ("ExitArgs", "Empty"),
    "kong.router.get_route": ("Empty", "Route"),
    "kong.router.get_service": ("Empty", "Service"),
    "kong.service.set_upstream": ("String", "Bool"),
    "kong.service.set_target": ("Target", "Empty"),
    "kong.service.request.set_scheme": ("String", "Empty"),
    "kong.service.request.set_path": ("String", "Empty"),
    "kong.service.request.set_raw_query": ("String", "Empty"),
    "kong.service.request.set_method": ("String", "Empty"),
    "kong.service.request.set_query": ("Struct", "Empty"),
    "kong.service.request.set_header": ("KV", "Empty"),
    "kong.service.request.add_header": ("KV", "Empty"),
    "kong.service.request.clear_header": ("String", "Empty"),
    "kong.service.request.set_headers": ("Struct", "Empty"),
    "kong.service.request.set_raw_body": ("ByteString", "Empty"),
    "kong.service.response.get_status": ("Empty", "Int"),
    "kong.service.response.get_header": ("String", "String"),
    "kong.service.response.get_headers": ("Int", "Struct"),
    "kong.service.response.get_raw_body": ("Empty", "ByteString"),
}

# --- where a function on the wire differs from what a plugin sees --------------------------------

# How many headers and query arguments Kong returns without a limit; ProtoBuf:1 needs a number.
DEFAULT_LIMIT = 100

JSON_TYPE = "application/json; charset=utf-8"


@dataclass(frozen=True)
class Adapted:
    """A PDK function that is not sent as the plugin calls it.

    :ivar function: what is sent in its place; itself when empty.
    :ivar before: makes the arguments that are sent from those of the plugin.
    :ivar only_for_false: `before` is called only when the last argument is False.
    :ivar after: makes the value for the plugin from the one that came and the plugin's arguments.
        It may raise :class:`AnswerError`.
    :ivar absent: the value for an answer that holds none: Kong 2.8 leaves out false and empty
        texts, and these functions never give nil.
    """

    function: str = ""
    before: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    after: Callable[[Any, tuple[Any, ...]], Any] | None = None
    only_for_false: bool = False
    absent: Any = None


def _with_limit(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args or (DEFAULT_LIMIT,)


def _multi_map(value: Any, args: tuple[Any, ...]) -> Any:
    """Every value a list, as over MsgPack:1; a flag has none."""
    return {
        name: item if isinstance(item, list) else [] if item is True else [item]
        for name, item in value.items()
    }


def _first_argument(value: Any, args: tuple[Any, ...]) -> Any:
    """The argument asked for: Kong cannot say over ProtoBuf:1 that it is a flag."""
    name = args[0] if isinstance(args[0], str) else _text(bytes(args[0]))
    found = value.get(name)
    return found[0] if isinstance(found, list) else found


def _lua_value(value: Any, args: tuple[Any, ...]) -> Any:
    """An empty table of Lua is an empty list, as over MsgPack:1."""
    if isinstance(value, dict):
        return {name: _lua_value(item, ()) for name, item in value.items()} or []
    if isinstance(value, list):
        return [_lua_value(item, ()) for item in value]
    return value


def _body(value: Any, args: tuple[Any, ...]) -> Any:
    if "error" in value:
        raise AnswerError(value["error"])
    if "body_filepath" in value:
        return BodyFile(value["body_filepath"], *args)
    return value.get("content")


def _captures(value: Any, args: tuple[Any, ...]) -> Any:
    """Numbered from 1: ProtoBuf:1 does not have capture 0, the whole match."""
    return {
        "unnamed": dict(enumerate(map(_text, value.get("unnamed", ())), 1)),
        "named": {name: _text(item) for name, item in value.get("named", {}).items()},
    }


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _lua_text(value: Any) -> Any:
    """False and None as Kong would print them: they cannot be sent."""
    if value is None or value is False:
        return "nil" if value is None else "false"
    if isinstance(value, (list, tuple)):
        return [_lua_text(item) for item in value]
    return value


def _log_lines(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_lua_text, args)) or ("",)  # Kong fails for no arguments at all


def _header(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0], "false")


def _headers(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return ({name: "false" if item is False else item for name, item in args[0].items()},)


def _exit(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A body that is a table is sent as JSON, as Kong itself does over MsgPack:1."""
    status, body, headers = (*args, None, None)[:3]
    if isinstance(body, (dict, list, tuple)):
        body = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        body = body.encode("utf-8", "surrogateescape")
        names = {name.lower() for name in headers or {}}
        if "content-type" not in names:
            headers = {**(headers or {}), "content-type": JSON_TYPE}
    if headers:
        headers = _headers((headers,))[0]
    return (status, body, headers)


ADAPTED = {
    "kong.log": Adapted("kong.log.notice", before=_log_lines),
    **{
        f"kong.log.{level}": Adapted(before=_log_lines)
        for level in ("alert", "crit", "err", "warn", "notice", "info", "debug")
    },
    **{
        f"kong.{part}.get_headers": Adapted(before=_with_limit, after=_multi_map)
        for part in ("request", "response", "service.response")
    },
    "kong.request.get_query": Adapted(before=_with_limit, after=_multi_map),
    "kong.request.get_query_arg": Adapted(
        "kong.request.get_query", before=lambda args: (DEFAULT_LIMIT,), after=_first_argument
    ),
    "kong.ctx.shared.get": Adapted(after=_lua_value),
    "kong.nginx.get_ctx": Adapted(after=_lua_value),
    "kong.ip.is_trusted": Adapted(absent=False),
    "kong.request.get_raw_query": Adapted(absent=""),
    "kong.request.get_raw_body": Adapted(before=lambda args: (), after=_body),
    "kong.request.get_uri_captures": Adapted(after=_captures),
    **{
        f"kong.{part}.{verb}_header": Adapted(before=_header, only_for_false=True)
        for part in ("response", "service.request")
        for verb in ("set", "add")
    },
    "kong.response.set_headers": Adapted(before=_headers),
    "kong.service.request.set_headers": Adapted(before=_headers),
    "kong.response.exit": Adapted(before=_exit),
}
