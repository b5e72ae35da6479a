"""Protocol Buffers over C buffers: a writer; see ``protobuf.pyx`` for how values map."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from kongps.core.io.buffer cimport Buffer, buffer_append, buffer_reserve
from kongps.core.wire.protobuf_types cimport (
    BOOL_VALUE, DOUBLE, EMPTY, FIXED64, INT32, LIST_VALUE, LIST_VALUE_FIELD, MAX_DEPTH, MESSAGE,
    NUMBER_VALUE, RUN, STRING_VALUE, STRUCT, STRUCT_VALUE, VALUE, VARINT, BOOL, BYTES, STRING,
    FieldType, MessageType, WireType,
)

from kongps.errors import PackError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)
    void PyErr_Clear()

cdef enum:
    LONGEST_VARINT = 10   # bytes of a 64-bit number


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
