"""MessagePack over C buffers; see ``msgpack.pxd``.

How values map: nil, booleans, integers and floats to their Python types; ``bin`` to ``bytes``;
``ext`` to :class:`Ext`; arrays to lists; maps to dicts. ``str`` becomes Python's ``str``: Kong
sends arbitrary bytes in it, so bytes that are not UTF-8 become lone surrogates (the
``surrogateescape`` error handler) and turn back into the same bytes on the way out.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport SIZE_MAX, int8_t, int16_t, int32_t, uint16_t
from libc.string cimport memcpy

from kongps.core.io.buffer cimport Buffer, buffer_append, buffer_free, buffer_reserve, buffer_size

from kongps.errors import PackError, UnpackError

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


# --- scanning: every bound of what follows is checked here -----------------------------------

cdef inline uint16_t big16(const uint8_t* at) noexcept:
    return (<uint16_t>at[0] << 8) | at[1]


cdef inline uint32_t big32(const uint8_t* at) noexcept:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef inline uint64_t big64(const uint8_t* at) noexcept:
    return (<uint64_t>big32(at) << 32) | big32(at + 4)


cdef void scanner_reset(Scanner* scanner) noexcept:
    scanner.offset = 0
    scanner.values = 0
    scanner.depth = 0


cdef int scan(Scanner* scanner, const uint8_t* data, size_t size, size_t longest) except -1:
    """Walks on through the message that starts at `data`, of which `size` bytes are there.

    Returns 1 when the message is complete (``scanner.offset`` is its length), 0 when more bytes
    are needed; call again with the same start and more of them. No byte is walked twice.

    :raises UnpackError: for a byte that MessagePack never uses, or past a limit.
    """
    cdef const uint8_t* at
    cdef size_t have
    cdef uint64_t head, body, children
    cdef uint8_t byte
    while True:
        if scanner.offset >= size:
            return 0
        at = data + scanner.offset
        have = size - scanner.offset
        byte = at[0]
        body = children = 0
        head = 1
        if byte <= 0x7f or byte >= 0xe0:      # fixint
            pass
        elif byte <= 0x8f:                    # fixmap
            children = <uint64_t>(byte & 0x0f) * 2
        elif byte <= 0x9f:                    # fixarray
            children = byte & 0x0f
        elif byte <= 0xbf:                    # fixstr
            body = byte & 0x1f
        elif byte == 0xc1:
            raise UnpackError("byte 0xc1 is not a MessagePack value")
        elif byte <= 0xc3:                    # nil, false, true
            pass
        elif byte == 0xc4 or byte == 0xd9 or byte == 0xc7:    # bin 8, str 8, ext 8
            head = 2
            if have < head:
                return 0
            body = at[1] + (byte == 0xc7)
        elif byte == 0xc5 or byte == 0xda or byte == 0xc8:    # bin 16, str 16, ext 16
            head = 3
            if have < head:
                return 0
            body = <uint64_t>big16(at + 1) + (byte == 0xc8)
        elif byte == 0xc6 or byte == 0xdb or byte == 0xc9:    # bin 32, str 32, ext 32
            head = 5
            if have < head:
                return 0
            body = <uint64_t>big32(at + 1) + (byte == 0xc9)
        elif byte == 0xcc or byte == 0xd0:    # 8-bit integers
            body = 1
        elif byte == 0xcd or byte == 0xd1:
            body = 2
        elif byte == 0xce or byte == 0xd2 or byte == 0xca:    # 32-bit integers, float
            body = 4
        elif byte == 0xcf or byte == 0xd3 or byte == 0xcb:    # 64-bit integers, float
            body = 8
        elif byte <= 0xd8:                    # fixext 1, 2, 4, 8, 16
            body = (<uint64_t>1 << (byte - 0xd4)) + 1
        elif byte == 0xdc or byte == 0xde:    # array 16, map 16
            head = 3
            if have < head:
                return 0
            children = big16(at + 1)
            children <<= (byte == 0xde)
        else:                                 # array 32, map 32
            head = 5
            if have < head:
                return 0
            children = big32(at + 1)
            children <<= (byte == 0xdf)
        if children > 2 * MAX_COLLECTION or (
            children > MAX_COLLECTION and byte != 0xde and byte != 0xdf
        ):
            raise UnpackError(f"an array or map has more than {MAX_COLLECTION} entries")
        if scanner.offset + head + body > longest:
            raise UnpackError(f"a message has more than {longest} bytes (--max-message)")
        if have < head + body:
            return 0
        scanner.offset += head + body
        scanner.values += 1
        if scanner.values > MAX_VALUES:
            raise UnpackError(f"a message has more than {MAX_VALUES} values")
        if children:
            if scanner.depth == MAX_NESTING:
                raise UnpackError(f"arrays and maps are nested more than {MAX_NESTING} deep")
            scanner.left[scanner.depth] = children
            scanner.depth += 1
            continue
        while scanner.depth:
            scanner.left[scanner.depth - 1] -= 1
            if scanner.left[scanner.depth - 1]:
                break
            scanner.depth -= 1
        if scanner.depth == 0:
            return 1


# --- reading: of messages that were scanned whole --------------------------------------------

cdef bint read_integer(Reader* reader, int64_t* value) noexcept:
    """Reads a whole number that fits 64 signed bits, whatever type it travelled as.

    False, and nothing read, when the next value is no such number. Lua knows only doubles: a
    whole number may arrive as one.
    """
    cdef const uint8_t* at = reader.at
    cdef uint8_t byte = at[0]
    cdef uint64_t large
    cdef uint32_t bits
    cdef float single
    cdef double number
    if byte <= 0x7f:
        value[0] = byte
        reader.at += 1
    elif byte >= 0xe0:
        value[0] = <int8_t>byte
        reader.at += 1
    elif byte == 0xcc:
        value[0] = at[1]
        reader.at += 2
    elif byte == 0xcd:
        value[0] = big16(at + 1)
        reader.at += 3
    elif byte == 0xce:
        value[0] = big32(at + 1)
        reader.at += 5
    elif byte == 0xcf:
        large = big64(at + 1)
        if large >> 63:
            return False
        value[0] = <int64_t>large
        reader.at += 9
    elif byte == 0xd0:
        value[0] = <int8_t>at[1]
        reader.at += 2
    elif byte == 0xd1:
        value[0] = <int16_t>big16(at + 1)
        reader.at += 3
    elif byte == 0xd2:
        value[0] = <int32_t>big32(at + 1)
        reader.at += 5
    elif byte == 0xd3:
        value[0] = <int64_t>big64(at + 1)
        reader.at += 9
    elif byte == 0xca or byte == 0xcb:
        if byte == 0xca:
            bits = big32(at + 1)
            memcpy(&single, &bits, 4)
            number = single
        else:
            large = big64(at + 1)
            memcpy(&number, &large, 8)
        # 2**53: beyond it, a double cannot represent every integer.
        if not (-9007199254740992.0 <= number <= 9007199254740992.0):
            return False
        if <double><int64_t>number != number:
            return False
        value[0] = <int64_t>number
        reader.at += 5 if byte == 0xca else 9
    else:
        return False
    return True


cdef inline bint run_head(const uint8_t* at, size_t* head, size_t* size) noexcept:
    """Length of the head and of the body of a str or bin; False for anything else."""
    cdef uint8_t byte = at[0]
    if 0xa0 <= byte <= 0xbf:
        head[0] = 1
        size[0] = byte & 0x1f
    elif byte == 0xd9 or byte == 0xc4:
        head[0] = 2
        size[0] = at[1]
    elif byte == 0xda or byte == 0xc5:
        head[0] = 3
        size[0] = big16(at + 1)
    elif byte == 0xdb or byte == 0xc6:
        head[0] = 5
        size[0] = big32(at + 1)
    else:
        return False
    return True


cdef bint read_text(Reader* reader, const char** text, size_t* size) noexcept:
    """Reads a str or bin without making an object; False, and nothing read, for anything else."""
    cdef size_t head
    if not run_head(reader.at, &head, size):
        return False
    text[0] = <const char*>reader.at + head
    reader.at += head + size[0]
    return True


cdef inline bint read_head(Reader* reader, uint32_t* length, uint8_t fixed, uint8_t wide) noexcept:
    """Reads the head of an array or a map: up to 15 entries in the byte, or 2 or 4 bytes of them."""
    cdef uint8_t byte = reader.at[0]
    if byte & 0xf0 == fixed:
        length[0] = byte & 0x0f
        reader.at += 1
    elif byte == wide:
        length[0] = big16(reader.at + 1)
        reader.at += 3
    elif byte == wide + 1:
        length[0] = big32(reader.at + 1)
        reader.at += 5
    else:
        return False
    return True


cdef bint read_array(Reader* reader, uint32_t* length) noexcept:
    """Reads the head of an array; False, and nothing read, for anything else."""
    return read_head(reader, length, 0x90, 0xdc)


cdef bint read_map(Reader* reader, uint32_t* length) noexcept:
    """Reads the head of a map, `length` pairs; False, and nothing read, for anything else."""
    return read_head(reader, length, 0x80, 0xde)


cdef int skip_value(Reader* reader) except -1:
    """Passes over one value, nested ones included."""
    cdef Scanner scanner
    scanner_reset(&scanner)
    scan(&scanner, reader.at, SIZE_MAX, SIZE_MAX)
    reader.at += scanner.offset
    return 0


cdef inline size_t extension_head(const uint8_t* at, size_t* size) noexcept:
    """Bytes before an extension's data (type byte included), and the size of the data."""
    cdef uint8_t byte = at[0]
    if byte >= 0xd4:
        size[0] = <size_t>1 << (byte - 0xd4)
        return 2
    if byte == 0xc7:
        size[0] = at[1]
        return 3
    if byte == 0xc8:
        size[0] = big16(at + 1)
        return 4
    size[0] = big32(at + 1)
    return 6


