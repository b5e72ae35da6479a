"""Bodies by content type, as ``get_body`` decodes them."""

from __future__ import annotations

import json
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from kongps.testing.values import (
    Failure,
    LuaError,
    query_table,
    text,
    to_bytes,
)


def decode_body(body: bytes, kind: str, content_type: str, limit: int) -> Any:
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
