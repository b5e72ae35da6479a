"""The right to act for the loop: to change events and to write to connections."""

from cpython.pythread cimport PyThread_type_lock


cdef class LoopLock:
    cdef PyThread_type_lock lock
    cdef bint shared              # others than the loop's thread may take it
    cdef bint held_by_loop

    cdef int enter(self) noexcept
    cdef int leave(self) noexcept
    cdef bint try_acquire(self) noexcept
    cdef int release(self) noexcept
