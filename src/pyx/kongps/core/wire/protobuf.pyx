"""Protocol Buffers over C buffers: reading; see ``protobuf.pxd``.

Messages are dicts of the fields that are there: proto3 leaves out what has its default, and Kong
leaves out what is nil but writes empty texts, zeros and false, so that what is not there is nil.
``string`` becomes ``str`` with surrogate escapes for bytes that are not UTF-8, and back. Whole
numbers in a ``double`` become ``int``, as Lua makes no difference between them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_FromDouble
from cpython.long cimport PyLong_FromDouble, PyLong_FromLongLong
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from kongps.core.io.buffer cimport Buffer, buffer_free, buffer_size
from kongps.core.wire.protobuf_types cimport (
    BOOL, BOOL_VALUE, BYTES, DOUBLE, EMPTY, FIXED32, FIXED64, INT32, LIST_VALUE, LIST_VALUE_FIELD,
    MAX_DEPTH, MESSAGE, NULL_VALUE, NUMBER_VALUE, RUN, STRING, STRING_VALUE, STRUCT, STRUCT_VALUE,
    VALUE, VARINT, FieldType, MessageType, message_type,
)
from kongps.core.wire.protobuf_writer cimport encode

from kongps.errors import UnpackError


# --- reading: every read is checked against the span's end -----------------------------------

cdef int read_varint(Span* span, uint64_t* value) except -1:
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef uint8_t byte
    while span.at < span.end:
        byte = span.at[0]
        span.at += 1
        if shift == 63 and byte > 1:
            raise UnpackError("a number has more than 64 bits")
        result |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            value[0] = result
            return 0
        shift += 7
        if shift > 63:
            raise UnpackError("a number has more than 64 bits")
    raise UnpackError("a message ends inside a number")


cdef int read_run(Span* span, const uint8_t** data, size_t* size) except -1:
    """Reads a length and that many bytes."""
    cdef uint64_t length
    read_varint(span, &length)
    if length > <uint64_t>(span.end - span.at):
        raise UnpackError("a field is longer than its message")
    data[0] = span.at
    size[0] = <size_t>length
    span.at += length
    return 0


cdef int read_fixed64(Span* span, uint64_t* bits) except -1:
    cdef int index
    if span.end - span.at < 8:
        raise UnpackError("a message ends inside a number")
    bits[0] = 0
    for index in range(8):
        bits[0] |= <uint64_t>span.at[index] << (8 * index)
    span.at += 8
    return 0


cdef int skip_field(Span* span, uint64_t tag) except -1:
    """Passes over the value of a field that is not known."""
    cdef uint64_t number
    cdef const uint8_t* data
    cdef size_t size
    cdef int wire = tag & 7
    if tag >> 3 == 0 or tag >> 32:
        raise UnpackError("a field's number is out of range")
    if wire == VARINT:
        return read_varint(span, &number)
    if wire == RUN:
        return read_run(span, &data, &size)
    if wire == FIXED64 and span.end - span.at >= 8:
        span.at += 8
        return 0
    if wire == FIXED32 and span.end - span.at >= 4:
        span.at += 4
        return 0
    raise UnpackError("a field has a wire type that proto3 does not use, or is cut short")


cdef object number_object(double number):
    if -9007199254740992.0 <= number <= 9007199254740992.0 and floor(number) == number:
        return PyLong_FromDouble(number)
    return PyFloat_FromDouble(number)


cdef object text_object(const uint8_t* data, size_t size):
    return PyUnicode_DecodeUTF8(<const char*>data, <Py_ssize_t>size, "surrogateescape")


cdef int count_item(Span* span) except -1:
    span.items += 1
    if span.items > MAX_ITEMS:
        raise UnpackError(f"a message has more than {MAX_ITEMS} values")
    return 0


cdef Span inner_span(Span* outer, const uint8_t* data, size_t size) noexcept:
    cdef Span span
    span.at = data
    span.end = data + size
    span.items = outer.items
    return span


cdef object decode(MessageType kind, const uint8_t* data, size_t size):
    """Reads a message: a dict; of a Value, Struct or ListValue what it stands for; of Empty None.

    :raises UnpackError: for bytes that are no such message, or past a limit.
    """
    cdef Span span
    span.at = data
    span.end = data + size
    span.items = 0
    return decode_span(kind, &span, 0)


cdef object decode_only(MessageType kind, const uint8_t* data, size_t size):
    """Reads a message of one field: the field's value, None when it is not there."""
    cdef Span span
    cdef uint64_t tag
    cdef FieldType field = <FieldType>kind.fields[0]
    cdef object value = None
    span.at = data
    span.end = data + size
    span.items = 0
    while span.at < span.end:
        read_varint(&span, &tag)
        if tag >> 3 == <uint64_t>field.number:
            value = decode_field(field, &span, tag, 0)
        else:
            skip_field(&span, tag)
    return value


