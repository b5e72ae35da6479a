"""The events under way, by their ids."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    # An id, where events of several processes meet: the phase, the process' tag, a number. Kong
    # knows ids as doubles, so they stay below 2**53. Without a tag an id is a number and no more.
    NUMBER_BITS = 38
    TAG_BITS = 12
    PHASE_SHIFT = 50


cdef inline int phase_in_id(int64_t id) noexcept:
    return <int>(id >> PHASE_SHIFT) & 7


cdef inline int tag_in_id(int64_t id) noexcept:
    return <int>(id >> NUMBER_BITS) & ((1 << TAG_BITS) - 1)


cdef struct Entry:
    int64_t id
    PyObject* event   # NULL: nobody has this place


cdef class EventTable:
    cdef Entry* entries
    cdef uint64_t capacity
    cdef uint64_t live
    cdef int64_t last_id
    cdef int64_t tag              # in its place of an id; -1: ids have none

    cdef int64_t add(self, object event, int phase) except -1
    cdef PyObject* find(self, int64_t id) noexcept
    cdef int remove(self, int64_t id) except -1
    cdef list all(self)
    cdef int phase_of(self, int64_t id) noexcept
    cdef int grow(self) except -1
