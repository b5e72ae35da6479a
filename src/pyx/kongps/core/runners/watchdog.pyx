"""Watches plugin code on the loop's thread, where it holds up every other request.

Every few milliseconds a thread without the GIL reads a number that is odd while plugin code has the
loop's thread, and that changes whenever plugin code gets the thread or gives it back. This costs the
code that is watched two additions. A second thread does what needs the GIL: code that holds the GIL
keeps that one waiting, but not the first.

Time in which the code could not run does not count: while Python's garbage collector runs, which
takes long where a plugin keeps much in memory, or while other processes have the processor, which in
a container may be for 100 ms at a time.
"""

import contextlib
import signal
import sys
from gc import callbacks as gc_callbacks  # before a plugin may replace it
from logging import ERROR
from threading import Thread  # before a plugin may replace it

from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock, PyThread_type_lock,
)
from libc.stdint cimport uint64_t
from libc.stdio cimport FILE, fclose, fopen, fscanf, snprintf
from libc.string cimport strlen
from posix.time cimport clock_gettime, nanosleep, timespec
from posix.types cimport clockid_t
from posix.unistd cimport _exit, write

from kongps.core.dispatch.event cimport Event
from kongps.core.io.clock cimport monotonic

from kongps.core.report import place_of, report
from kongps.errors import HandlerTimeout

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_native_id()

cdef enum:
    # How Linux numbers the clocks of threads: eight to each, by the inverted id of the thread; this
    # one is a thread's (4), and counts what the scheduler gave it (2).
    THREAD_CLOCK = 4 | 2

# Interrupts a system call that plugin code waits in. Its default is to be ignored, so that a child
# process which gets one lives on.
INTERRUPT = signal.SIGURG

# Seconds without plugin code after which the watchdog looks less often, until there is some.
cdef double QUIET = 1.0

# Seconds between attempts to interrupt a handler, and after the first until the process ends.
cdef double AGAIN = 1.0
cdef double GRACE = 5.0

# Seconds between two looks, at most.
cdef double LONGEST_PAUSE = 0.1

cdef const char* LAST_WORDS = (
    b"kongps: a handler holds the process for longer than --handler-timeout and cannot be "
    b"interrupted; ending the process, to be started again\n"
)

cdef const char* LAST_WORDS_OF_LOOP = (
    b"kongps: the server has done nothing for longer than --handler-timeout: plugin code in another "
    b"thread holds the GIL, or one that the server waits for; ending the process, to be "
    b"started again\n"
)


cdef class Visits:
    """When plugin code has the loop's thread."""

    cdef int enter(self) noexcept:
        """Plugin code gets the thread."""
        self.number += 1
        return 0

    cdef int leave(self, Event event) except -1:
        """Plugin code, the handler of `event` or the hook, gives the thread back."""
        cdef bint suspected = self.suspect == self.number
        self.number += 1  # before anything that may raise
        if suspected and self.caught is not None:
            self.suspect = 0
            try:
                self.caught(event, self.hook)
            except BaseException as error:
                report(ERROR, "the watchdog has failed once", error=error)
        return 0


