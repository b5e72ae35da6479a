"""Protocol Buffers over C buffers: a writer."""

from libc.stdint cimport uint64_t

from kongps.core.io.buffer cimport Buffer
from kongps.core.wire.protobuf_types cimport MessageType

cdef int encode(Buffer* out, MessageType kind, object value, int depth) except -1
cdef int encode_args(Buffer* out, MessageType kind, tuple args) except -1
cdef int write_varint(Buffer* out, uint64_t value) except -1
