"""MessagePack over C buffers: a writer."""

from libc.stdint cimport uint64_t

from kongps.core.io.buffer cimport Buffer

cdef enum:
    # Deepest nesting of arrays and maps, in both directions. Kong nests a PDK call four deep;
    # the rest is for JSON bodies. It bounds the C stack that reading and writing use.
    MAX_NESTING = 128

cdef int write_value(Buffer* out, object value, int depth) except -1
cdef int write_unsigned(Buffer* out, uint64_t value) except -1
cdef int write_array(Buffer* out, size_t length) except -1
cdef int write_text(Buffer* out, const char* text, size_t size) except -1


cdef class Ext:
    cdef readonly int code
    cdef readonly bytes data
