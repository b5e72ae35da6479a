"""Protocol Buffers over C buffers, for the messages of ``kongps.core.wire.tables``: a reader."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kongps.core.wire.protobuf_types cimport MessageType

cdef enum:
    # Most values in one message. One takes two bytes on the wire at least, up to 64 in memory.
    MAX_ITEMS = 1048576

cdef struct Span:
    # Bytes of a message that are still to be read.
    const uint8_t* at
    const uint8_t* end
    uint32_t items

cdef object decode(MessageType kind, const uint8_t* data, size_t size)
cdef object decode_only(MessageType kind, const uint8_t* data, size_t size)
cdef int read_varint(Span* span, uint64_t* value) except -1
cdef int read_run(Span* span, const uint8_t** data, size_t* size) except -1
cdef int skip_field(Span* span, uint64_t tag) except -1
