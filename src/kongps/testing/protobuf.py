"""Protocol Buffers as Kong's Lua library writes and reads them, for the messages of ProtoBuf:1.

It is made to be read, and shares nothing with the compiled codec of :mod:`kongps.core`, so that
each can be tested against the other; both know the messages from one table.

A message is a dict of the fields that are there. Text is ``str``, with surrogate escapes for bytes
that are not UTF-8. google.protobuf's Value, Struct, ListValue and Empty are what they stand for:
a value, a dict, a list, None.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kongps.core.wire.tables import MESSAGES
from kongps.testing.values import lua_type, text, to_bytes

# How a field's value is written; the tag in front of it is the field's number times 8 plus this.
_VARINT, _FIXED64, _RUN, _FIXED32 = 0, 1, 2, 5

_WHOLE = ("int32", "int64")
_TEXTS = ("string", "bytes")
_SCALARS = {"bool": False, "int32": 0, "int64": 0, "double": 0.0, "string": "", "bytes": b""}

# google.protobuf's own messages, and the entries of maps, described as MESSAGES describes Kong's.
# NullValue is an enumeration of which only 0 is there, but Kong writes 1.
_MORE_MESSAGES = {
    "Value": "null=1 bool, number=2 double, text=3 string, flag=4 bool, struct=5 Struct, "
    "list=6 ListValue",
    "Struct": "fields=1 Value{}",
    "ListValue": "values=1 Value[]",
    "Empty": "",
    "Value{}": "key=1 string, value=2 Value",
    "bytes{}": "key=1 string, value=2 bytes",
}

# One of their fields is always there, whatever the others are, so that its default is written too.
_ALWAYS_WRITTEN = ("RawBodyResult", "Value", "Value{}", "bytes{}")


@dataclass(frozen=True)
class Field:
    """A field of a message.

    :ivar kind: ``string``, ``int32``, … or the name of a message.
    :ivar many: ``"[]"`` for a list, ``"{}"`` for a map from strings, else empty.
    """

    name: str
    number: int
    kind: str
    many: str

    @property
    def default(self) -> Any:
        """What it is when it is not there; None for messages, lists and maps."""
        return None if self.many else _SCALARS.get(self.kind)


def _fields(described: str) -> list[Field]:
    found = []
    for item in filter(None, described.split(", ")):
        place, kind = item.split()
        name, _, number = place.partition("=")
        many = kind[-2:] if kind[-2:] in ("[]", "{}") else ""
        found.append(Field(name, int(number), kind[: -2 if many else None], many))
    return found


#: The fields of each message, in the order of their numbers.
FIELDS = {name: _fields(described) for name, described in MESSAGES.items()}
_ALL = {**FIELDS, **{name: _fields(described) for name, described in _MORE_MESSAGES.items()}}


# --- writing ----------------------------------------------------------------------------------


def encode(name: str, value: Any, defaults: Collection[str] = tuple(_SCALARS)) -> bytes:
    """``value`` as message ``name``; fields that are None are left out, but for Values.

    :param defaults: the kinds of fields that are written when they have their default, such as
        false.
    :raises ValueError: in Kong's words, for a value that is not of its field's type.
    """
    value = _as_fields(name, value)
    written = b""
    for field in _ALL[name]:
        given = value.get(field.name)
        if given is None and (field.kind != "Value" or field.name not in value):
            continue
        if field.many == "[]":
            written += b"".join(_field(field, item, defaults) for item in given)
        elif field.many == "{}":
            for key, item in given.items():
                entry = encode(field.kind + field.many, {"key": key, "value": item}, defaults)
                written += _run(field.number, entry)
        elif (
            field.kind in defaults
            or field.default is None
            or name in _ALWAYS_WRITTEN
            or given != field.default
        ):
            written += _field(field, given, defaults)
    return written


def _as_fields(name: str, value: Any) -> Mapping[str, Any]:
    """The fields of the message that stands for a value."""
    if name == "Struct":
        return {"fields": value}
    if name == "ListValue":
        return {"values": value}
    if name != "Value":
        return value or {}
    if value is None:
        return {"null": True}
    if isinstance(value, bool):
        return {"flag": value}
    if isinstance(value, (int, float)):
        return {"number": value}
    if isinstance(value, (str, bytes)):
        return {"text": value}
    if isinstance(value, Mapping) or not value:  # an empty table is a Struct
        return {"struct": value or {}}
    return {"list": value}


def _field(field: Field, value: Any, defaults: Collection[str]) -> bytes:
    if field.kind not in _SCALARS:
        return _run(field.number, encode(field.kind, value, defaults))
    if field.kind == "bool":
        if not isinstance(value, bool):
            raise _mismatch("boolean", field, value)
        return _tag(field.number, _VARINT) + _varint(int(value))
    if field.kind in _TEXTS:
        if lua_type(value) == "number":
            value = f"{value:.14g}"
        if not isinstance(value, (str, bytes)):
            raise _mismatch("string", field, value)
        return _run(field.number, to_bytes(value))
    number = value
    if isinstance(value, (str, bytes)):  # Lua takes a text for the number in it
        with contextlib.suppress(ValueError):
            number = float(value)
    if lua_type(number) != "number" or (field.kind in _WHOLE and number != int(number)):
        raise _mismatch("number", field, value)
    if field.kind == "double":
        return _tag(field.number, _FIXED64) + struct.pack("<d", number)
    return _tag(field.number, _VARINT) + _varint(int(number) & 0xFFFFFFFFFFFFFFFF)


def _mismatch(expected: str, field: Field, value: Any) -> ValueError:
    named = f"field '{field.name}', got {lua_type(value)}"
    return ValueError(f"bad argument #2 to 'encode' ({expected} expected for {named})")


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _run(number: int, data: bytes) -> bytes:
    return _tag(number, _RUN) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


# --- reading ----------------------------------------------------------------------------------


def decode(name: str, data: bytes) -> Any:
    """The message ``name`` in ``data``.

    :raises ValueError: it is not one.
    """
    found: dict[str, Any] = {}
    by_number = {field.number: field for field in _ALL[name]}
    for number, wire, item in _parts(data):
        field = by_number.get(number)
        if field is None:
            continue
        if field.many == "{}":
            entry = decode(field.kind + field.many, _bytes(wire, item))
            value = entry.get("value", None if field.kind == "Value" else b"")
            found.setdefault(field.name, {})[entry.get("key", "")] = value
        elif field.many:
            found.setdefault(field.name, []).append(_read(field, wire, item))
        else:
            found[field.name] = _read(field, wire, item)
    return _from_fields(name, found)


def _from_fields(name: str, found: dict[str, Any]) -> Any:
    """The value that a message stands for."""
    if name == "Struct":
        return found.get("fields", {})
    if name == "ListValue":
        return found.get("values", [])
    if name == "Value":
        last = next(reversed(found), "null")
        return None if last == "null" else found[last]
    return None if name == "Empty" else found


def _parts(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Each field's number, how it is written, and the number or bytes that are there."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        item: Any
        if wire == _VARINT:
            item, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            item, at = data[at : at + size], at + size
        elif wire == _RUN:
            start = at
            try:
                size, at = _read_varint(data, at)
            except ValueError:
                size, at = 0, len(data) + 1
            if at + size > len(data):
                raise ValueError(f"invalid bytes length: {size} (at offset {start + 1})")
            item, at = data[at : at + size], at + size
        else:
            raise ValueError(f"unknown wire type {wire} of field {number}")
        if number == 0 or at > len(data):
            raise ValueError("the message ends in the middle or has a field 0")
        yield number, wire, item


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError(f"invalid varint value at offset {at}")


def _bytes(wire: int, item: Any) -> bytes:
    if wire != _RUN:
        raise ValueError(f"a message or text is expected, and wire type {wire} was there")
    found: bytes = item
    return found


def _read(field: Field, wire: int, item: Any) -> Any:
    expected = _VARINT if field.kind in ("bool", *_WHOLE) else _RUN
    if wire != (_FIXED64 if field.kind == "double" else expected):
        raise ValueError(f"type mismatch for field '{field.name}': wire type {wire}")
    if field.kind == "bool":
        return bool(item)
    if field.kind in _WHOLE:
        bits = 32 if field.kind == "int32" else 64
        number = item & ((1 << bits) - 1)
        return number - (1 << bits) if number >> (bits - 1) else number
    if field.kind == "double":
        real: float = struct.unpack("<d", item)[0]
        return int(real) if real.is_integer() else real
    if field.kind in _TEXTS:
        return text(item) if field.kind == "string" else item
    return decode(field.kind, item)