cdef object decode_span(MessageType kind, Span* span, int depth):
    cdef dict result
    cdef uint64_t tag
    cdef FieldType field
    cdef object value
    if depth > MAX_DEPTH:
        raise UnpackError(f"messages are nested more than {MAX_DEPTH} deep")
    if kind.well_known == VALUE:
        return decode_value(span, depth)
    if kind.well_known == STRUCT:
        return decode_struct(span, depth)
    if kind.well_known == LIST_VALUE:
        return decode_list(span, depth)
    result = {}
    while span.at < span.end:
        read_varint(span, &tag)
        field = kind.find(tag >> 3)
        if field is None:
            skip_field(span, tag)
            continue
        count_item(span)
        if field.mapped:
            decode_entry(field, span, tag, result.setdefault(field.name, {}), depth)
            continue
        value = decode_field(field, span, tag, depth)
        if field.repeated:
            (<list>result.setdefault(field.name, [])).append(value)
        else:
            result[field.name] = value
    return None if kind.well_known == EMPTY else result


cdef object decode_field(FieldType field, Span* span, uint64_t tag, int depth):
    cdef uint64_t number = 0
    cdef double real
    cdef const uint8_t* data
    cdef size_t size
    cdef Span inner
    cdef object value
    cdef int wire = tag & 7
    if field.kind == STRING or field.kind == BYTES or field.kind == MESSAGE:
        if wire != RUN:
            raise UnpackError(f"the field {field.name} has wire type {wire}")
        read_run(span, &data, &size)
        if field.kind == STRING:
            return text_object(data, size)
        if field.kind == BYTES:
            return PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>size)
        inner = inner_span(span, data, size)
        value = decode_span(field.message, &inner, depth + 1)
        span.items = inner.items
        return value
    if field.kind == DOUBLE:
        if wire != FIXED64:
            raise UnpackError(f"the field {field.name} has wire type {wire}")
        read_fixed64(span, &number)
        memcpy(&real, &number, 8)
        return number_object(real)
    if wire != VARINT:
        raise UnpackError(f"the field {field.name} has wire type {wire}")
    read_varint(span, &number)
    if field.kind == BOOL:
        return number != 0
    if field.kind == INT32:
        return PyLong_FromLongLong(<int32_t><uint32_t>number)
    return PyLong_FromLongLong(<int64_t>number)


cdef int decode_entry(FieldType field, Span* span, uint64_t tag, dict entries, int depth) except -1:
    """Reads an entry of a map: a message with a key, field 1, and a value, field 2."""
    cdef const uint8_t* data
    cdef size_t size
    cdef Span inner
    cdef uint64_t inner_tag
    cdef object key = ""
    cdef object value = b"" if field.kind == BYTES else ""
    if tag & 7 != RUN:
        raise UnpackError(f"the field {field.name} has wire type {tag & 7}")
    read_run(span, &data, &size)
    inner = inner_span(span, data, size)
    while inner.at < inner.end:
        read_varint(&inner, &inner_tag)
        if inner_tag == (1 << 3 | RUN):
            read_run(&inner, &data, &size)
            key = text_object(data, size)
        elif inner_tag >> 3 == 2:
            value = decode_field(field, &inner, inner_tag, depth + 1)
        else:
            skip_field(&inner, inner_tag)
    entries[key] = value
    return 0


