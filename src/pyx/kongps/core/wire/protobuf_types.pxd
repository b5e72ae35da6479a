"""Protocol Buffers messages and their fields, from the table in ``kongps.core.wire.tables``."""

from libc.stdint cimport uint64_t

cdef enum:
    # Deepest nesting of messages, Structs and lists, in both directions; it bounds the C stack.
    MAX_DEPTH = 128

cdef enum WireType:
    VARINT = 0
    FIXED64 = 1
    RUN = 2
    FIXED32 = 5

cdef enum:
    # Fields of google.protobuf.Value.
    NULL_VALUE = 1
    NUMBER_VALUE = 2
    STRING_VALUE = 3
    BOOL_VALUE = 4
    STRUCT_VALUE = 5
    LIST_VALUE_FIELD = 6

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

cdef MessageType message_type(str name)
