"""Sockets, timers and wake-ups. The loop knows no protocol: a ``Stream`` is bytes both ways."""

from posix.types cimport dev_t, ino_t

from kongps.core.io.buffer cimport Buffer
from kongps.core.io.loop_lock cimport LoopLock

cdef enum:
    # A peer that lets this many answer bytes pile up is not read from until they are gone. One
    # answer may be larger by itself.
    MOST_UNSENT = 1048576
    RECEIVE_SIZE = 262144         # most bytes of one connection before others get their turn


cdef class Watched:
    """A file descriptor in the loop."""
    cdef Loop loop
    cdef int fd
    cdef unsigned int interest
    cdef bint urgent              # looked at between any two others
    cdef dev_t device             # of the file that `fd` is of, as is `inode`
    cdef ino_t inode

    cdef int remember(self) except -1
    cdef bint is_own(self, int fd) noexcept
    cdef bint intact(self) noexcept
    cdef int ready(self, unsigned int events) except -1
    cdef int failed(self, object error) except -1
    cdef int watch(self, unsigned int interest) except -1
    cdef int epoll(self) noexcept
    cdef int close(self) except -1
    cdef bint leave(self) except -1


cdef class Stream(Watched):
    """One accepted connection."""
    cdef Buffer* outbox
    cdef bint ended               # the peer sends no more
    cdef bint shared              # other processes have it open: closing it says so to the peer
    cdef bint full                # what the peer sends is not read for now

    cdef int received(self, const char* data, size_t size, double now) except -1
    cdef int pump(self, double now) except -1
    cdef int lost(self) except -1
    cdef int flush(self) except -1
    cdef bint busy(self) except -1
    cdef int close_if_idle(self) except -1


cdef class Listener(Watched):
    """A listening socket, and what makes the streams of those who connect."""
    cdef object listening         # the socket.socket; keeps fd open
    cdef object accept_stream
    cdef double told_at           # when the log was last told that no connection can be taken

    cdef int finish(self) except -1
    cdef int tell_of(self, int error) except -1
    cdef int pause(self, int error) except -1


cdef class Waker(Watched):
    """A pipe that ends the loop's sleep, from signal handlers and other threads."""
    cdef int write_fd


cdef class Timer:
    cdef readonly double when     # monotonic seconds
    cdef long order
    cdef object callback


cdef class Loop:
    cdef int epoll_fd
    cdef int urgent_fd            # an epoll of its own; -1 where nothing is urgent
    cdef dict watched             # by file descriptor
    cdef set listeners            # those of them that ``listen`` has made
    cdef list closed_now          # closed while their events are still in hand
    cdef list orphans             # closed by somebody else, while the epoll may know them
    cdef public object on_loss    # called when file descriptors were closed by somebody else
    cdef char* receive_buffer     # `own_buffer`, or memory of somebody else
    cdef char* own_buffer
    cdef list timers              # a heap
    cdef long timers_made
    cdef object calls             # collections.deque, filled by other threads too
    cdef readonly LoopLock turn
    cdef Waker waker
    cdef bint asleep              # or about to be, having looked for calls
    cdef bint stopping
    cdef double woke              # when it last woke, monotonic seconds,
    cdef readonly double arrived  # and the earliest time at which what it found then can have come
    cdef public bint draining             # a connection is closed when nothing is left to do on it
    cdef readonly Py_ssize_t streams      # connections that are open
    cdef readonly Py_ssize_t max_streams

    cdef int add(self, Watched one, int fd, unsigned int interest) except -1
    cdef int add_stream(self, Stream stream, int fd) except -1
    cdef int add_urgent(self, Stream stream, int fd) except -1
    cdef int run_urgent(self) except -1
    cdef int timeout(self) except -2
    cdef int run_timers(self) except -1
    cdef int run_calls(self) except -1
    cdef int wait_failed(self, int error) except -1
    cdef int watch_urgent(self) except -1
    cdef bint epolls_intact(self) noexcept
    cdef int not_watched(self, int error) except -1
    cdef int mend_soon(self, Watched one) except -1
    cdef int renew_epolls(self, list left) except -1
