"""``kong.table``, ``kong.telemetry``, ``kong.tracing``, ``kong.vault``, and the functions of any
namespace that do nothing or are always refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.functions.table import ACCESS, ANY, BALANCER, Hang, pdk
from kongps.testing.values import Failure, LuaError, text


@pdk("kong.table.merge", since="2.4")
def _table_merge(x: Exchange, first: Any = None, second: Any = None) -> Any:
    one = check.table(first, "t1") if first is not None else {}
    return {**one, **(check.table(second, "t2") if second is not None else {})}


@pdk("kong.tracing.start_span", since="3.0")
def _start_span(x: Exchange, *args: Any) -> None:
    raise Hang("kong.tracing.start_span: Kong never comes back from packing the span")


pdk("kong.vault.update", since="3.4")(lambda x, options: check.table(options, "options"))

_REFERENCE = re.compile(r"\{vault://([^/}]+)/([^/}]+)(?:/([^}]*))?\}$")


@pdk("kong.vault.is_reference", since="2.8")
def _is_reference(x: Exchange, reference: Any) -> bool:
    return isinstance(reference, (str, bytes)) and bool(_REFERENCE.match(text(reference)))


@pdk("kong.vault.parse_reference", since="2.8")
def _parse_reference(x: Exchange, reference: Any) -> Any:
    found = _REFERENCE.match(text(reference)) if isinstance(reference, (str, bytes)) else None
    if found is None:
        return Failure("not a reference")
    name, resource, key = found.groups()
    return {"name": name, "resource": resource, "key": key or None}


@pdk("kong.vault.get", since="2.8")
def _vault_get(x: Exchange, reference: Any) -> Any:
    name = check.string(reference, "reference")
    if name not in x.kong.secrets:
        return Failure(f"unable to load value of {name}")
    return x.kong.secrets[name]


# Functions that change nothing that a plugin or the stand-in can see: in which phases, since when,
# and what they return.
for _name, _phases, _since, _value in (
    ("kong.client.tls.request_client_certificate", "certificate", "2.1", True),
    ("kong.client.tls.disable_session_reuse", "certificate", "2.1", True),
    ("kong.client.tls.disable_http2_alpn", "client_hello", "3.0", True),
    ("kong.log.inspect.on", ANY, "2.0", None),
    ("kong.log.inspect.off", ANY, "2.0", None),
    ("kong.log.set_format", ANY, "2.0", None),
    ("kong.response.get_raw_body", "body_filter", "2.7", None),
    ("kong.response.set_raw_body", "body_filter", "2.7", None),
    ("kong.table.new", ANY, "2.0", {}),
    ("kong.table.clear", ANY, "2.0", None),
    ("kong.telemetry.log", ANY, "3.8", None),
    ("kong.tracing.active_span", ANY, "3.0", None),
    ("kong.tracing.get_spans", ANY, "3.0", None),
    ("kong.tracing.get_root_span", ANY, "3.0", None),
    ("kong.tracing.set_active_span", ANY, "3.0", None),
    ("kong.vault.flush", ANY, "3.3", None),
    ("kong.vault.init_worker", ANY, "3.4", None),
    ("kong.vault.warmup", ANY, "3.5", None),
):
    pdk(_name, _phases, since=_since)(lambda x, *args, value=_value: value)


def _refusing(message: str) -> Callable[..., None]:
    def refuse(x: Exchange, *args: Any) -> None:
        raise LuaError(message)

    return refuse


# Functions that take what no protocol can carry (a function, a key): Kong refuses each call.
for _name, _phases, _since, _message in (
    ("kong.log.new", ANY, "2.0", "format must be a string"),
    ("kong.service.set_target_retry_callback", ACCESS, "3.8", "retry_callback must be a function"),
    ("kong.service.set_tls_cert_key", BALANCER, "2.0", "chain must be a parsed cdata object"),
    (
        "kong.service.set_tls_verify_store",
        BALANCER,
        "2.1",
        "argument must be a resty.openssl.x509.store object",
    ),
    ("kong.tracing.process_span", "log", "3.0", "processor must be a function"),
    ("kong.vault.try", ANY, "3.0", "callback must be a function"),
):
    pdk(_name, _phases, since=_since)(_refusing(_message))
