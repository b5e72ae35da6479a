"""Bodies by content type, as ``get_body`` decodes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from kongps.testing.exchange import Exchange
from kongps.testing.functions import check
from kongps.testing.values import Failure, LuaError, query_table, text, to_bytes

CONTENT_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
)


def raw_body(x: Exchange, body: bytes | Failure | None) -> str | bytes | Failure | None:
    """A body as ``get_raw_body`` gives it."""
    return text(body) if isinstance(body, bytes) and not x.version.binary_bodies else body


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def decoded_body(content_type: Any, max_args: Any, read: Callable[[], bytes | Failure]) -> Any:
    """The body that ``read`` gives, as a table."""
    if content_type is None:
        return Failure("missing content type")
    limit = check.limit(max_args, "max_args")
    kind = media_type(check.string(content_type, "mimetype"))
    if kind not in CONTENT_TYPES:
        return Failure(f"unsupported content type '{text(content_type)}'")
    body = read()
    return body if isinstance(body, Failure) else _decode(body, kind, text(content_type), limit)


def _decode(body: bytes, kind: str, content_type: str, limit: int) -> Any:
    if kind == "application/json":
        try:
            found = json.loads(text(body))
        except ValueError:
            return Failure("invalid json body")
        if not isinstance(found, (dict, list)):
            return Failure("invalid json body")
        if _has_null(found):
            raise LuaError("pack: cannot pack a userdata", drops_connection=True)
        return found
    if kind == "application/x-www-form-urlencoded":
        return query_table(text(body), limit)
    head = b"Content-Type: " + to_bytes(content_type) + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    parts: dict[str, Any] = {}
    for part in message.iter_parts():
        label = part.get_param("name", header="content-disposition")
        if isinstance(label, str):
            payload = part.get_payload(decode=True)
            parts[label] = text(payload) if isinstance(payload, bytes) else ""
    return parts


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_null(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_null(item) for item in value)
    return value is None
