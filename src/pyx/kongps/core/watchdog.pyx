"""Watches over plugin code on the loop's thread: it holds up every other request.

A thread looks every few milliseconds, without Python's lock, at a number that is odd while plugin
code has the loop's thread and changes whenever it gets or gives it back. The code that is watched
pays for it with two additions.
"""

import signal
import sys
import threading
from logging import ERROR

from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock,
)
from libc.stdint cimport uint64_t
from libc.string cimport strlen
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport _exit
from posix.unistd cimport write as write_fd

from kongps.core.dispatch cimport Event
from kongps.core.phases cimport phase_name

from kongps.core.dispatch import HandlerTimeout
from kongps.core.report import place_of, report

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long thread, PyObject* kind)

# Interrupts a system call that plugin code waits in. Its default is to be ignored, so that a child
# process which gets one lives on.
INTERRUPT = signal.SIGURG

# Seconds without plugin code after which the watchdog sleeps until there is some.
QUIET = 1.0

# Seconds between attempts to interrupt a handler, and after the first until the process ends.
AGAIN = 1.0
GRACE = 5.0

cdef const char* LAST_WORDS = (
    b"kongps: a handler holds the process for longer than --handler-timeout and cannot be "
    b"interrupted; ending the process, to be started again\n"
)

cdef enum Sight:
    IDLE        # nothing to watch for some time
    BLOCKED     # a visit takes long
    LATE        # a visit takes too long
    ASKED       # to stop


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef class Visits:
    """When plugin code has the loop's thread."""

    def __cinit__(self):
        self.rouse = PyThread_allocate_lock()
        if self.rouse == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.rouse, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.rouse != NULL:
            PyThread_free_lock(self.rouse)

    cdef int enter(self) noexcept:
        """Plugin code gets the thread."""
        self.number += 1
        if self.dozing:
            self.dozing = False
            PyThread_release_lock(self.rouse)
        return 0

    cdef int leave(self, Event event) except -1:
        """Plugin code, the handler of `event` or the hook, gives the thread back."""
        if self.suspect == self.number and self.caught is not None:
            self.caught(event, self.hook)
        self.number += 1
        if self.interrupted:
            self.interrupted = False
            PyThreadState_SetAsyncExc(self.thread, NULL)  # it has not come in time
        return 0


cdef class Watchdog:
    """Watches plugin code on the loop's thread.

    Code that holds the thread for longer than ``threshold`` is told of, once each visit. After
    ``timeout`` it is interrupted by a :class:`HandlerTimeout`; if that does not help, as in C code
    that never returns, the process ends, so that whoever started it starts it again.

    :param visits: what to watch.
    :param threshold: seconds.
    :param timeout: seconds.
    :param blocked: called with the event or None, what runs instead of an event's handler or
        None, the seconds it has taken so far, and where it is or None. On the watchdog's thread,
        or on the loop's.
    """
    cdef Visits visits
    cdef double threshold
    cdef double timeout
    cdef object blocked
    cdef uint64_t visit           # the number last seen
    cdef double since             # when it was first seen
    cdef double interrupted_at
    cdef uint64_t late            # the visit that is to be interrupted
    cdef bint told
    cdef bint stopping
    cdef object thread

    def __init__(self, Visits visits not None, double threshold, double timeout, blocked):
        self.visits = visits
        self.threshold = threshold
        self.timeout = timeout
        self.blocked = blocked

    def start(self):
        """Begins to watch."""
        self.stopping = False
        self.visits.caught = self._caught
        self.thread = threading.Thread(target=self._watch, name="kongps-watchdog", daemon=True)
        self.thread.start()

    def stop(self):
        """Watches no more."""
        self.stopping = True
        self.visits.caught = None
        if self.visits.dozing:
            self.visits.dozing = False
            PyThread_release_lock(self.visits.rouse)

    def interrupted(self):
        """From the handler of the signal ``INTERRUPT``, on the loop's thread.

        :raises HandlerTimeout: when plugin code is to be interrupted.
        """
        if self.late and self.late == self.visits.number:
            raise HandlerTimeout(f"it has held the server for {self.timeout:g} s")

    def _watch(self):
        cdef Sight sight
        while True:
            with nogil:
                sight = self.look()
            if sight == ASKED or self.stopping:
                return
            try:
                if sight == IDLE:
                    self.doze()
                elif self.visits.number == self.visit:
                    if sight == BLOCKED:
                        self.tell()
                    else:
                        self.interrupt()
            except BaseException as error:
                report(ERROR, "the watchdog has failed once", error=error)

    cdef Sight look(self) noexcept nogil:
        """Looks until there is something to do for which Python's lock is needed."""
        cdef timespec pause
        cdef uint64_t visit
        cdef double held
        cdef double now = monotonic()
        cdef double quiet_since = now
        pause.tv_sec = 0
        pause.tv_nsec = <long>(min(max(self.threshold / 4, 0.001), 0.1) * 1e9)
        while not self.stopping:
            nanosleep(&pause, NULL)
            now = monotonic()
            visit = self.visits.number
            if visit != self.visit:
                self.visit = visit
                self.since = now
                self.told = False
                self.interrupted_at = 0
                quiet_since = now
            elif visit & 1 == 0:
                if now - quiet_since > QUIET_SECONDS:
                    return IDLE
            else:
                held = now - self.since
                if held > self.timeout + GRACE_SECONDS:
                    write_fd(2, LAST_WORDS, strlen(LAST_WORDS))
                    _exit(1)
                if held > self.timeout and now - self.interrupted_at > AGAIN_SECONDS:
                    self.interrupted_at = now
                    return LATE
                if held > self.threshold and not self.told:
                    self.told = True
                    self.visits.suspect = visit
                    return BLOCKED
        return ASKED

    cdef int doze(self) except -1:
        """Sleeps until there is plugin code to watch."""
        if self.visits.number != self.visit:
            return 0
        self.visits.dozing = True
        with nogil:
            PyThread_acquire_lock(self.visits.rouse, WAIT_LOCK)
        return 0

    cdef int tell(self) except -1:
        cdef Event event = self.visits.event
        cdef object path = "" if event is None else getattr(event.instance.plugin, "path", "")
        cdef object frame = sys._current_frames().get(self.visits.thread)
        self.visits.suspect = 0
        self.blocked(event, self.visits.hook, monotonic() - self.since, place_of(frame, path))
        return 0

    def _caught(self, event, hook):
        """A suspect has ended before the watchdog had Python's lock: C code held it."""
        self.visits.suspect = 0
        self.blocked(event, hook, monotonic() - self.since, None)

    cdef int interrupt(self) except -1:
        """Has an exception raised in the code that holds the loop's thread."""
        self.late = self.visit
        if self.visits.thread == threading.main_thread().ident:
            signal.pthread_kill(self.visits.thread, INTERRUPT)
        else:
            self.visits.interrupted = True
            PyThreadState_SetAsyncExc(self.visits.thread, <PyObject*>HandlerTimeout)
        return 0


cdef double QUIET_SECONDS = QUIET
cdef double AGAIN_SECONDS = AGAIN
cdef double GRACE_SECONDS = GRACE


def phase_of(Event event not None):
    """:returns: the name of the phase that an event is in."""
    return phase_name(event.phase)
