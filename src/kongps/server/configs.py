"""Configurations of instances, as Kong sends them and as InstanceStatus returns them."""

from __future__ import annotations

from typing import Any

import msgspec

from kongps.core.wire.msgpack import packb
from kongps.errors import ConfigError, PackError


def decode_config(text: Any) -> dict[str, Any]:
    """Decodes the configuration of an instance, JSON text.

    :raises ConfigError: when it is no JSON object. The text itself is never shown: it may hold
        secrets.
    """
    if not isinstance(text, (str, bytes)):
        raise ConfigError("config", "expected JSON text")
    try:
        config = msgspec.json.decode(config_bytes(text))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ConfigError("config", "expected JSON text; this is not JSON") from None
    if config == [] or config is None:  # how Lua writes an empty table
        return {}
    if not isinstance(config, dict):
        raise ConfigError("config", "expected a JSON object")
    return config


def config_bytes(text: Any) -> bytes:
    """A configuration as Kong sent it; empty when it is no text."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    return text if isinstance(text, bytes) else b""


def sendable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as InstanceStatus returns it: empty if it cannot be packed."""
    try:
        packb(config)
    except PackError:
        return {}
    return config
