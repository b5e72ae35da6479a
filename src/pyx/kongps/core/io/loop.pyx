"""Waits for file descriptors and timers over epoll, and calls what is due.

One thread runs the loop. Everything on it is non-blocking. The loop knows no protocol; what
happens to a file descriptor is a matter of the ``Watched`` that has it.

Plugin code may close file descriptors that are not its own. Where the loop notices, a connection is
dropped; for anything else `run` returns, and ``failed`` says why: the process is to end, so that
it is started again. A number that is not ours any more is not closed, as far as that is known.
"""

import heapq
import os
from collections import deque
from logging import ERROR, WARNING

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.errno cimport EBADF, EINTR, ENOMEM, ENOSPC, errno
from posix.unistd cimport close as close_fd

from kongps.core.io.clock cimport coarse_monotonic, monotonic
from kongps.core.io.epoll cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait,
)
from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.io.waker cimport Waker

from kongps.core.report import report
from kongps.errors import DescriptorLost

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef enum:
    EVENTS_AT_ONCE = 256          # file descriptors that one wake-up looks at
    URGENT_AT_ONCE = 16

# Seconds of a wait that is none; a coarse clock's tick is up to 0.01 s.
cdef double NO_WAIT = 0.01


cdef class Watched:
    """A file descriptor in the loop; the base of streams and listeners."""

    def __cinit__(self):
        self.fd = -1

    cdef int ready(self, unsigned int events) except -1:
        """Handles `events`, which the loop found on the file descriptor."""
        raise NotImplementedError

    cdef int on_error(self, object error) except -1:
        """Handles what `ready` raised."""
        report(ERROR, "error in the event loop", error=error)
        return self.close()

    cdef int watch(self, unsigned int interest) except -1:
        """Changes what the loop waits for, EPOLLIN and EPOLLOUT."""
        cdef int operation
        if interest == self.interest:
            return 0
        if interest == 0:
            operation = EPOLL_CTL_DEL
        else:
            operation = EPOLL_CTL_MOD if self.interest else EPOLL_CTL_ADD
        if self.control(operation, interest) != 0:
            if errno == ENOMEM or errno == ENOSPC:
                raise OSError(errno, os.strerror(errno))
            # Plugin code has closed it, and the number may be another's.
            self.loop.watched.pop(self.fd, None)
            return self.close()
        self.interest = interest
        return 0

    cdef int control(self, int operation, unsigned int interest) noexcept:
        return control(
            self.loop.urgent_fd if self.urgent else self.loop.epoll_fd, operation, self.fd,
            <PyObject*>self, interest,
        )

    cdef bint intact(self) noexcept:
        """Whether the file descriptor is the one that the loop waits for."""
        return not self.interest or self.control(EPOLL_CTL_MOD, self.interest) == 0

    cdef int close(self) except -1:
        """Closes the file descriptor and leaves the loop."""
        if self.fd >= 0:
            if self.leave():
                close_fd(self.fd)
            self.fd = -1
        return 0

    cdef bint leave(self) except -1:
        """Leaves the loop. Returns whether there is a file descriptor to close.

        Not so when plugin code has closed it: the number may be another's by now.
        """
        cdef bint own = self.loop.watched.get(self.fd) is self
        self.loop.closed_now.append(self)  # first: the loop may hold the only reference
        if own:
            del self.loop.watched[self.fd]
        if self.interest and self.control(EPOLL_CTL_DEL, 0) != 0:
            own = False
        self.interest = 0
        if not own:
            self.loop.orphans.append(self)
            if self.loop.failed is None:
                self.descriptor_lost()
        return own

    cdef int descriptor_lost(self) except -1:
        """Plugin code has closed the file descriptor."""
        return self.loop.fail("a socket")

    cdef int close_if_idle(self) except -1:
        """Closes a connection, unless that would lose something. Others stay."""
        return 0

    cdef int finish(self) except -1:
        """Closes a connection, having sent what can be sent at once. Others stay."""
        return 0


cdef class Timer:
    """A call that is due at a time.

    :ivar when: the time, seconds of the monotonic clock.
    """

    def __lt__(self, Timer other not None):
        return (self.when, self.order) < (other.when, other.order)

    def cancel(self):
        """Makes the call not happen."""
        self.callback = None


