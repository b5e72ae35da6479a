"""Waits for file descriptors and timers over epoll, and calls what is due."""

from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.io.waker cimport Waker

cdef enum:
    RECEIVE_SIZE = 262144         # most bytes of one connection before others get their turn


cdef class Watched:
    """A file descriptor in the loop; the base of streams and listeners."""
    cdef Loop loop
    cdef int fd
    cdef unsigned int interest
    cdef bint urgent              # looked at between any two others

    cdef int ready(self, unsigned int events) except -1
    cdef int on_error(self, object error) except -1
    cdef int watch(self, unsigned int interest) except -1
    cdef int control(self, int operation, unsigned int interest) noexcept
    cdef bint intact(self) noexcept
    cdef int close(self) except -1
    cdef bint leave(self) except -1
    cdef int descriptor_lost(self) except -1
    cdef int close_if_idle(self) except -1
    cdef int finish(self) except -1


cdef class Timer:
    cdef readonly double when     # monotonic seconds
    cdef long order
    cdef object callback


cdef class Loop:
    cdef int epoll_fd
    cdef int urgent_fd            # an epoll of its own; -1 where nothing is urgent
    cdef dict watched             # Watched by file descriptor
    cdef set listeners            # those of them that listen
    cdef list closed_now          # closed while their events are still to be looked at
    cdef list orphans             # closed by plugin code: the epoll may still know them
    cdef char* receive_buffer     # `own_buffer`, or memory that others can read
    cdef char* own_buffer
    cdef list timers              # a heap
    cdef long timers_made
    cdef object calls             # collections.deque, filled by other threads too
    cdef readonly LoopLock lock
    cdef Waker waker
    cdef bint asleep              # or about to be, having looked for calls
    cdef bint stopping
    cdef readonly str failed      # why `run` returned without a `stop`; None while it did not
    cdef double woke              # when it last woke, monotonic seconds,
    cdef readonly double arrived  # and the earliest time at which what it found then can have come
    cdef public bint draining             # a connection is closed when nothing is left to do on it
    cdef readonly Py_ssize_t streams      # connections that are open
    cdef readonly Py_ssize_t max_streams

    cdef int add(self, Watched one, int fd, unsigned int interest) except -1
    cdef int add_stream(self, Watched stream, int fd) except -1
    cdef int add_urgent(self, Watched stream, int fd) except -1
    cdef int fail(self, str what) except -1
    cdef int epoll_lost(self) except -1
    cdef int handle(self, Watched one, unsigned int events) except -1
    cdef int woken(self) except -1
    cdef int run_urgent(self) except -1
    cdef int timeout(self) except -2
    cdef int run_timers(self) except -1
    cdef int run_calls(self) except -1
    cdef int call(self, object callback) except -1
