"""MessagePack over C buffers: a scanner that finds and checks messages, and a reader.

Scanning comes first and is the only place that looks at bounds: it walks the bytes of a message
once, as they arrive, and holds every limit. The reader trusts a message that was scanned
whole and checks nothing again.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kongps.core.wire.msgpack_writer cimport MAX_NESTING

cdef enum:
    # Most entries of one array or map, and most values of one message. An empty value takes one
    # byte on the wire and up to 64 in memory, so this bounds what a message can cost.
    MAX_COLLECTION = 1048576
    MAX_VALUES = 2097152

cdef struct Scanner:
    size_t offset                # bytes of the message walked so far
    uint32_t values              # values met so far
    int depth                    # collections open
    uint64_t left[MAX_NESTING]   # values still to come in each of them

cdef struct Reader:
    const uint8_t* at            # inside a message that was scanned whole

cdef void scanner_reset(Scanner* scanner) noexcept
cdef int scan(Scanner* scanner, const uint8_t* data, size_t size, size_t longest) except -1

cdef object read_value(Reader* reader)
cdef int skip_value(Reader* reader) except -1
cdef bint read_integer(Reader* reader, int64_t* value) noexcept
cdef bint read_text(Reader* reader, const char** text, size_t* size) noexcept
cdef bint read_array(Reader* reader, uint32_t* length) noexcept
cdef bint read_map(Reader* reader, uint32_t* length) noexcept
