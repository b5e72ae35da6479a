"""A growable run of bytes; see ``buffer.pxd``."""

from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef enum:
    FIRST_CAPACITY = 256  # holds any message of an event that carries no body


cdef int buffer_grow(Buffer* buffer, size_t extra) except -1:
    cdef size_t used = buffer.end - buffer.begin
    cdef size_t capacity = buffer.capacity or FIRST_CAPACITY
    cdef char* data
    if extra > <size_t>(-1) // 2 - used:
        raise MemoryError
    while capacity < used + extra:
        capacity *= 2
    if buffer.begin:
        memmove(buffer.data, buffer.data + buffer.begin, used)
        buffer.begin = 0
        buffer.end = used
    if capacity != buffer.capacity:
        data = <char*>realloc(buffer.data, capacity)
        if data == NULL:
            raise MemoryError
        buffer.data = data
        buffer.capacity = capacity
    return 0


cdef void buffer_free(Buffer* buffer) noexcept:
    free(buffer.data)
    buffer.data = NULL
    buffer.begin = buffer.end = buffer.capacity = 0

