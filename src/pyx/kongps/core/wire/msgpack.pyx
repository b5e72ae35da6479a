"""MessagePack over C buffers: scanning and reading; see ``msgpack.pxd``.

How values map: nil, booleans, integers and floats to their Python types; ``bin`` to ``bytes``;
``ext`` to :class:`Ext`; arrays to lists; maps to dicts. ``str`` becomes Python's ``str``: Kong
sends arbitrary bytes in it, so bytes that are not UTF-8 become lone surrogates (the
``surrogateescape`` error handler) and turn back into the same bytes on the way out.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport SIZE_MAX, int8_t, int16_t, int32_t, uint16_t
from libc.string cimport memcpy

from kongps.core.io.buffer cimport Buffer, buffer_free, buffer_size
from kongps.core.wire.msgpack_writer cimport MAX_NESTING, write_value

from kongps.core.wire.msgpack_writer import Ext
from kongps.errors import UnpackError

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

cdef inline double float_at(const uint8_t* at) noexcept:
    """The number of a float 32 or a float 64."""
    cdef uint32_t bits
    cdef uint64_t long_bits
    cdef float single
    cdef double number
    if at[0] == 0xca:
        bits = big32(at + 1)
        memcpy(&single, &bits, 4)
        return single
    long_bits = big64(at + 1)
    memcpy(&number, &long_bits, 8)
    return number


cdef bint read_integer(Reader* reader, int64_t* value) noexcept:
    """Reads a whole number that fits 64 signed bits, whatever type it travelled as.

    False, and nothing read, when the next value is no such number. Lua knows only doubles: a
    whole number may arrive as one.
    """
    cdef const uint8_t* at = reader.at
    cdef uint8_t byte = at[0]
    cdef uint64_t large
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
        number = float_at(at)
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
    cdef uint32_t length
    cdef int64_t whole
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
    if byte == 0xca or byte == 0xcb:
        reader.at += 5 if byte == 0xca else 9
        return PyFloat_FromDouble(float_at(at))
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
