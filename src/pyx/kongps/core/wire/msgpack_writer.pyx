"""MessagePack over C buffers: a writer; see ``msgpack.pyx`` for how values map."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kongps.core.io.buffer cimport Buffer, buffer_append, buffer_reserve

from kongps.errors import PackError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object value) except? 0xffffffffffffffff
    bint PyLong_Check(object value)
    bint PyFloat_Check(object value)
    void PyErr_Clear()


cdef class Ext:
    """A MessagePack extension value: application-defined bytes under a type code.

    :param code: the type code, -128 to 127; negative ones belong to MessagePack itself.
    :param data: the bytes.
    :raises ValueError: for a code out of that range.
    """

    def __init__(self, int code, bytes data not None):
        if not -128 <= code <= 127:
            raise ValueError(f"an extension's code must be from -128 to 127, not {code}")
        self.code = code
        self.data = data

    def __eq__(self, other):
        if not isinstance(other, Ext):
            return NotImplemented
        return self.code == (<Ext>other).code and self.data == (<Ext>other).data

    def __hash__(self):
        return hash((self.code, self.data))

    def __repr__(self):
        return f"Ext({self.code}, {self.data!r})"


cdef inline void put16(char* at, uint16_t value) noexcept:
    at[0] = <char>(value >> 8)
    at[1] = <char>value


cdef inline void put32(char* at, uint32_t value) noexcept:
    put16(at, <uint16_t>(value >> 16))
    put16(at + 2, <uint16_t>value)


cdef inline void put64(char* at, uint64_t value) noexcept:
    put32(at, <uint32_t>(value >> 32))
    put32(at + 4, <uint32_t>value)


cdef int write_unsigned(Buffer* out, uint64_t value) except -1:
    cdef char* at
    buffer_reserve(out, 9)
    at = out.data + out.end
    if value <= 0x7f:
        at[0] = <char>value
        out.end += 1
    elif value <= 0xff:
        at[0] = <char>0xcc
        at[1] = <char>value
        out.end += 2
    elif value <= 0xffff:
        at[0] = <char>0xcd
        put16(at + 1, <uint16_t>value)
        out.end += 3
    elif value <= 0xffffffff:
        at[0] = <char>0xce
        put32(at + 1, <uint32_t>value)
        out.end += 5
    else:
        at[0] = <char>0xcf
        put64(at + 1, value)
        out.end += 9
    return 0


cdef int write_signed(Buffer* out, int64_t value) except -1:
    cdef char* at
    if value >= 0:
        return write_unsigned(out, <uint64_t>value)
    buffer_reserve(out, 9)
    at = out.data + out.end
    if value >= -32:
        at[0] = <char>value
        out.end += 1
    elif value >= -128:
        at[0] = <char>0xd0
        at[1] = <char>value
        out.end += 2
    elif value >= -32768:
        at[0] = <char>0xd1
        put16(at + 1, <uint16_t>value)
        out.end += 3
    elif value >= -2147483648LL:
        at[0] = <char>0xd2
        put32(at + 1, <uint32_t>value)
        out.end += 5
    else:
        at[0] = <char>0xd3
        put64(at + 1, <uint64_t>value)
        out.end += 9
    return 0


cdef inline int write_head(
    Buffer* out, uint64_t size, uint8_t fixed, uint64_t fixed_limit,
    uint8_t code8, uint8_t code16, uint8_t code32,
) except -1:
    """Writes the head of anything that has a length; a code of 0 is a width that does not exist."""
    cdef char* at
    buffer_reserve(out, 5)
    at = out.data + out.end
    if size < fixed_limit:
        at[0] = <char>(fixed | size)
        out.end += 1
    elif code8 and size <= 0xff:
        at[0] = <char>code8
        at[1] = <char>size
        out.end += 2
    elif size <= 0xffff:
        at[0] = <char>code16
        put16(at + 1, <uint16_t>size)
        out.end += 3
    elif size <= 0xffffffff:
        at[0] = <char>code32
        put32(at + 1, <uint32_t>size)
        out.end += 5
    else:
        raise PackError("a string, bytes, list or dict is longer than MessagePack allows")
    return 0


cdef int write_array(Buffer* out, size_t length) except -1:
    return write_head(out, length, 0x90, 16, 0, 0xdc, 0xdd)


cdef int write_map(Buffer* out, size_t length) except -1:
    return write_head(out, length, 0x80, 16, 0, 0xde, 0xdf)


cdef int write_text(Buffer* out, const char* text, size_t size) except -1:
    write_head(out, size, 0xa0, 32, 0xd9, 0xda, 0xdb)
    return buffer_append(out, text, size)


cdef int write_binary(Buffer* out, const char* data, size_t size) except -1:
    write_head(out, size, 0, 0, 0xc4, 0xc5, 0xc6)
    return buffer_append(out, data, size)


cdef int write_str(Buffer* out, object text) except -1:
    cdef Py_ssize_t size
    cdef const char* utf8 = PyUnicode_AsUTF8AndSize(text, &size)
    cdef bytes escaped
    if utf8 != NULL:
        return write_text(out, utf8, <size_t>size)
    PyErr_Clear()
    try:
        escaped = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise PackError(
            f"a string contains a character that is not valid Unicode: {error.reason}"
        ) from None
    return write_text(out, PyBytes_AS_STRING(escaped), <size_t>PyBytes_GET_SIZE(escaped))


cdef int write_int(Buffer* out, object value) except -1:
    cdef int overflow = 0
    cdef long long small = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow == 0:
        return write_signed(out, small)
    if overflow > 0:
        try:
            return write_unsigned(out, PyLong_AsUnsignedLongLong(value))
        except OverflowError:
            pass
    raise PackError("an integer needs more than 64 bits")


cdef int write_float(Buffer* out, double value) except -1:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    buffer_reserve(out, 9)
    out.data[out.end] = <char>0xcb
    put64(out.data + out.end + 1, bits)
    out.end += 9
    return 0


cdef int write_byte(Buffer* out, uint8_t byte) except -1:
    buffer_reserve(out, 1)
    out.data[out.end] = <char>byte
    out.end += 1
    return 0


cdef int write_ext(Buffer* out, Ext value) except -1:
    cdef size_t size = <size_t>PyBytes_GET_SIZE(value.data)
    cdef int power
    for power in range(5):
        if size == <size_t>1 << power:
            write_byte(out, <uint8_t>(0xd4 + power))
            break
    else:
        write_head(out, size, 0, 0, 0xc7, 0xc8, 0xc9)
    write_byte(out, <uint8_t>value.code)
    return buffer_append(out, PyBytes_AS_STRING(value.data), size)


cdef int write_list(Buffer* out, list items, int depth) except -1:
    cdef Py_ssize_t index
    cdef Py_ssize_t length = PyList_GET_SIZE(items)
    cdef object item
    write_array(out, <size_t>length)
    for index in range(length):
        # Writing a value may run code of the plugin's, such as __iter__ of a list of its own kind.
        if PyList_GET_SIZE(items) != length:
            raise PackError("a list changed while it was packed")
        item = <object>PyList_GET_ITEM(items, index)
        write_value(out, item, depth + 1)
    return 0


cdef int write_dict(Buffer* out, dict entries, int depth) except -1:
    cdef PyObject* borrowed_key
    cdef PyObject* borrowed_value
    cdef object key, value
    cdef Py_ssize_t position = 0
    cdef Py_ssize_t length = PyDict_Size(entries)
    cdef Py_ssize_t written = 0
    write_map(out, <size_t>length)
    while PyDict_Next(entries, &position, &borrowed_key, &borrowed_value):
        key = <object>borrowed_key
        value = <object>borrowed_value
        write_value(out, key, depth + 1)
        write_value(out, value, depth + 1)
        written += 1
        if PyDict_Size(entries) != length:
            break
    if written != length:
        raise PackError("a dict changed while it was packed")
    return 0


cdef int write_value(Buffer* out, object value, int depth) except -1:
    """Writes one value; `depth` is the number of collections around it.

    On an error, what was written of the value stays in `out`: the caller cuts it off.

    :raises PackError: for a type that MessagePack does not have, an integer of more than 64
        bits, a text with lone surrogates that stand for no byte, or nesting past MAX_NESTING.
    """
    cdef type kind = type(value)
    if depth > MAX_NESTING:
        raise PackError(f"lists and dicts are nested more than {MAX_NESTING} deep")
    if kind is str:
        return write_str(out, value)
    if kind is int:
        return write_int(out, value)
    if value is None:
        return write_byte(out, 0xc0)
    if kind is bool:
        return write_byte(out, 0xc3 if value is True else 0xc2)
    if kind is dict:
        return write_dict(out, <dict>value, depth)
    if kind is list:
        return write_list(out, <list>value, depth)
    if kind is tuple:
        return write_list(out, list(value), depth)
    if kind is float:
        return write_float(out, PyFloat_AS_DOUBLE(value))
    if kind is bytes:
        return write_binary(out, PyBytes_AS_STRING(value), <size_t>PyBytes_GET_SIZE(value))
    return write_subtype(out, value, depth)


cdef int write_subtype(Buffer* out, object value, int depth) except -1:
    """Writes what is not exactly one of the plain types, as the plain type it derives from."""
    cdef bytes plain
    if isinstance(value, Ext):
        return write_ext(out, <Ext>value)
    if isinstance(value, str):
        return write_str(out, value)
    if PyLong_Check(value):
        return write_int(out, value)
    if PyFloat_Check(value):
        return write_float(out, <double>value)
    if isinstance(value, dict):
        return write_dict(out, dict(value), depth)
    if isinstance(value, (list, tuple)):
        return write_list(out, list(value), depth)
    if isinstance(value, (bytes, bytearray, memoryview)):
        plain = bytes(value)
        return write_binary(out, PyBytes_AS_STRING(plain), <size_t>PyBytes_GET_SIZE(plain))
    raise PackError(f"a value of type {type(value).__name__} cannot be packed as MessagePack")
