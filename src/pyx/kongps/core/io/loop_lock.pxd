"""The right to act for the loop: to change events and to write to connections."""

from cpython.pythread cimport PyThread_type_lock


cdef class LoopLock:
    cdef PyThread_type_lock lock
    cdef bint shared              # others than the loop's thread may take it
    cdef bint taken_by_loop

    cdef int take(self) noexcept
    cdef int give_back(self) noexcept
    cdef bint borrow(self) noexcept
    cdef int return_it(self) noexcept
