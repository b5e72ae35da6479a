"""Protocol Buffers over C buffers, for the messages of ``kongps.core.wire.tables``."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kongps.core.io.buffer cimport Buffer

cdef enum:
    # Deepest nesting of messages, Structs and lists, in both directions; it bounds the C stack.
    MAX_DEPTH = 128
    # Most values in one message. One takes two bytes on the wire at least, up to 64 in memory.
    MAX_ITEMS = 1048576

cdef enum FieldKind:
    BOOL, INT32, INT64, DOUBLE, STRING, BYTES, MESSAGE

cdef enum WellKnown:
    PLAIN_MESSAGE, VALUE, STRUCT, LIST_VALUE, EMPTY

cdef class FieldType:
    cdef readonly str name
    cdef readonly int number
    cdef FieldKind kind
    cdef bint repeated
    cdef bint mapped                # a map from strings
    cdef MessageType message        # of a field of kind MESSAGE

cdef class MessageType:
    cdef readonly str name
    cdef WellKnown well_known
    cdef list fields                # in the order of their numbers
    cdef FieldType find(self, uint64_t number)

cdef struct Span:
    # Bytes of a message that are still to be read.
    const uint8_t* at
    const uint8_t* end
    uint32_t items

cdef MessageType message_type(str name)
cdef object decode(MessageType kind, const uint8_t* data, size_t size)
cdef object decode_only(MessageType kind, const uint8_t* data, size_t size)
cdef int encode(Buffer* out, MessageType kind, object value, int depth) except -1
cdef int encode_args(Buffer* out, MessageType kind, tuple args) except -1
cdef int read_varint(Span* span, uint64_t* value) except -1
cdef int read_run(Span* span, const uint8_t** data, size_t* size) except -1
cdef int skip_field(Span* span, uint64_t tag) except -1
cdef int write_varint(Buffer* out, uint64_t value) except -1
