"""What Kong's entities look like when a PDK function returns them.

Every key may be missing: Kong leaves out what is null, and its versions know different fields.
Kong may send further ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Union

__all__ = [
    "Consumer",
    "Credential",
    "Headers",
    "HeaderValue",
    "LuaVM",
    "MemoryStats",
    "NginxStatistics",
    "Reference",
    "Route",
    "Service",
    "SharedDict",
    "UriCaptures",
    "VaultReference",
]

HeaderValue = Union[str, bytes, int, float, bool, Sequence[Union[str, bytes]]]
"""What a header may be set to: one value, or a list of strings, one header each."""

Headers = dict[str, list[str]]
"""Headers or query arguments as Kong gives them: a name's values in their order."""


class Reference(TypedDict, total=False):
    """A foreign key: the entity it stands for."""

    id: str


class Route(TypedDict, total=False):
    """A route; see ``kong.router.get_route``."""

    id: str
    name: str
    created_at: int
    updated_at: int
    protocols: list[str]
    methods: list[str]
    hosts: list[str]
    paths: list[str]
    headers: dict[str, list[str]]
    snis: list[str]
    sources: list[dict[str, Any]]
    destinations: list[dict[str, Any]]
    expression: str
    priority: int
    https_redirect_status_code: int
    regex_priority: int
    strip_path: bool
    path_handling: str
    preserve_host: bool
    request_buffering: bool
    response_buffering: bool
    tags: list[str]
    service: Reference
    ws_id: str


class Service(TypedDict, total=False):
    """A service; see ``kong.router.get_service``. Timeouts are milliseconds."""

    id: str
    name: str
    created_at: int
    updated_at: int
    protocol: str
    host: str
    port: int
    path: str
    retries: int
    connect_timeout: int
    write_timeout: int
    read_timeout: int
    enabled: bool
    tags: list[str]
    client_certificate: Reference
    tls_verify: bool
    tls_verify_depth: int
    ca_certificates: list[str]
    ws_id: str


class Consumer(TypedDict, total=False):
    """A consumer; see ``kong.client.load_consumer``."""

    id: str
    username: str
    custom_id: str
    created_at: int
    updated_at: int
    tags: list[str]
    ws_id: str


class Credential(TypedDict, total=False):
    """A credential, as the plugin that authenticated the request stored it.

    Which further keys there are (``key``, ``username``, …) depends on that plugin.
    """

    id: str
    consumer_id: str
    consumer: Reference
    created_at: int
    key: str
    username: str
    tags: list[str]
    ttl: int


class LuaVM(TypedDict, total=False):
    """Memory of one nginx worker's Lua machine."""

    pid: int
    http_allocated_gc: int | str
    err: str


class SharedDict(TypedDict, total=False):
    """Memory of one of nginx's shared dictionaries."""

    allocated_slabs: int | str
    capacity: int | str


class MemoryStats(TypedDict, total=False):
    """Kong's memory; see ``kong.node.get_memory_stats``.

    Sizes are numbers of bytes, or text such as ``"208.00 KiB"`` when a unit was asked for.
    """

    lua_shared_dicts: dict[str, SharedDict]
    workers_lua_vms: list[LuaVM]


class NginxStatistics(TypedDict, total=False):
    """Connections and requests of this node; see ``kong.nginx.get_statistics``."""

    connections_active: int
    connections_reading: int
    connections_writing: int
    connections_waiting: int
    connections_accepted: int
    connections_handled: int
    total_requests: int


class UriCaptures(TypedDict):
    """What the route's regular expression captured; see ``kong.request.get_uri_captures``.

    ``unnamed`` counts from 0, which is the whole match.
    """

    unnamed: dict[int, str]
    named: dict[str, str]


class VaultReference(TypedDict, total=False):
    """The parts of ``{vault://name/resource/key?config#version}``."""

    name: str
    resource: str
    key: str
    config: dict[str, Any]
    version: int
