"""A pipe that ends the loop's sleep, from signal handlers and other threads."""


cdef class Waker:
    cdef int read_fd
    cdef readonly int write_fd

    cdef int wake(self) noexcept
    cdef int drain(self) except -1
    cdef bint intact(self) noexcept
    cdef int close(self) noexcept