cdef object decode_value(Span* span, int depth):
    cdef uint64_t tag, number
    cdef double real
    cdef const uint8_t* data
    cdef size_t size
    cdef Span inner
    cdef object value = None
    if depth > MAX_DEPTH:
        raise UnpackError(f"messages are nested more than {MAX_DEPTH} deep")
    while span.at < span.end:
        read_varint(span, &tag)
        count_item(span)
        if tag == (NULL_VALUE << 3 | VARINT):
            read_varint(span, &number)
            value = None
        elif tag == (NUMBER_VALUE << 3 | FIXED64):
            read_fixed64(span, &number)
            memcpy(&real, &number, 8)
            value = number_object(real)
        elif tag == (STRING_VALUE << 3 | RUN):
            read_run(span, &data, &size)
            value = text_object(data, size)
        elif tag == (BOOL_VALUE << 3 | VARINT):
            read_varint(span, &number)
            value = number != 0
        elif tag == (STRUCT_VALUE << 3 | RUN) or tag == (LIST_VALUE_FIELD << 3 | RUN):
            read_run(span, &data, &size)
            inner = inner_span(span, data, size)
            if tag >> 3 == STRUCT_VALUE:
                value = decode_struct(&inner, depth + 1)
            else:
                value = decode_list(&inner, depth + 1)
            span.items = inner.items
        else:
            skip_field(span, tag)
    return value


cdef dict decode_struct(Span* span, int depth):
    cdef uint64_t tag
    cdef const uint8_t* data
    cdef size_t size
    cdef Span entry, inner
    cdef dict result = {}
    cdef object key, value
    while span.at < span.end:
        read_varint(span, &tag)
        if tag != (1 << 3 | RUN):
            skip_field(span, tag)
            continue
        count_item(span)
        read_run(span, &data, &size)
        entry = inner_span(span, data, size)
        key, value = "", None
        while entry.at < entry.end:
            read_varint(&entry, &tag)
            if tag == (1 << 3 | RUN):
                read_run(&entry, &data, &size)
                key = text_object(data, size)
            elif tag == (2 << 3 | RUN):
                read_run(&entry, &data, &size)
                inner = inner_span(&entry, data, size)
                value = decode_value(&inner, depth + 1)
                entry.items = inner.items
            else:
                skip_field(&entry, tag)
        span.items = entry.items
        result[key] = value
    return result


cdef list decode_list(Span* span, int depth):
    cdef uint64_t tag
    cdef const uint8_t* data
    cdef size_t size
    cdef Span inner
    cdef list result = []
    while span.at < span.end:
        read_varint(span, &tag)
        if tag != (1 << 3 | RUN):
            skip_field(span, tag)
            continue
        count_item(span)
        read_run(span, &data, &size)
        inner = inner_span(span, data, size)
        result.append(decode_value(&inner, depth + 1))
        span.items = inner.items
    return result


# --- for Python ------------------------------------------------------------------------------

def encode_message(str name not None, value):
    """Writes a message.

    :param name: its name in ``tables.MESSAGES``, or Value, Struct, ListValue, Empty.
    :param value: a dict of its fields; for a well-known type what it stands for.
    :returns: the bytes.
    :raises PackError: when a value does not fit, or is False or None inside a Value: Kong would
        read those as something else.
    """
    cdef Buffer out
    out.data = NULL
    out.begin = out.end = out.capacity = 0
    try:
        encode(&out, message_type(name), value, 0)
        if buffer_size(&out) == 0:
            return b""
        return PyBytes_FromStringAndSize(out.data + out.begin, <Py_ssize_t>buffer_size(&out))
    finally:
        buffer_free(&out)


def decode_message(str name not None, const uint8_t[::1] data not None):
    """Reads a message.

    :param name: its name in ``tables.MESSAGES``, or Value, Struct, ListValue, Empty.
    :returns: a dict of the fields that are there; for a well-known type what it stands for.
    :raises UnpackError: for bytes that are no such message, or past a limit.
    """
    cdef size_t size = <size_t>data.shape[0]
    cdef const uint8_t* first = b""  # a message of no bytes begins somewhere too
    return decode(message_type(name), &data[0] if size else first, size)


LIMITS = {"depth": MAX_DEPTH, "items": MAX_ITEMS}
