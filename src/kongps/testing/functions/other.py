"""``kong.table``, ``kong.telemetry``, ``kong.tracing`` and ``kong.vault``."""

from __future__ import annotations

import re
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions.table import (
    Hang,
    check_string,
    check_table,
    pdk,
)
from kongps.testing.values import (
    Failure,
    LuaError,
    text,
)


@pdk("kong.table.new")
def _table_new(x: Exchange, narr: Any = None, nrec: Any = None) -> Any:
    return {}


@pdk("kong.table.clear")
def _table_clear(x: Exchange, table: Any = None) -> None:
    return None


@pdk("kong.table.merge", since="2.4")
def _table_merge(x: Exchange, first: Any = None, second: Any = None) -> Any:
    one = check_table(first, "t1") if first is not None else {}
    return {**one, **(check_table(second, "t2") if second is not None else {})}


@pdk("kong.telemetry.log", since="3.8")
@pdk("kong.tracing.active_span", since="3.0")
@pdk("kong.tracing.get_spans", since="3.0")
@pdk("kong.tracing.get_root_span", since="3.0")
@pdk("kong.tracing.set_active_span", since="3.0")
def _tracing_off(x: Exchange, *args: Any) -> None:
    return None


@pdk("kong.tracing.start_span", since="3.0")
def _start_span(x: Exchange, *args: Any) -> None:
    raise Hang("kong.tracing.start_span: Kong never comes back from packing the span")


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
    name = check_string(reference, "reference")
    if name not in x.kong.secrets:
        return Failure(f"unable to load value of {name}")
    return x.kong.secrets[name]


@pdk("kong.vault.update", since="3.4")
def _vault_update(x: Exchange, options: Any) -> Any:
    return check_table(options, "options")


@pdk("kong.vault.flush", since="3.3")
@pdk("kong.vault.init_worker", since="3.4")
@pdk("kong.vault.warmup", since="3.5")
def _vault_nothing(x: Exchange, *args: Any) -> None:
    return None


@pdk("kong.tracing.process_span", "log", since="3.0")
def _process_span(x: Exchange, processor: Any = None) -> None:
    raise LuaError("processor must be a function")


@pdk("kong.vault.try", since="3.0")
def _vault_try(x: Exchange, callback: Any = None, options: Any = None) -> None:
    raise LuaError("callback must be a function")
