"""The right to act for the loop; see ``turn.pxd``.

The loop's thread has it while it is awake. When the loop sleeps, a handler's thread borrows it to
write its PDK call itself: waking the loop for that would cost more than all the rest. Until there
are such threads nothing is locked.
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
        """Lets other threads borrow it from now on. On the loop's thread, in its turn."""
        if not self.shared:
            self.shared = True
            self.take()

    cdef int take(self) noexcept:
        """On the loop's thread: waits until nobody has borrowed it."""
        if not self.shared or self.taken_by_loop:
            return 0
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.taken_by_loop = True
        return 0

    cdef int give_back(self) noexcept:
        """On the loop's thread, before it sleeps."""
        if self.taken_by_loop:
            self.taken_by_loop = False
            PyThread_release_lock(self.lock)
        return 0

    cdef bint borrow(self) noexcept:
        """On another thread: whether it was to be had; if so, it is to be returned soon."""
        return self.shared and PyThread_acquire_lock(self.lock, NOWAIT_LOCK)

    cdef int return_it(self) noexcept:
        PyThread_release_lock(self.lock)
        return 0