cdef object read_value(Reader* reader):
    """Reads one value as a Python object.

    :raises UnpackError: for a map whose key is a map or an array.
    """
    cdef const uint8_t* at = reader.at
    cdef uint8_t byte = at[0]
    cdef size_t head, size
    cdef uint32_t length, bits
    cdef int64_t whole
    cdef uint64_t large
    cdef float single
    cdef double number
    if run_head(at, &head, &size):
        reader.at += head + size
        if 0xc4 <= byte <= 0xc6:
            return PyBytes_FromStringAndSize(<const char*>at + head, <Py_ssize_t>size)
        return PyUnicode_DecodeUTF8(<const char*>at + head, <Py_ssize_t>size, "surrogateescape")
    if byte == 0xc0:
        reader.at += 1
        return None
    if byte == 0xc2 or byte == 0xc3:
        reader.at += 1
        return byte == 0xc3
    if byte == 0xca:
        bits = big32(at + 1)
        memcpy(&single, &bits, 4)
        reader.at += 5
        return PyFloat_FromDouble(single)
    if byte == 0xcb:
        large = big64(at + 1)
        memcpy(&number, &large, 8)
        reader.at += 9
        return PyFloat_FromDouble(number)
    if read_integer(reader, &whole):
        return PyLong_FromLongLong(whole)
    if byte == 0xcf:
        reader.at += 9
        return PyLong_FromUnsignedLongLong(big64(at + 1))
    if read_map(reader, &length):
        return read_map_body(reader, length)
    if read_array(reader, &length):
        return read_array_body(reader, length)
    head = extension_head(at, &size)
    reader.at += head + size
    return Ext(
        <int8_t>at[head - 1], PyBytes_FromStringAndSize(<const char*>at + head, <Py_ssize_t>size)
    )


