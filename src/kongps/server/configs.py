"""Configurations of instances: decoding them, and how much of them is in memory."""

from __future__ import annotations

from typing import Any

import msgspec

from kongps.core.wire.msgpack import packb
from kongps.errors import ConfigError, PackError

# Bytes of configurations in memory, as Kong sends them; their objects take a few times as much.
# Over a thousand of 200 KB each, which is more than certificates and rules take.
MAX_CONFIGS_SIZE = 256 << 20


class ConfigMemory:
    """The bytes of the configurations in memory, by the ids of their instances.

    :ivar total: the bytes of all.
    """

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[int, int] = {}

    def add(self, id: int, size: int) -> None:
        """Counts the configuration of an instance."""
        self._sizes[id] = size
        self.total += size

    def remove(self, id: int) -> None:
        """Counts it no more, if it was counted."""
        self.total -= self._sizes.pop(id, 0)

    def size(self, id: int) -> int:
        """Bytes that closing an instance would free."""
        return self._sizes.get(id, 0)

    @property
    def limit(self) -> int:
        """Bytes that all may have together."""
        return MAX_CONFIGS_SIZE

    def missing(self, size: int) -> int:
        """Bytes that have to be freed before a configuration of `size` bytes is taken."""
        return self.total + size - self.limit


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
