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
import threading
from gc import callbacks as gc_callbacks  # before a plugin may replace it
from logging import ERROR
from threading import Thread  # before a plugin may replace it

from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock,
)
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strlen, strrchr
from posix.fcntl cimport O_RDONLY
from posix.fcntl cimport open as open_fd
from posix.time cimport clock_gettime, nanosleep, timespec
from posix.types cimport clockid_t
from posix.unistd cimport _exit
from posix.unistd cimport close as close_fd
from posix.unistd cimport read as read_fd
from posix.unistd cimport write as write_fd

from kongps.core.dispatch.event cimport Event
from kongps.core.io.clock cimport monotonic

from kongps.core.report import place_of, report
from kongps.errors import HandlerTimeout

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long thread, PyObject* kind)

cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_native_id()
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)

cdef extern from *:
    void full_barrier "__sync_synchronize" () noexcept nogil

cdef enum:
    # How Linux numbers the clocks of threads: eight to each, by the inverted id of the thread; this
    # one is a thread's (4), and counts what the scheduler gave it (2).
    THREAD_CLOCK = 4 | 2

# Interrupts a system call that plugin code waits in. Its default is to be ignored, so that a child
# process which gets one lives on.
INTERRUPT = signal.SIGURG

# Seconds without plugin code after which the watchdog looks only that often, until there is some.
QUIET = 1.0

# Seconds between attempts to interrupt a handler, and after the first until the process ends.
AGAIN = 1.0
GRACE = 5.0

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

    def __init__(self):
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
        cdef bint suspected = self.suspect == self.number
        self.number += 1  # before anything that may raise
        if self.interrupted:
            self.interrupted = False
            PyThreadState_SetAsyncExc(self.thread, NULL)  # it has not come in time
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
    a :class:`HandlerTimeout`; if that does not help, as in C code that never returns, the process
    ends, so that whoever started it starts it again.

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
        if self.visits.dozing:
            self.visits.dozing = False
            PyThread_release_lock(self.visits.rouse)

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
                        self.interrupt(visit)
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
        cdef double interval = min(max(self.threshold / 4, 0.001), 0.1)
        pause.tv_sec = 0
        pause.tv_nsec = <long>(interval * 1e9)
        self.since = now
        while not self.stopping:
            before = now
            if self.visit & 1 == 0 and now - self.since > QUIET_SECONDS:
                self.doze()
            else:
                nanosleep(&pause, NULL)
            now = monotonic()
            if now - before > 2 * QUIET_SECONDS:  # the whole process was stopped meanwhile
                self.since += now - before
                beaten += now - before
                before = now
            visit = self.visits.number
            if visit != self.visit or self.beats != beats:
                beaten = now
                beats = self.beats
            elif beats and now - beaten > self.timeout + GRACE_SECONDS:
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
                if held > self.timeout + GRACE_SECONDS:
                    self.end_process(LAST_WORDS)
                if held > self.timeout and now - self.interrupted_at > AGAIN_SECONDS:
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
        write_fd(2, words, strlen(words))
        _exit(1)

    cdef int doze(self) noexcept nogil:
        """Sleeps until there is plugin code to watch, or for a while."""
        self.visits.dozing = True
        full_barrier()
        if self.visits.number == self.visit:
            PyThread_acquire_lock_timed(self.visits.rouse, <long long>(QUIET_SECONDS * 1e6), 0)
        self.visits.dozing = False
        return 0

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

    cdef int interrupt(self, uint64_t visit) except -1:
        """Raises an exception in the code that holds the loop's thread."""
        self.late = visit
        if self.visits.thread == threading.main_thread().ident:
            signal.pthread_kill(self.visits.thread, INTERRUPT)
        else:
            self.visits.interrupted = True
            PyThreadState_SetAsyncExc(self.visits.thread, <PyObject*>HandlerTimeout)
        return 0


cdef bint is_runnable(long thread) noexcept nogil:
    """Whether a thread of this process runs, or would if it had a processor.

    What the kernel says: the letter behind the thread's name, which stands in parentheses.
    """
    cdef char path[64]
    cdef char text[128]
    cdef char* name_end
    cdef ssize_t size
    cdef int fd
    snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", thread)
    fd = open_fd(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return False
    size = read_fd(fd, text, sizeof(text) - 1)
    close_fd(fd)
    if size <= 0:
        return False
    text[size] = 0
    name_end = strrchr(text, c")")
    return name_end != NULL and name_end[1] == c" " and name_end[2] == c"R"


cdef double QUIET_SECONDS = QUIET
cdef double AGAIN_SECONDS = AGAIN
cdef double GRACE_SECONDS = GRACE
