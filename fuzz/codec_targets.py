"""The codecs as targets; apart from the others, so that only they are loaded and watched.

libFuzzer looks at every counter of what is loaded after each input.
"""

from __future__ import annotations

import math
from typing import Any

from kongps.core.wire.msgpack import packb, unpackb
from kongps.core.wire.protobuf import decode_message, encode_message
from kongps.core.wire.tables import MESSAGES
from kongps.errors import PackError, UnpackError

MESSAGE_NAMES = (*sorted(MESSAGES), "Value", "Struct", "ListValue", "Empty")


def msgpack_codec(data: bytes) -> None:
    """What is read is written, and read again as the same."""
    try:
        value = unpackb(data)
    except UnpackError:
        return
    try:
        packed = packb(value)
    except PackError:
        return  # a text with surrogates of its own: it came as bytes that are no UTF-8 text
    assert _same(unpackb(packed), value), (value, packed)


def protobuf_codec(data: bytes) -> None:
    """The first byte selects the message; what is read is written, and read again as the same."""
    if not data:
        return
    name = MESSAGE_NAMES[data[0] % len(MESSAGE_NAMES)]
    try:
        value = _without_none(decode_message(name, data[1:]))
    except UnpackError:
        return
    try:
        written = encode_message(name, value)
    except PackError:
        return  # false, null and nothing are refused on the way to Kong
    assert _same(_without_none(decode_message(name, written)), value), (name, value, written)


def _without_none(value: Any) -> Any:
    """A message without its fields that are None, which are not written."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value


def _same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals NaN, and True is not 1."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        # A NaN in a key is not found again: keys that are not numbers are held against each other.
        if len(one) != len(other):
            return False
        return all(
            key in other and _same(value, other[key])
            for key, value in one.items()
            if not isinstance(key, float)
        )
    return bool(one == other)
