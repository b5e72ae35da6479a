"""The right to act for the loop: to change events and to write to connections.

The loop's thread has it while it is awake. While the loop sleeps, a handler's thread takes it to
write its PDK call itself. Waking the loop for each call would cost more than all the rest: an event
of the benchmark's hello, in threads at one connection, takes 2.5 times the processor time without
this. Until there are such threads nothing is locked.
"""

from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock,
)


cdef class LoopLock:
    """The right to act for a loop."""

    def __init__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def share(self):
        """Lets other threads take it from now on. On the loop's thread, while it is awake."""
        if not self.shared:
            self.shared = True
            self.enter()

    cdef int enter(self) noexcept:
        """On the loop's thread, when it wakes: waits until no other thread has it."""
        if not self.shared or self.held_by_loop:
            return 0
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.held_by_loop = True
        return 0

    cdef int leave(self) noexcept:
        """On the loop's thread, before it sleeps."""
        if self.held_by_loop:
            self.held_by_loop = False
            PyThread_release_lock(self.lock)
        return 0

    cdef bint try_acquire(self) noexcept:
        """On another thread: takes it, if the loop sleeps; `release` is to follow soon."""
        return self.shared and PyThread_acquire_lock(self.lock, NOWAIT_LOCK)

    cdef int release(self) noexcept:
        """On the thread that has taken it."""
        PyThread_release_lock(self.lock)
        return 0
