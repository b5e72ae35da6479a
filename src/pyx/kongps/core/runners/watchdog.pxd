"""Watches plugin code on the loop's thread."""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint64_t

from kongps.core.dispatch.event cimport Event


cdef class Visits:
    """When plugin code has the loop's thread. The watchdog reads it without the GIL."""
    cdef uint64_t number          # odd while plugin code has the thread
    cdef unsigned long thread     # the loop's
    cdef Event event              # whose handler has the thread,
    cdef object hook              # or what else, as `InlineRunner.visit` was called with
    cdef uint64_t suspect         # the visit that takes long, says the watchdog
    cdef object caught            # called when a suspect ends before the watchdog could look
    cdef bint interrupted         # an exception is on its way to the thread
    cdef long collector           # the thread, as the kernel knows it, that looks for garbage; or 0
    cdef bint dozing              # the watchdog sleeps until `rouse` is released
    cdef PyThread_type_lock rouse

    cdef int enter(self) noexcept
    cdef int leave(self, Event event) except -1