cdef list read_array_body(Reader* reader, uint32_t length):
    cdef list items = PyList_New(length)
    cdef object item
    cdef uint32_t index
    for index in range(length):
        item = read_value(reader)
        Py_INCREF(item)  # PyList_SET_ITEM takes over a reference
        PyList_SET_ITEM(items, index, item)
    return items


cdef dict read_map_body(Reader* reader, uint32_t length):
    cdef dict entries = {}
    cdef object key
    cdef uint32_t index
    cdef uint8_t byte
    for index in range(length):
        byte = reader.at[0]
        if 0x80 <= byte <= 0x9f or 0xdc <= byte <= 0xdf:
            raise UnpackError("a map has a map or an array for a key")
        key = read_value(reader)
        entries[key] = read_value(reader)
    return entries


# --- writing ---------------------------------------------------------------------------------

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


# --- for Python ------------------------------------------------------------------------------

def packb(value):
    """Writes one value as MessagePack.

    :param value: None, bool, int (64 bits), float, str, bytes, bytearray, memoryview, list,
        tuple, dict or :class:`Ext`, nested at most ``MAX_NESTING`` deep.
    :returns: the bytes.
    :raises PackError: when `value` holds anything else.
    """
    cdef Buffer out
    out.data = NULL
    out.begin = out.end = out.capacity = 0
    try:
        write_value(&out, value, 0)
        return PyBytes_FromStringAndSize(out.data + out.begin, <Py_ssize_t>buffer_size(&out))
    finally:
        buffer_free(&out)


def unpackb(const uint8_t[::1] data not None):
    """Reads exactly one value.

    :param data: bytes, or anything with a contiguous buffer of them.
    :returns: the value; text that is not UTF-8 holds surrogates, see the module's docstring.
    :raises UnpackError: when `data` is cut short, has something behind the value, is malformed
        or exceeds a limit.
    """
    cdef Scanner scanner
    cdef Reader reader
    cdef size_t size = <size_t>data.shape[0]
    scanner_reset(&scanner)
    if size == 0 or scan(&scanner, &data[0], size, SIZE_MAX) == 0:
        raise UnpackError("the bytes end inside a value")
    if scanner.offset != size:
        raise UnpackError(f"{size - scanner.offset} bytes follow the value")
    reader.at = &data[0]
    return read_value(&reader)


LIMITS = {
    "nesting": MAX_NESTING,
    "collection": MAX_COLLECTION,
    "values": MAX_VALUES,
}
