"""``kong.client`` and ``kong.cluster``."""

from __future__ import annotations

import re
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.table import ACCESS, REQUEST, ROUTED, pdk
from kongps.testing.values import LuaError, lua_tostring, text

pdk("kong.client.get_ip", not_in_log=True)(lambda x: x.request.client_ip)
pdk("kong.client.get_forwarded_ip", not_in_log=True)(lambda x: x.forwarded_ip)
pdk("kong.client.get_port", not_in_log=True)(lambda x: x.request.client_port)
pdk("kong.client.get_forwarded_port", not_in_log=True)(lambda x: x.forwarded_port)
pdk("kong.client.get_credential", ROUTED, step="StepCredential")(lambda x: x.credential)
pdk("kong.client.get_consumer", ROUTED, step="StepConsumer")(lambda x: x.consumer)
pdk("kong.client.tls.get_full_client_certificate_chain", REQUEST, since="2.1", not_in_log=True)(
    lambda x: x.kong.client_certificate
)
pdk("kong.cluster.get_id", since="2.3")(lambda x: x.kong.cluster_id)

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")


@pdk("kong.client.load_consumer", ROUTED, step="StepConsumer")
def _load_consumer(x: Exchange, consumer_id: Any, by_username: Any = None) -> Any:
    if not consumer_id or not isinstance(consumer_id, (str, bytes)):
        raise LuaError("consumer_id must be a string")
    wanted = text(consumer_id)
    if not _UUID.match(wanted) and not by_username:
        raise LuaError("cannot load a consumer with an id that is not a uuid")
    found = x.kong.find_consumer(wanted, by_username=bool(by_username))
    if found is None:
        return None
    entity = found.entity()
    if x.version.number < (3, 0):
        entity.pop("updated_at")
    return entity


@pdk("kong.client.authenticate", ACCESS, step="StepCredential")
def _authenticate(x: Exchange, consumer: Any = None, credential: Any = None) -> None:
    if consumer is not None:
        check.table(consumer, "consumer")
    if credential is not None:
        check.table(credential, "credential")
    if consumer is None and credential is None:
        raise LuaError("either credential or consumer must be provided")
    x.consumer = dict(consumer) if consumer else None
    x.credential = dict(credential) if credential else None
    headers = x.service_headers
    for name, key in (("ID", "id"), ("Custom-ID", "custom_id"), ("Username", "username")):
        value = (consumer or {}).get(key)
        if value is None:
            headers.remove(f"X-Consumer-{name}")
        else:
            headers.set(f"X-Consumer-{name}", lua_tostring(value))
    if credential:
        headers.remove("X-Anonymous-Consumer")
        identifier = credential.get("username") or credential.get("id")
        if identifier is not None:
            headers.set("X-Credential-Identifier", lua_tostring(identifier))
    else:
        headers.set("X-Anonymous-Consumer", True)


@pdk("kong.client.get_protocol", ROUTED, not_in_log=True)
def _protocol(x: Exchange, allow_terminated: Any = None) -> Any:
    if x.subsystem == "stream":
        return "tls" if x.request.scheme == "https" else "tcp"
    return (x.forwarded("proto") if allow_terminated else None) or x.request.scheme


@pdk("kong.client.tls.set_client_verify", "rewrite, access, balancer, response", since="2.1")
def _set_client_verify(x: Exchange, verify: Any) -> None:
    given = check.string(verify, "client verify")
    if given not in ("SUCCESS", "NONE") and not given.startswith("FAILED"):
        raise LuaError(f"unknown client verify value: {given}")
