"""Protocol Buffers as Kong's Lua library writes and reads them, for the messages of ProtoBuf:1.

It is made to be read, and shares nothing with the compiled codec of :mod:`kongps.core`, so that
each can be tested against the other; both know the messages from one table.

A message is a dict of the fields that are there. Text is ``str``, with surrogate escapes for bytes
that are not UTF-8. google.protobuf's Value, Struct, ListValue and Empty are what they stand for:
a value, a dict, a list, None.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kongps.core.wire.tables import MESSAGES
from kongps.testing.values import text, to_bytes

__all__ = ["FIELDS", "Field", "decode", "encode"]

# How a field's value is written; the tag in front of it is the field's number times 8 plus this.
_VARINT, _FIXED64, _RUN, _FIXED32 = 0, 1, 2, 5

_WHOLE = ("int32", "int64")
_TEXTS = ("string", "bytes")
_SCALARS = {"bool": False, "int32": 0, "int64": 0, "double": 0.0, "string": "", "bytes": b""}
_WELL_KNOWN = ("Value", "Struct", "ListValue", "Empty")

# One of its fields is always there, whatever the others are, so that its default is written too.
_ONE_OF = ("RawBodyResult",)


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


# --- writing ----------------------------------------------------------------------------------


def encode(name: str, value: Any, defaults: Collection[str] = tuple(_SCALARS)) -> bytes:
    """``value`` as message ``name``; fields that are None are left out, but for Values.

    :param defaults: the kinds of fields that are written when they have their default, such as
        false.
    :raises ValueError: in Kong's words, for a value that is not of its field's type.
    """
    if name == "Empty":
        return b""
    if name == "Value":
        return _value(value)
    if name == "Struct":
        return b"".join(_entry(text(key), _value(item)) for key, item in value.items())
    if name == "ListValue":
        return b"".join(_run(1, _value(item)) for item in value)
    written = b""
    for field in FIELDS[name]:
        given = value.get(field.name)
        if given is None and (field.kind != "Value" or field.name not in value):
            continue
        if field.many == "[]":
            written += b"".join(_field(field, item, defaults) for item in given)
        elif field.many == "{}":
            item = Field("value", 2, field.kind, "")
            for key, entry in given.items():
                pair = _run(1, to_bytes(key)) + _field(item, entry, defaults)
                written += _run(field.number, pair)
        elif (
            field.kind in defaults
            or field.default is None
            or name in _ONE_OF
            or given != field.default
        ):
            written += _field(field, given, defaults)
    return written


def _field(field: Field, value: Any, defaults: Collection[str]) -> bytes:
    if field.kind not in _SCALARS:
        return _run(field.number, encode(field.kind, value, defaults))
    if field.kind == "bool":
        if not isinstance(value, bool):
            raise _mismatch("boolean", field, value)
        return _tag(field.number, _VARINT) + _varint(int(value))
    if field.kind in _TEXTS:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:.14g}"
        if not isinstance(value, (str, bytes)):
            raise _mismatch("string", field, value)
        return _run(field.number, to_bytes(value))
    number = _number(value)
    if number is None or (field.kind in _WHOLE and number != int(number)):
        raise _mismatch("number", field, value)
    if field.kind == "double":
        return _tag(field.number, _FIXED64) + struct.pack("<d", number)
    return _tag(field.number, _VARINT) + _varint(int(number) & 0xFFFFFFFFFFFFFFFF)


def _number(value: Any) -> float | int | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:  # Lua takes a text for the number in it
        return float(value) if isinstance(value, (str, bytes)) else None
    except ValueError:
        return None


def _mismatch(expected: str, field: Field, value: Any) -> ValueError:
    got = "boolean" if isinstance(value, bool) else "table"
    if isinstance(value, (int, float, str, bytes)) and not isinstance(value, bool):
        got = "string" if isinstance(value, (str, bytes)) else "number"
    return ValueError(
        f"bad argument #2 to 'encode' ({expected} expected for field '{field.name}', got {got})"
    )


def _value(value: Any) -> bytes:
    if value is None:
        return _tag(1, _VARINT) + _varint(1)  # 1 is not in NullValue, but it is what Kong writes
    if isinstance(value, bool):
        return _tag(4, _VARINT) + _varint(int(value))
    if isinstance(value, (int, float)):
        return _tag(2, _FIXED64) + struct.pack("<d", value)
    if isinstance(value, (str, bytes)):
        return _run(3, to_bytes(value))
    if isinstance(value, Mapping) or not value:  # an empty table is a Struct
        return _run(5, encode("Struct", value or {}))
    return _run(6, encode("ListValue", value))


def _entry(key: str, value: bytes) -> bytes:
    return _run(1, _run(1, to_bytes(key)) + _run(2, value))


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
    if name == "Value":
        return _read_value(data)
    if name == "Struct":
        return dict(_read_entries(data))
    if name == "ListValue":
        return [_read_value(_bytes(wire, item)) for number, wire, item in _parts(data)
                if number == 1]  # fmt: skip
    if name == "Empty":
        list(_parts(data))  # unknown fields may be there
        return None
    found: dict[str, Any] = {}
    by_number = {field.number: field for field in FIELDS[name]}
    for number, wire, item in _parts(data):
        field = by_number.get(number)
        if field is None:
            continue
        if field.many == "{}":
            entry = dict.fromkeys(("key", "value"), b"")
            for part, inner, value in _parts(_bytes(wire, item)):
                entry["key" if part == 1 else "value"] = _bytes(inner, value)
            of = Field("value", 2, field.kind, "")
            found.setdefault(field.name, {})[text(entry["key"])] = _read(of, _RUN, entry["value"])
        elif field.many:
            found.setdefault(field.name, []).append(_read(field, wire, item))
        else:
            found[field.name] = _read(field, wire, item)
    return found


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
        return _double(item)
    if field.kind in _TEXTS:
        return text(item) if field.kind == "string" else item
    return decode(field.kind, item)


def _double(data: bytes) -> float | int:
    number: float = struct.unpack("<d", data)[0]
    return int(number) if number.is_integer() else number


def _read_value(data: bytes) -> Any:
    value: Any = None
    for number, wire, item in _parts(data):
        if number in (1, 4) and wire == _VARINT:
            value = bool(item) if number == 4 else None
        elif number == 2 and wire == _FIXED64:
            value = _double(item)
        elif number == 3:
            value = text(_bytes(wire, item))
        elif number in (5, 6):
            value = decode("Struct" if number == 5 else "ListValue", _bytes(wire, item))
    return value


def _read_entries(data: bytes) -> Iterable[tuple[str, Any]]:
    for number, wire, item in _parts(data):
        if number != 1:
            continue
        key, value = "", None
        for part, inner, found in _parts(_bytes(wire, item)):
            if part == 1:
                key = text(_bytes(inner, found))
            elif part == 2:
                value = _read_value(_bytes(inner, found))
        yield key, value
