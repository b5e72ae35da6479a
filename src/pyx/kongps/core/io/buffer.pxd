"""A growable run of bytes: what a connection has received or is about to send.

Bytes are appended at ``end`` and consumed at ``begin``. The functions on the path of every
message are inline; growing is not.
"""

from libc.string cimport memcpy

cdef enum:
    # Below this, a buffer keeps its memory when it runs empty; above, the memory goes back, so
    # that one large body does not stay with the connection that carried it.
    KEPT_CAPACITY = 65536

cdef struct Buffer:
    char* data
    size_t begin
    size_t end
    size_t capacity

cdef int buffer_grow(Buffer* buffer, size_t extra) except -1
cdef void buffer_free(Buffer* buffer) noexcept


cdef inline size_t buffer_size(const Buffer* buffer) noexcept:
    return buffer.end - buffer.begin


cdef inline int buffer_reserve(Buffer* buffer, size_t extra) except -1:
    """Makes room for `extra` more bytes behind ``end``; MemoryError if there is none."""
    if buffer.capacity - buffer.end < extra:
        buffer_grow(buffer, extra)
    return 0


cdef inline int buffer_append(Buffer* buffer, const void* data, size_t size) except -1:
    buffer_reserve(buffer, size)
    memcpy(buffer.data + buffer.end, data, size)
    buffer.end += size
    return 0


cdef inline void buffer_consume(Buffer* buffer, size_t size) noexcept:
    """Forgets the first `size` bytes; the caller knows that there are that many."""
    buffer.begin += size
    if buffer.begin == buffer.end:
        if buffer.capacity > KEPT_CAPACITY:
            buffer_free(buffer)
        else:
            buffer.begin = buffer.end = 0
