"""Protocol Buffers over C buffers; see ``protobuf.pxd``.

Messages are dicts of the fields that are there: proto3 leaves out what has its default, and Kong
leaves out what is nil but writes empty texts, zeros and false, so that what is not there is nil.
``string`` becomes ``str`` with surrogate escapes for bytes that are not UTF-8, and back. Whole
numbers in a ``double`` become ``int``, as Lua makes no difference between them.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.float cimport PyFloat_FromDouble
from cpython.long cimport PyLong_FromDouble, PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memmove

from kongps.core.io.buffer cimport Buffer, buffer_append, buffer_free, buffer_reserve, buffer_size

from kongps.core.wire.tables import MESSAGES
from kongps.errors import PackError, UnpackError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)
    void PyErr_Clear()

cdef enum WireType:
    VARINT = 0
    FIXED64 = 1
    RUN = 2
    FIXED32 = 5

cdef enum:
    LONGEST_VARINT = 10   # bytes of a 64-bit number
    # Fields of google.protobuf.Value.
    NULL_VALUE = 1
    NUMBER_VALUE = 2
    STRING_VALUE = 3
    BOOL_VALUE = 4
    STRUCT_VALUE = 5
    LIST_VALUE_FIELD = 6

KINDS = {
    "bool": BOOL, "int32": INT32, "int64": INT64, "double": DOUBLE, "string": STRING,
    "bytes": BYTES,
}
WELL_KNOWN = {"Value": VALUE, "Struct": STRUCT, "ListValue": LIST_VALUE, "Empty": EMPTY}

cdef dict TYPES = {}


cdef class FieldType:
    """One field of a message."""


cdef class MessageType:
    """A message of ``tables.MESSAGES``, or a well-known one."""

    def __init__(self, str name not None):
        self.name = name
        self.well_known = WELL_KNOWN.get(name, PLAIN_MESSAGE)
        self.fields = []

    cdef FieldType find(self, uint64_t number):
        cdef FieldType field
        for field in self.fields:
            if <uint64_t>field.number == number:
                return field
        return None


def _make_types():
    """Reads the table."""
    cdef MessageType kind
    cdef FieldType field
    cdef str text, described, type_name
    for name in (*WELL_KNOWN, *MESSAGES):
        TYPES[name] = MessageType(name)
    for name, text in MESSAGES.items():
        kind = <MessageType>TYPES[name]
        for described in filter(None, text.split(", ")):
            place, type_name = described.split()
            field = FieldType()
            field.name, number = place.split("=")
            field.number = int(number)
            field.repeated = type_name.endswith("[]")
            field.mapped = type_name.endswith("{}")
            type_name = type_name[:-2] if field.repeated or field.mapped else type_name
            field.kind = KINDS.get(type_name, MESSAGE)
            if field.kind == MESSAGE:
                field.message = <MessageType>TYPES[type_name]
            kind.fields.append(field)


_make_types()


cdef MessageType message_type(str name):
    return <MessageType>TYPES[name]


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


# --- writing ---------------------------------------------------------------------------------

cdef int write_varint(Buffer* out, uint64_t value) except -1:
    buffer_reserve(out, LONGEST_VARINT)
    while value >= 0x80:
        out.data[out.end] = <char>(value | 0x80)
        out.end += 1
        value >>= 7
    out.data[out.end] = <char>value
    out.end += 1
    return 0


cdef inline int write_tag(Buffer* out, int number, WireType wire) except -1:
    return write_varint(out, <uint64_t>(number << 3 | wire))


cdef int write_run(Buffer* out, int number, const char* data, size_t size) except -1:
    write_tag(out, number, RUN)
    write_varint(out, size)
    return buffer_append(out, data, size)


cdef size_t begin_run(Buffer* out, int number) except? 0:
    """Starts a field whose length is not known yet; gives what `end_run` needs."""
    write_tag(out, number, RUN)
    buffer_reserve(out, 1)
    out.end += 1
    return out.end - out.begin


cdef int end_run(Buffer* out, size_t start) except -1:
    """Writes the length of what was written since `begin_run` before it."""
    cdef size_t size = out.end - out.begin - start
    cdef size_t rest = size
    cdef size_t more = 0
    cdef char* at
    while rest >= 0x80:
        more += 1
        rest >>= 7
    if more:
        buffer_reserve(out, more)
        at = out.data + out.begin + start
        memmove(at + more, at, size)
        out.end += more
    at = out.data + out.begin + start - 1
    while size >= 0x80:
        at[0] = <char>(size | 0x80)
        at += 1
        size >>= 7
    at[0] = <char>size
    return 0


cdef int write_text(Buffer* out, int number, object text) except -1:
    """Writes a str, or bytes as they are."""
    cdef Py_ssize_t size
    cdef const char* utf8
    cdef bytes escaped
    if isinstance(text, str):
        utf8 = PyUnicode_AsUTF8AndSize(text, &size)
        if utf8 != NULL:
            return write_run(out, number, utf8, <size_t>size)
        PyErr_Clear()
        try:
            escaped = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise PackError(
                f"a string contains a character that is not valid Unicode: {error.reason}"
            ) from None
    elif isinstance(text, (bytes, bytearray, memoryview)):
        escaped = bytes(text)
    else:
        raise PackError(f"text is expected, not {type(text).__name__}")
    return write_run(
        out, number, PyBytes_AS_STRING(escaped), <size_t>PyBytes_GET_SIZE(escaped)
    )


cdef int write_double(Buffer* out, int number, double value) except -1:
    cdef uint64_t bits
    cdef int index
    memcpy(&bits, &value, 8)
    write_tag(out, number, FIXED64)
    buffer_reserve(out, 8)
    for index in range(8):
        out.data[out.end + index] = <char>(bits >> (8 * index))
    out.end += 8
    return 0


cdef int encode(Buffer* out, MessageType kind, object value, int depth) except -1:
    """Writes a message from what `decode` would make of it; None fields and unknown keys are
    left out.

    :raises PackError: when a value does not fit its field, or cannot be carried.
    """
    cdef FieldType field
    if depth > MAX_DEPTH:
        raise PackError(f"values are nested more than {MAX_DEPTH} deep")
    if kind.well_known == EMPTY:
        return 0
    if kind.well_known == VALUE:
        return encode_value(out, value, depth)
    if kind.well_known == STRUCT:
        return encode_struct(out, value, depth)
    if kind.well_known == LIST_VALUE:
        return encode_list(out, value, depth)
    if not isinstance(value, dict):
        raise PackError(f"a dict is expected, not {type(value).__name__}")
    for field in kind.fields:
        encode_field(out, field, (<dict>value).get(field.name), depth)
    return 0


cdef int encode_args(Buffer* out, MessageType kind, tuple args) except -1:
    """Writes the arguments of a PDK function: the n-th is the n-th field."""
    cdef Py_ssize_t index
    if kind.well_known == EMPTY:
        return 0
    if kind.well_known == LIST_VALUE:
        return encode_list(out, args, 0)
    if kind.well_known == STRUCT:
        return encode_struct(out, args[0] if args else {}, 0)
    for index in range(min(len(args), len(kind.fields))):
        encode_field(out, <FieldType>kind.fields[index], args[index], 0)
    return 0


cdef int encode_field(Buffer* out, FieldType field, object value, int depth) except -1:
    cdef size_t start
    if value is None:
        return 0
    if field.mapped:
        for key, item in value.items():
            start = begin_run(out, field.number)
            write_text(out, 1, key)
            write_text(out, 2, item)
            end_run(out, start)
        return 0
    if field.repeated:
        if not isinstance(value, (list, tuple)):
            raise PackError(f"{field.name} is a list, not {type(value).__name__}")
        for item in value:
            encode_one(out, field, item, depth)
        return 0
    return encode_one(out, field, value, depth)


cdef int encode_one(Buffer* out, FieldType field, object value, int depth) except -1:
    cdef size_t start
    cdef object whole
    if field.kind == STRING or field.kind == BYTES:
        return write_text(out, field.number, value)
    if field.kind == MESSAGE:
        start = begin_run(out, field.number)
        encode(out, field.message, value, depth + 1)
        return end_run(out, start)
    if field.kind == BOOL:
        write_tag(out, field.number, VARINT)
        return write_varint(out, 1 if value else 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PackError(f"{field.name} is a number, not {type(value).__name__}")
    if field.kind == DOUBLE:
        return write_double(out, field.number, <double>value)
    try:
        whole = int(value)
    except (ValueError, OverflowError):
        raise PackError(f"{field.name} is a whole number, not {value}") from None
    if whole != value:
        raise PackError(f"{field.name} is a whole number, not {value}")
    if field.kind == INT32 and not -0x80000000 <= whole <= 0x7fffffff:
        raise PackError(f"{field.name} has 32 bits, too few for {whole}")
    if not -0x8000000000000000 <= whole <= 0x7fffffffffffffff:
        raise PackError(f"{field.name} has 64 bits, too few for {whole}")
    write_tag(out, field.number, VARINT)
    return write_varint(out, <uint64_t><int64_t>whole)


cdef int encode_value(Buffer* out, object value, int depth) except -1:
    cdef size_t start
    if depth > MAX_DEPTH:
        raise PackError(f"values are nested more than {MAX_DEPTH} deep")
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return write_text(out, STRING_VALUE, value)
    if value is True:
        write_tag(out, BOOL_VALUE, VARINT)
        return write_varint(out, 1)
    if value is False:
        raise PackError("false cannot be sent over ProtoBuf:1: Kong would read it as nil")
    if value is None:
        raise PackError("None cannot be sent over ProtoBuf:1: Kong would read it as a string")
    if isinstance(value, (int, float)):
        try:
            return write_double(out, NUMBER_VALUE, <double>value)
        except OverflowError:
            raise PackError("an integer is too large for a double") from None
    if isinstance(value, dict):
        start = begin_run(out, STRUCT_VALUE)
        encode_struct(out, value, depth + 1)
        return end_run(out, start)
    if isinstance(value, (list, tuple)):
        start = begin_run(out, LIST_VALUE_FIELD)
        encode_list(out, value, depth + 1)
        return end_run(out, start)
    raise PackError(f"a value of type {type(value).__name__} cannot be sent over ProtoBuf:1")


cdef int encode_struct(Buffer* out, object entries, int depth) except -1:
    cdef size_t entry, start
    if not isinstance(entries, dict):
        raise PackError(f"a dict is expected, not {type(entries).__name__}")
    for key, value in entries.items():
        entry = begin_run(out, 1)
        write_text(out, 1, key if isinstance(key, (str, bytes)) else str(key))
        start = begin_run(out, 2)
        encode_value(out, value, depth + 1)
        end_run(out, start)
        end_run(out, entry)
    return 0


cdef int encode_list(Buffer* out, object items, int depth) except -1:
    cdef size_t start
    for item in items:
        start = begin_run(out, 1)
        encode_value(out, item, depth + 1)
        end_run(out, start)
    return 0


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
