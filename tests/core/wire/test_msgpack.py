"""The MessagePack codec, with the msgpack package as its oracle."""

from __future__ import annotations

import math
import re
import struct

import msgpack
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kongps.core.wire.msgpack import LIMITS, Ext, packb, unpackb
from kongps.errors import PackError, UnpackError

INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
# The msgpack package has a type of its own for extensions of this code; for us it is an Ext.
TIMESTAMP = -1
TIMESTAMPS = re.compile(rb"[\xd4-\xd8]\xff|\xc7.\xff|\xc8..\xff|\xc9....\xff", re.DOTALL)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(allow_nan=False),
    TEXTS,
    st.binary(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.one_of(TEXTS, INTEGERS, st.binary()), inner, max_size=20)
    ),
    max_leaves=60,
)


def oracle_unpack(data: bytes) -> object:
    return msgpack.unpackb(
        data,
        strict_map_key=False,
        unicode_errors="surrogateescape",
        ext_hook=Ext,
        timestamp=0,
    )


@given(VALUES)
@example([0, -1, -32, -33, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
@example([-128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)])
@example(["x" * n for n in (0, 31, 32, 255, 256, 65535, 65536)])
@example([b"x" * n for n in (0, 255, 256, 65535, 65536)])
@example([[None] * n for n in (0, 15, 16, 65535, 65536)])
@example([dict.fromkeys(range(n)) for n in (0, 15, 16, 65536)])
def test_writes_what_msgpack_reads_and_writes(value: object) -> None:
    packed = packb(value)
    assert packed == msgpack.packb(value)
    assert oracle_unpack(packed) == value


@given(VALUES)
def test_reads_what_msgpack_writes(value: object) -> None:
    assert unpackb(msgpack.packb(value)) == value


@given(st.binary(max_size=300))
def test_takes_and_refuses_the_same_bytes_as_msgpack(data: bytes) -> None:
    assume(not TIMESTAMPS.search(data))
    try:
        expected = oracle_unpack(data)
    except Exception:
        with pytest.raises(UnpackError):
            unpackb(data)
    else:
        result = unpackb(data)
        assert repr(result) == repr(expected)


@given(st.integers(-128, 127), st.binary(max_size=70000))
@example(5, b"")
@example(5, b"x")
@example(5, b"x" * 2)
@example(5, b"x" * 4)
@example(5, b"x" * 8)
@example(5, b"x" * 16)
@example(-1, b"x" * 17)
@example(5, b"x" * 65536)
def test_extensions_go_both_ways(code: int, data: bytes) -> None:
    packed = packb(Ext(code, data))
    assert unpackb(packed) == Ext(code, data)
    if code >= 0:
        assert packed == msgpack.packb(msgpack.ExtType(code, data))
    if code != TIMESTAMP:
        assert oracle_unpack(packed) == Ext(code, data)


@pytest.mark.parametrize(
    ("packed", "value"),
    [
        (b"\xca" + struct.pack(">f", 1.5), 1.5),
        (b"\xcb" + struct.pack(">d", -0.1), -0.1),
        (b"\xd0\xff", -1),
        (b"\xd1\xff\xfe", -2),
        (b"\xd2" + struct.pack(">i", 5), 5),
        (b"\xd3" + struct.pack(">q", 7), 7),
        (b"\xcf" + struct.pack(">Q", 2**64 - 1), 2**64 - 1),
        (b"\xd9\x03abc", "abc"),
        (b"\xda\x00\x03abc", "abc"),
        (b"\xdb\x00\x00\x00\x03abc", "abc"),
        (b"\xc5\x00\x01a", b"a"),
        (b"\xdc\x00\x01\xc0", [None]),
        (b"\xdd\x00\x00\x00\x01\xc3", [True]),
        (b"\xde\x00\x01\x01\x02", {1: 2}),
        (b"\xdf\x00\x00\x00\x01\x01\x02", {1: 2}),
    ],
)
def test_reads_every_width_a_value_may_come_in(packed: bytes, value: object) -> None:
    assert unpackb(packed) == value


def test_not_a_number_and_infinities_go_both_ways() -> None:
    assert math.isnan(unpackb(packb(math.nan)))
    assert unpackb(packb([math.inf, -math.inf])) == [math.inf, -math.inf]


@given(st.binary())
def test_text_that_is_no_utf8_survives_a_round_trip(raw: bytes) -> None:
    packed = msgpack.packb(raw, use_bin_type=False)
    text = unpackb(packed)
    assert isinstance(text, str)
    assert text.encode("utf-8", "surrogateescape") == raw
    assert packb(text)[-len(raw) :] == packed[-len(raw) :]
    assert unpackb(packb(text)) == text


def test_a_surrogate_that_stands_for_no_byte_is_refused() -> None:
    with pytest.raises(PackError, match="not valid Unicode"):
        packb("\ud800")


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, lambda: None])
def test_types_without_a_form_are_refused_by_name(value: object) -> None:
    with pytest.raises(PackError, match=f"type {type(value).__name__} cannot be packed"):
        packb([value])


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_integers_over_64_bits_are_refused(value: int) -> None:
    with pytest.raises(PackError, match="64 bits"):
        packb(value)


def test_subclasses_travel_as_the_type_they_derive_from() -> None:
    from collections import OrderedDict, namedtuple
    from http import HTTPStatus

    pair = namedtuple("pair", "a b")
    value = [HTTPStatus.OK, OrderedDict(a=1), pair(1, 2), bytearray(b"x"), memoryview(b"y")]
    assert unpackb(packb(value)) == [200, {"a": 1}, [1, 2], b"x", b"y"]


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(PackError, match="nested"):
        packb(endless)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_up_to_the_limit_goes_both_ways() -> None:
    deepest = nested(LIMITS["nesting"])
    assert unpackb(packb(deepest)) == deepest
    with pytest.raises(PackError, match="nested"):
        packb(nested(LIMITS["nesting"] + 1))
    with pytest.raises(UnpackError, match="nested"):
        unpackb(b"\x91" * (LIMITS["nesting"] + 1) + b"\xc0")


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (b"\xdd\xff\xff\xff\xff", "entries"),
        (b"\xdf\xff\xff\xff\xff", "entries"),
        (b"\xdd" + struct.pack(">I", LIMITS["collection"] + 1), "entries"),
        (b"\xdf" + struct.pack(">I", LIMITS["collection"] + 1), "entries"),
        (b"\xdb\xff\xff\xff\xff", "bytes"),
        (b"\xc1", "0xc1"),
    ],
)
def test_a_claim_past_a_limit_is_refused_before_its_bytes_come(claim: bytes, words: str) -> None:
    with pytest.raises(UnpackError, match=words):
        unpackb(claim)


def test_more_values_than_a_message_may_hold_are_refused() -> None:
    half = LIMITS["values"] // 2
    row = b"\xdd" + struct.pack(">I", half) + b"\xc0" * half
    with pytest.raises(UnpackError, match="values"):
        unpackb(b"\x92" + row + row)


@given(VALUES, st.data())
def test_bytes_cut_short_or_followed_by_more_are_refused(
    value: object, data: st.DataObject
) -> None:
    packed = packb(value)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(UnpackError, match="end inside"):
        unpackb(packed[:cut])
    with pytest.raises(UnpackError, match="follow the value"):
        unpackb(packed + b"\xc0")


def test_a_map_with_a_collection_for_a_key_is_refused() -> None:
    with pytest.raises(UnpackError, match="for a key"):
        unpackb(b"\x81\x90\x01")