cdef class Loop:
    """Waits for file descriptors and timers and calls what is due.

    Only ``call_soon_threadsafe`` and ``stop`` may be called from other threads or from signal
    handlers.

    :param max_streams: most connections open; others wait to be accepted.
    :ivar failed: why the loop has stopped by itself; None as long as it has not.
    """

    def __cinit__(self):
        self.epoll_fd = self.urgent_fd = -1
        self.own_buffer = self.receive_buffer = <char*>PyMem_Malloc(RECEIVE_SIZE)
        if self.own_buffer == NULL:
            raise MemoryError

    def __init__(self, Py_ssize_t max_streams):
        self.max_streams = max_streams
        self.arrived = coarse_monotonic()
        self.watched = {}
        self.listeners = set()
        self.closed_now = []
        self.orphans = []
        self.timers = []
        self.calls = deque()
        self.lock = LoopLock()
        self.waker = Waker()
        self.epoll_fd = open_epoll()
        control(self.epoll_fd, EPOLL_CTL_ADD, self.waker.read_fd, <PyObject*>self.waker)

    def __dealloc__(self):
        PyMem_Free(self.own_buffer)
        if self.urgent_fd >= 0:
            close_fd(self.urgent_fd)
        if self.epoll_fd >= 0:
            close_fd(self.epoll_fd)

    @property
    def wakeup_fd(self):
        """The file descriptor for ``signal.set_wakeup_fd``."""
        return self.waker.write_fd

    cdef int add(self, Watched one, int fd, unsigned int interest) except -1:
        """Watches a file descriptor; from now on it is closed with `one`."""
        cdef Watched before = self.watched.get(fd)
        one.loop = self
        one.fd = fd
        self.watched[fd] = one
        if before is not None:
            before.close()  # plugin code has closed its descriptor: the number is another's
        try:
            one.watch(interest)
        except OSError:
            one.close()
            raise
        if one.fd < 0:
            raise OSError(EBADF, "plugin code has closed it")
        return 0

    cdef int add_stream(self, Watched stream, int fd) except -1:
        """Watches a connection."""
        self.streams += 1
        return self.add(stream, fd, EPOLLIN)

    cdef int add_urgent(self, Watched stream, int fd) except -1:
        """Watches a connection that is looked at between any two others.

        Plugin code may take long, and what is short must not wait for all of it.
        """
        if self.urgent_fd < 0:
            self.urgent_fd = open_epoll()
            control(self.epoll_fd, EPOLL_CTL_ADD, self.urgent_fd, NULL)
        stream.urgent = True
        return self.add_stream(stream, fd)

    def close_listeners(self):
        """Accepts the connections that wait already, and no more; those that are open stay."""
        cdef Watched one
        for one in list(self.listeners):
            one.close()

    def close_idle_streams(self):
        """Closes every connection on which nothing is left to do."""
        cdef Watched one
        for one in list(self.watched.values()):
            one.close_if_idle()

    def close_streams(self):
        """Closes every connection, having sent what can be sent at once."""
        cdef Watched one
        for one in list(self.watched.values()):
            one.finish()

    def call_later(self, double delay, callback):
        """Calls `callback` without arguments after `delay` seconds.

        :returns: the :class:`Timer`, to be cancelled with ``cancel()``.
        """
        cdef Timer timer = Timer()
        self.timers_made += 1
        timer.when = monotonic() + delay
        timer.order = self.timers_made
        timer.callback = callback
        heapq.heappush(self.timers, timer)
        return timer

    def call_every(self, double interval, callback):
        """Calls `callback` every `interval` seconds, for as long as the loop runs."""
        def again():
            self.call_later(interval, again)
            callback()
        self.call_later(interval, again)

    def call_soon_threadsafe(self, callback):
        """Calls `callback` on the loop's thread when it next wakes. From any thread."""
        self.calls.append(callback)
        if self.asleep:
            self.wake()

    def wake(self):
        """Ends the loop's sleep. From any thread."""
        self.asleep = False
        self.waker.wake()

    def stop(self):
        """Makes ``run`` return soon. From any thread, or a signal handler."""
        self.stopping = True
        self.wake()

    def check(self):
        """Checks whether plugin code has closed something for which no event would come.

        To be called regularly: a listening socket that is closed is silent.
        """
        cdef Watched one
        if not self.waker.intact():
            self.fail("a pipe")
        elif control(self.epoll_fd, EPOLL_CTL_MOD, self.waker.read_fd, <PyObject*>self.waker) or (
            self.urgent_fd >= 0
            and control(self.epoll_fd, EPOLL_CTL_MOD, self.urgent_fd, NULL)
        ):
            self.epoll_lost()
        for one in list(self.listeners):
            if not one.intact():
                one.close()

    cdef int fail(self, str what) except -1:
        """Makes `run` return: plugin code has closed `what`, and the loop cannot go on."""
        if self.failed is None:
            self.failed = (
                f"plugin code has closed file descriptors of the server, {what} among them; "
                "a plugin must close only what it has opened"
            )
            self.stopping = True
        return 0

    cdef int epoll_lost(self) except -1:
        self.epoll_fd = self.urgent_fd = -1  # the numbers may be another's: they are not closed
        return self.fail("an epoll")

    def forked(self):
        """Closes everything in a child process that has the loop by accident.

        What the loop watches belongs to the parent; the child must not answer Kong, nor keep the
        socket of a parent that is gone.
        """
        cdef Watched one
        close_fd(self.epoll_fd)  # first: it is shared with the parent
        self.epoll_fd = -1
        if self.urgent_fd >= 0:
            close_fd(self.urgent_fd)
            self.urgent_fd = -1
        for one in self.watched.values():
            close_fd(one.fd)
            one.fd = -1
            one.interest = 0
        self.waker.close()
        self.watched.clear()
        self.listeners.clear()
        self.streams = 0

    def run(self):
        """Runs until ``stop`` is called, or something has closed what the loop needs."""
        cdef epoll_event[EVENTS_AT_ONCE] events
        cdef int count, index, timeout, error = 0
        cdef double before, now
        self.stopping = self.failed is not None
        self.woke = coarse_monotonic()
        while not self.stopping:
            if self.epoll_fd < 0:
                os._exit(1)  # a child process came here from a handler that forked
            self.asleep = True
            timeout = self.timeout()
            self.lock.leave()
            before = coarse_monotonic()
            with nogil:
                count = epoll_wait(self.epoll_fd, events, EVENTS_AT_ONCE, timeout)
                if count < 0:
                    error = errno
                now = coarse_monotonic()
            self.lock.enter()
            self.asleep = False
            # What there is without a wait may have come at any time since the last look.
            self.arrived = self.woke if now - before < NO_WAIT else now
            self.woke = now
            if count < 0:
                if error == EINTR:
                    self.woken()
                else:
                    self.epoll_lost()
                continue
            for index in range(count):
                if self.urgent_fd >= 0:
                    self.run_urgent()
                if events[index].data.ptr == <PyObject*>self.waker:
                    self.woken()
                elif events[index].data.ptr != NULL:  # else it was what is urgent
                    self.handle(<Watched>events[index].data.ptr, events[index].events)
            if self.timers:
                self.run_timers()
            if self.calls:
                self.run_calls()
            if self.closed_now:
                self.closed_now.clear()

    cdef int handle(self, Watched one, unsigned int events) except -1:
        """Handles what was found on a file descriptor. What goes wrong concerns no other."""
        if one.fd < 0:
            # Closed by what was found on another just before; or its file is open elsewhere, and
            # nothing makes the epoll forget it.
            if one in self.orphans and one not in self.closed_now:
                self.fail("a connection that another process has open")
            return 0
        try:
            return one.ready(events)
        except BaseException as error:
            return one.on_error(error)

    cdef int woken(self) except -1:
        try:
            self.waker.drain()
            PyErr_CheckSignals()
        except BaseException as error:
            report(ERROR, "a signal handler raised %s", type(error).__name__, error=error)
        return 0

    cdef int run_urgent(self) except -1:
        cdef epoll_event[URGENT_AT_ONCE] events
        cdef int index
        for index in range(epoll_wait(self.urgent_fd, events, URGENT_AT_ONCE, 0)):
            self.handle(<Watched>events[index].data.ptr, events[index].events)
        return 0

    cdef int timeout(self) except -2:
        """Milliseconds until something is due; -1 when nothing is."""
        cdef double delay
        if self.calls:
            return 0
        if not self.timers:
            return -1
        delay = (<Timer>self.timers[0]).when - monotonic()
        if delay <= 0:
            return 0
        # Rounded up: a timer is never early, and never makes the loop spin. At most a day.
        return <int>min(delay * 1000 + 1, 86400000.0)

    cdef int run_timers(self) except -1:
        cdef Timer timer
        cdef double now = monotonic()
        while self.timers and (<Timer>self.timers[0]).when <= now:
            timer = <Timer>heapq.heappop(self.timers)
            if timer.callback is not None:
                self.call(timer.callback)
        return 0

    cdef int run_calls(self) except -1:
        for _ in range(len(self.calls)):
            self.call(self.calls.popleft())
        return 0

    cdef int call(self, object callback) except -1:
        try:
            callback()
        except DescriptorLost as error:
            self.fail(str(error))
        except BaseException as error:
            report(ERROR, "a call on the event loop failed", error=error)
        return 0


cdef int open_epoll() except -1:
    cdef int fd = epoll_create1(EPOLL_CLOEXEC)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


cdef int control(int epoll_fd, int operation, int fd, void* what,
                 unsigned int interest=EPOLLIN) noexcept:
    """Makes an epoll wait for `interest` on a file descriptor; for something to read by default."""
    cdef epoll_event event
    event.events = interest
    event.data.ptr = what
    return epoll_ctl(epoll_fd, operation, fd, &event)