cdef class Watchdog:
    """Watches plugin code on the loop's thread.

    Code that holds the thread for longer than ``threshold`` is reported, once each visit; time in
    which it could not run does not count. After ``timeout`` it is interrupted by
    a :class:`HandlerTimeout`; if that does not help, as in C code that never returns or where the
    loop does not run on the main thread, the process ends, to be started again.

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
    cdef long native_thread       # the loop's, as the kernel knows it
    cdef double ran               # seconds of the processor that it had, at the last look
    cdef double excused           # seconds of the visit in which the code could not run
    cdef double interrupted_at
    cdef uint64_t late            # the visit that is to be interrupted
    cdef uint64_t beats           # calls of `beat`; 0: the loop is not watched
    cdef bint reported
    cdef bint stopping
    # What the thread with the GIL is to do: about a visit, or to stop. It waits for `ask`.
    cdef PyThread_type_lock ask
    cdef uint64_t asked_of
    cdef bint asked_to_interrupt

    def __init__(self, Visits visits not None, double threshold, double timeout, blocked):
        self.ask = PyThread_allocate_lock()
        if self.ask == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.ask, NOWAIT_LOCK)
        self.visits = visits
        self.threshold = threshold
        self.timeout = timeout
        self.blocked = blocked

    def __dealloc__(self):
        if self.ask != NULL:
            PyThread_free_lock(self.ask)

    def start(self):
        """Begins to watch the thread that calls this, the loop's."""
        self.stopping = False
        self.native_thread = PyThread_get_thread_native_id()
        self.visits.caught = self._caught
        gc_callbacks.append(self._collects)
        Thread(target=self._act, name="kongps-watchdog-acts", daemon=True).start()
        Thread(target=self._look, name="kongps-watchdog", daemon=True).start()

    def beat(self):
        """To be called by the loop every few seconds, from the first call on: it turns."""
        self.beats += 1

    def stop(self):
        """Watches no more."""
        self.stopping = True
        self.visits.caught = None
        with contextlib.suppress(ValueError):  # a plugin may have emptied the list
            gc_callbacks.remove(self._collects)
        self.visits.collector = 0

    def interrupted(self):
        """From the handler of the signal ``INTERRUPT``, on the loop's thread.

        :raises HandlerTimeout: when plugin code is to be interrupted.
        """
        if self.late and self.late == self.visits.number:
            raise HandlerTimeout(f"it has held the server for {self.timeout:g} s")

    def _collects(self, when, info):
        self.visits.collector = PyThread_get_thread_native_id() if when == "start" else 0

    def _look(self):
        with nogil:
            self.look()
            PyThread_release_lock(self.ask)  # the other thread ends too

    def _act(self):
        cdef uint64_t visit
        while True:
            with nogil:
                PyThread_acquire_lock(self.ask, WAIT_LOCK)
            visit = self.asked_of
            if self.stopping:
                return
            try:
                if self.visits.number == visit:
                    if self.asked_to_interrupt:
                        # Its handler raises an exception in the code that holds the thread.
                        self.late = visit
                        signal.pthread_kill(self.visits.thread, INTERRUPT)
                    else:
                        self.report_blocked()
            except BaseException as error:
                report(ERROR, "the watchdog has failed once", error=error)
            self.asked_of = 0

    cdef int look(self) noexcept nogil:
        """Looks until `stop` is called."""
        cdef timespec pause
        cdef uint64_t visit
        cdef uint64_t beats = 0
        cdef double held, before
        cdef double now = monotonic()
        cdef double beaten = now
        cdef double busy = min(max(self.threshold / 4, 0.001), LONGEST_PAUSE)
        cdef double quiet = min(4 * busy, LONGEST_PAUSE)
        pause.tv_sec = 0
        self.since = now
        while not self.stopping:
            before = now
            pause.tv_nsec = <long>(
                1e9 * (quiet if self.visit & 1 == 0 and now - self.since > QUIET else busy)
            )
            nanosleep(&pause, NULL)
            now = monotonic()
            if now - before > 2 * QUIET:  # the whole process was stopped meanwhile
                self.since += now - before
                beaten += now - before
                before = now
            visit = self.visits.number
            if visit != self.visit or self.beats != beats:
                beaten = now
                beats = self.beats
            elif beats and now - beaten > self.timeout + GRACE:
                self.end_process(LAST_WORDS_OF_LOOP if visit & 1 == 0 else LAST_WORDS)
            if visit != self.visit:
                self.visit = visit
                self.since = now
                self.reported = False
                self.interrupted_at = 0
                self.excused = 0
                self.ran = self.thread_time()
            elif visit & 1:
                if not self.reported:
                    self.excused += self.excuse(now - before)
                held = now - self.since
                if held > self.timeout + GRACE:
                    self.end_process(LAST_WORDS)
                if held > self.timeout and now - self.interrupted_at > AGAIN:
                    self.interrupted_at = now
                    self.request(True)
                elif held > self.threshold + self.excused and not self.reported:
                    self.reported = True
                    self.visits.suspect = visit
                    self.request(False)
        return 0

    cdef double excuse(self, double seconds) noexcept nogil:
        """Of the seconds since the last look, those in which the code could not run.

        A collection excuses only while it runs: what blocks in a finalizer does so for the code.
        """
        cdef long collector = self.visits.collector
        cdef double before = self.ran
        cdef double had
        self.ran = self.thread_time()
        if collector and is_runnable(collector):
            return seconds
        had = self.ran - before
        if before < 0 or self.ran < 0 or had > seconds / 2:
            return 0
        return seconds - had if is_runnable(self.native_thread) else 0

    cdef double thread_time(self) noexcept nogil:
        """Seconds of the processor that the loop's thread has had; below 0 when it is not known."""
        cdef timespec had
        if clock_gettime(<clockid_t>((-self.native_thread - 1) * 8 + THREAD_CLOCK), &had):
            return -1
        return <double>had.tv_sec + <double>had.tv_nsec * 1e-9

    cdef int request(self, bint interrupt) noexcept nogil:
        """Asks the other thread to do something about the present visit, when it can."""
        if self.asked_of == 0:
            self.asked_to_interrupt = interrupt
            self.asked_of = self.visit
            PyThread_release_lock(self.ask)
        return 0

    cdef int end_process(self, const char* words) noexcept nogil:
        write(2, words, strlen(words))
        _exit(1)

    cdef int report_blocked(self) except -1:
        cdef Event event = self.visits.event
        cdef object path = "" if event is None else event.instance.plugin.path
        cdef object frame = sys._current_frames().get(self.visits.thread)
        self.visits.suspect = 0
        self.blocked(event, self.visits.hook, self.held(), place_of(frame, path))
        return 0

    def _caught(self, event, hook):
        """A suspect has ended before the watchdog had the GIL: C code held it."""
        self.blocked(event, hook, self.held(), None)

    cdef double held(self) noexcept:
        return monotonic() - self.since - self.excused



cdef bint is_runnable(long thread) noexcept nogil:
    """Whether a thread of this process runs, or would if it had a processor.

    What the kernel says: the letter behind the thread's name, which stands in parentheses.
    """
    cdef char path[64]
    cdef char state = 0
    cdef FILE* file
    snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", thread)
    file = fopen(path, "re")
    if file == NULL:
        return False
    fscanf(file, "%*d (%*[^)]) %c", &state)
    fclose(file)
    return state == c"R"
