"""Sockets, timers and wake-ups over epoll; see ``loop.pxd``.

One thread runs the loop. Everything on it is non-blocking; a peer that does not read stops being
read from until it does.
"""

import heapq
import os
import resource
from collections import deque
from logging import ERROR

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.errno cimport (
    EAGAIN, EBADF, ECONNABORTED, EEXIST, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno,
)
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as close_fd
from posix.unistd cimport read as read_fd
from posix.unistd cimport write as write_fd

from kongps.core.io.buffer cimport Buffer, buffer_consume, buffer_size
from kongps.core.io.clock cimport coarse_monotonic, monotonic
from kongps.core.io.loop_lock cimport LoopLock

from kongps.core.report import report

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll_fd, epoll_event* events, int count, int timeout)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SHUT_RDWR
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        MSG_NOSIGNAL
        MSG_PEEK
    int accept4(int fd, void* address, void* length, int flags)
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    int shutdown(int fd, int how)

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, int argument)

cdef enum:
    ASIDE = 960                   # numbers from here on are the loop's, below the usual 1024
    EVENTS_AT_ONCE = 256          # file descriptors that one wake-up takes in hand
    URGENT_AT_ONCE = 16
    ACCEPTS_AT_ONCE = 64          # connections taken before others get their turn
    NO_ERROR = 0                  # of accepting, where the limit is our own
    # Most connections, unless told otherwise. Kong has one for each request in its hands, and some
    # in its pool.
    MAX_STREAMS = 65536

# Seconds without accepting after the process ran out of file descriptors or memory.
ACCEPT_PAUSE = 0.1

# Seconds between log lines that say so.
ACCEPT_LOG_INTERVAL = 10.0


# Seconds of a wait that is none; a coarse clock's tick is up to 0.01 s.
cdef double NO_WAIT = 0.01


cdef class Watched:
    """A file descriptor in the loop; the base of streams, listeners and the waker."""

    def __cinit__(self):
        self.fd = -1

    cdef int remember(self) except -1:
        """Notes what file the descriptor is of."""
        cdef struct_stat found
        if fstat(self.fd, &found) != 0:
            raise OSError(errno, os.strerror(errno))
        self.device = found.st_dev
        self.inode = found.st_ino
        return 0

    cdef bint is_own(self, int fd) noexcept:
        """Whether a file descriptor is of that file still. Code of a plugin may have closed it, and
        then its number is nobody's, or is that of something else.
        """
        cdef struct_stat found
        return (
            fd >= 0 and fstat(fd, &found) == 0
            and found.st_ino == self.inode and found.st_dev == self.device
        )

    cdef bint intact(self) noexcept:
        """Whether all that is in use here is what it was."""
        return self.is_own(self.fd)

    cdef int ready(self, unsigned int events) except -1:
        """The loop found `events` on the file descriptor."""
        raise NotImplementedError

    cdef int failed(self, object error) except -1:
        """`ready` raised `error`."""
        report(ERROR, "error in the event loop", error=error)
        return self.close()

    cdef int watch(self, unsigned int interest) except -1:
        """Changes what the loop waits for, EPOLLIN and EPOLLOUT."""
        cdef epoll_event event
        cdef int operation
        if interest == self.interest:
            return 0
        if interest == 0:
            operation = EPOLL_CTL_DEL
        else:
            operation = EPOLL_CTL_MOD if self.interest else EPOLL_CTL_ADD
        event.events = interest
        event.data.ptr = <PyObject*>self
        if epoll_ctl(self.epoll(), operation, self.fd, &event) != 0:
            self.loop.not_watched(errno)
        self.interest = interest
        return 0

    cdef int epoll(self) noexcept:
        """What watches the file descriptor."""
        return self.loop.urgent_fd if self.urgent else self.loop.epoll_fd

    cdef int close(self) except -1:
        """Closes the file descriptor and leaves the loop."""
        if self.fd >= 0:
            if self.leave():
                close_fd(self.fd)
            self.fd = -1
        return 0

    cdef bint leave(self) except -1:
        """Leaves the loop; whether there is a file descriptor to close, and not somebody else's."""
        cdef bint own = self.is_own(self.fd)
        self.loop.closed_now.append(self)  # first: it may hold the only reference
        if self.interest and own:
            epoll_ctl(self.epoll(), EPOLL_CTL_DEL, self.fd, NULL)
        elif self.interest:
            self.loop.mend_soon(self)
        self.interest = 0
        if self.loop.watched.get(self.fd) is self:
            del self.loop.watched[self.fd]
        return own


cdef int take_turn(Watched one, unsigned int events) except -1:
    """Has a file descriptor see to what the loop found on it; its errors are its own."""
    if one.fd < 0:
        return 0  # closed by what was found on another just before
    try:
        return one.ready(events)
    except BaseException as error:
        return one.failed(error)


cdef class Stream(Watched):
    """One accepted connection; a subclass says what its bytes mean and sets ``outbox``."""

    cdef int received(self, const char* data, size_t size, double now) except -1:
        """Takes bytes that came at `now`, monotonic seconds. What answers them is to be flushed."""
        raise NotImplementedError

    cdef int pump(self, double now) except -1:
        """Goes on with what waited until bytes were sent."""
        return 0

    cdef int lost(self) except -1:
        """The connection is gone; nothing will come any more."""
        return 0

    cdef int ready(self, unsigned int events) except -1:
        cdef ssize_t size
        if events & EPOLLOUT:
            self.flush()
            self.pump(self.loop.arrived)
            if self.ended and self.fd >= 0 and buffer_size(self.outbox) == 0:
                return self.close()
        if self.fd >= 0 and events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            if self.ended or (
                not self.interest & EPOLLIN and not events & (EPOLLHUP | EPOLLERR)
            ):
                return self.close() if events & EPOLLERR else 0
            size = recv(self.fd, self.loop.receive_buffer, RECEIVE_SIZE, 0)
            if size > 0:
                self.received(self.loop.receive_buffer, <size_t>size, self.loop.arrived)
            elif size == 0 and buffer_size(self.outbox):
                # The peer has said all it will; what it asked for is still to be sent.
                self.ended = True
                self.watch(EPOLLOUT)
            elif size == 0 or (errno != EAGAIN and errno != EINTR):
                self.close()
        return 0

    cdef int flush(self) except -1:
        """Sends what can be sent now; the loop sees to the rest."""
        cdef ssize_t size
        cdef size_t unsent = buffer_size(self.outbox)
        while unsent and self.fd >= 0:
            size = send(self.fd, self.outbox.data + self.outbox.begin, unsent, MSG_NOSIGNAL)
            if size < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    return self.close()
                if unsent > MOST_UNSENT or self.ended or self.full:
                    return self.watch(EPOLLOUT)
                return self.watch(EPOLLIN | EPOLLOUT)
            buffer_consume(self.outbox, <size_t>size)
            unsent -= <size_t>size
        if self.fd >= 0 and not self.ended:
            self.watch(0 if self.full else EPOLLIN)
        return 0

    cdef bint busy(self) except -1:
        """Whether something is still to be read from the peer, or sent to it."""
        cdef char ignored
        return buffer_size(self.outbox) > 0 or recv(self.fd, &ignored, 1, MSG_PEEK) > 0

    cdef int close_if_idle(self) except -1:
        """Closes the connection, unless that would lose something."""
        if self.fd >= 0 and not self.busy():
            self.close()
        return 0

    cdef int close(self) except -1:
        if self.fd >= 0:
            self.loop.streams -= 1
            if self.shared and self.intact():
                shutdown(self.fd, SHUT_RDWR)
            Watched.close(self)
            self.lost()
        return 0


cdef class Listener(Watched):
    """A listening socket.

    :param listening: the ``socket.socket``, bound and listening.
    :param accept_stream: called with the loop and nothing else for each connection; returns
        the :class:`Stream` for it, or None to refuse it.
    """

    def __init__(self, listening, accept_stream):
        listening.setblocking(False)
        self.told_at = -ACCEPT_LOG_INTERVAL
        self.listening = listening
        self.accept_stream = accept_stream

    @property
    def open(self):
        """Whether it listens; not when it is closed, by whomever."""
        return self.intact()

    cdef int ready(self, unsigned int events) except -1:
        cdef int count, fd
        for count in range(ACCEPTS_AT_ONCE):
            if self.loop.streams >= self.loop.max_streams:
                return self.pause(NO_ERROR)
            fd = accept4(self.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd >= 0:
                self.take(fd)
            elif errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                return self.pause(errno)
            elif errno != EINTR and errno != ECONNABORTED:
                return 0
        return 0

    cdef int pause(self, int error) except -1:
        """Accepts no more for a moment; those who connect wait."""
        self.watch(0)
        self.tell_of(error)
        self.loop.call_later(ACCEPT_PAUSE, self.accept_again)
        return 0

    cdef int tell_of(self, int error) except -1:
        cdef double now = monotonic()
        if now - self.told_at < ACCEPT_LOG_INTERVAL:
            return 0
        self.told_at = now
        if error == NO_ERROR:
            report(
                ERROR, "connections have to wait: %d are open, and --max-connections allows no more",
                self.loop.streams,
            )
        elif error == EMFILE:
            report(
                ERROR,
                "connections have to wait: this process may open no more files; raise its limit "
                "(ulimit -n, or LimitNOFILE in a systemd unit), now %d",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )
        else:
            report(ERROR, "connections have to wait: %s", os.strerror(error))
        return 0

    def take(self, int fd):
        """Makes a stream of a connection.

        :param fd: its file descriptor, non-blocking.
        """
        cdef Stream stream = None
        try:
            stream = self.accept_stream(self.loop)
        finally:
            if stream is None:
                close_fd(fd)
        if stream is not None:
            self.loop.add_stream(stream, fd)

    def accept_again(self):
        """Goes on accepting after a pause."""
        if self.fd >= 0:
            self.watch(EPOLLIN)

    cdef int failed(self, object error) except -1:
        report(ERROR, "a connection could not be taken", error=error)
        return 0

    cdef int finish(self) except -1:
        """Closes, having taken the connections that wait; who comes later is refused."""
        cdef int fd
        shutdown(self.fd, SHUT_RDWR)
        while self.loop.streams < self.loop.max_streams:
            fd = accept4(self.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                break
            try:
                self.take(fd)
            except BaseException as error:
                self.failed(error)
        return self.close()

    cdef int close(self) except -1:
        if self.fd >= 0:
            self.loop.listeners.discard(self)
            if self.leave():
                self.listening.close()
            else:
                self.listening.detach()
            self.fd = -1
        return 0


cdef class Waker(Watched):
    """A pipe that ends the loop's sleep, from signal handlers and other threads."""

    def __cinit__(self):
        self.write_fd = -1

    def __init__(self):
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.fd = put_aside(read_end)
        self.write_fd = put_aside(write_end)

    def __dealloc__(self):
        if self.is_own(self.write_fd):
            close_fd(self.write_fd)
        if self.is_own(self.fd):
            close_fd(self.fd)

    cdef bint intact(self) noexcept:
        return self.is_own(self.fd) and self.is_own(self.write_fd)  # a pipe is one file

    cdef int close(self) except -1:
        if self.is_own(self.write_fd):
            close_fd(self.write_fd)
        self.write_fd = -1
        return Watched.close(self)

    cdef int ready(self, unsigned int events) except -1:
        cdef char[256] ignored
        while read_fd(self.fd, ignored, sizeof(ignored)) == sizeof(ignored):
            pass
        PyErr_CheckSignals()
        return 0

    cdef int failed(self, object error) except -1:
        report(ERROR, "a signal handler raised %s", type(error).__name__, error=error)
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
    """

    def __cinit__(self):
        self.epoll_fd = self.urgent_fd = -1
        self.own_buffer = self.receive_buffer = <char*>PyMem_Malloc(RECEIVE_SIZE)
        if self.own_buffer == NULL:
            raise MemoryError

    def __init__(self, Py_ssize_t max_streams=MAX_STREAMS):
        self.max_streams = max_streams
        self.arrived = coarse_monotonic()
        self.watched = {}
        self.listeners = set()
        self.closed_now = []
        self.orphans = []
        self.on_loss = nothing
        self.timers = []
        self.calls = deque()
        self.turn = LoopLock()
        self.epoll_fd = open_epoll()
        self.waker = Waker()
        self.add(self.waker, self.waker.fd, EPOLLIN)

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

    def listen(self, listening, accept_stream):
        """Takes connections of a listening socket.

        :param listening: a ``socket.socket``, bound and listening.
        :param accept_stream: called with this loop for each connection; returns the
            :class:`Stream` for it, or None to refuse it.
        :returns: the :class:`Listener`.
        """
        cdef Listener listener = Listener(listening, accept_stream)
        self.add(listener, listening.fileno(), EPOLLIN)
        self.listeners.add(listener)
        return listener

    cdef int add(self, Watched one, int fd, unsigned int interest) except -1:
        """Takes a file descriptor in hand; from now on it is closed with `one`."""
        if fd in self.watched or (fd == self.waker.write_fd and one is not self.waker):
            self.mend()  # who had that number was closed by somebody else
        one.loop = self
        one.fd = fd
        self.watched[fd] = one
        try:
            one.remember()
            return one.watch(interest)
        except OSError:
            one.close()
            raise

    cdef int add_stream(self, Stream stream, int fd) except -1:
        self.streams += 1
        return self.add(stream, fd, EPOLLIN)

    def close_listeners(self):
        """Stops taking connections, but for those that wait already; those that are open stay."""
        for one in list(self.watched.values()):
            if isinstance(one, Listener):
                (<Listener>one).finish()

    def close_idle_streams(self):
        """Closes every connection on which nothing is left to do."""
        for one in list(self.watched.values()):
            if isinstance(one, Stream):
                (<Stream>one).close_if_idle()

    def close_streams(self):
        """Closes every connection, having sent what can be sent at once."""
        for one in list(self.watched.values()):
            if isinstance(one, Stream):
                (<Stream>one).flush()
                (<Stream>one).close()

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

    def forked(self):
        """Lets go of everything in a child process that has the loop by accident.

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
        close_fd(self.waker.write_fd)
        self.waker.write_fd = -1
        self.watched.clear()
        self.listeners.clear()
        self.streams = 0

    def call_soon_threadsafe(self, callback):
        """Calls `callback` on the loop's thread at its next turn. From any thread."""
        self.calls.append(callback)
        if self.asleep:
            self.wake()

    def wake(self):
        """Ends the loop's sleep. From any thread."""
        # When the pipe is full the loop will wake anyway; or the loop is gone.
        self.asleep = False
        write_fd(self.waker.write_fd, b"\0", 1)

    def stop(self):
        """Makes ``run`` return after its present turn. From any thread, or a signal handler."""
        self.stopping = True
        self.wake()

    def run(self):
        """Runs until ``stop`` is called."""
        cdef epoll_event[EVENTS_AT_ONCE] events
        cdef int count, index, timeout, error = 0
        cdef double before, now
        cdef Watched one
        self.stopping = False
        self.woke = coarse_monotonic()
        while not self.stopping:
            if self.epoll_fd < 0:
                os._exit(1)  # a child process came here from a handler that forked
            self.asleep = True
            timeout = self.timeout()
            self.turn.give_back()
            before = coarse_monotonic()
            with nogil:
                count = epoll_wait(self.epoll_fd, events, EVENTS_AT_ONCE, timeout)
                if count < 0:
                    error = errno
                now = coarse_monotonic()
            self.turn.take()
            self.asleep = False
            # What there is without a wait may have come at any time since the last look.
            self.arrived = self.woke if now - before < NO_WAIT else now
            self.woke = now
            if count < 0:
                self.wait_failed(error)
                continue
            for index in range(count):
                if self.urgent_fd >= 0:
                    self.run_urgent()
                    if events[index].data.ptr == NULL:
                        continue  # it was that
                one = <Watched>events[index].data.ptr
                take_turn(one, events[index].events)
            one = None
            if self.timers:
                self.run_timers()
            if self.calls:
                self.run_calls()
            if self.closed_now:
                self.closed_now.clear()

    cdef int wait_failed(self, int error) except -1:
        if error == EBADF or error == EINVAL:  # closed, or closed and now something else
            self.mend()
            return 0
        if error != EINTR:
            raise OSError(error, os.strerror(error))
        try:
            PyErr_CheckSignals()
        except BaseException as raised:
            self.waker.failed(raised)
        return 0

    cdef int add_urgent(self, Stream stream, int fd) except -1:
        """Takes a stream in hand that is looked at between any two others.

        Plugin code may take long, and who waits for something short is not to wait for all of it.
        """
        if self.urgent_fd < 0:
            self.urgent_fd = open_epoll()
            self.watch_urgent()
        stream.urgent = True
        return self.add_stream(stream, fd)

    cdef int watch_urgent(self) except -1:
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = NULL
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.urgent_fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef int run_urgent(self) except -1:
        cdef epoll_event[URGENT_AT_ONCE] events
        cdef int index
        cdef Watched one
        for index in range(epoll_wait(self.urgent_fd, events, URGENT_AT_ONCE, 0)):
            one = <Watched>events[index].data.ptr
            take_turn(one, events[index].events)
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
        cdef object callback
        while self.timers and (<Timer>self.timers[0]).when <= now:
            timer = <Timer>heapq.heappop(self.timers)
            callback = timer.callback
            if callback is None:
                continue
            try:
                callback()
            except BaseException as error:
                report(ERROR, "a timer of the event loop failed", error=error)
        return 0

    cdef int run_calls(self) except -1:
        cdef object callback
        for _ in range(len(self.calls)):
            callback = self.calls.popleft()
            try:
                callback()
            except BaseException as error:
                report(ERROR, "a call on the event loop failed", error=error)
        return 0

    # --- what code of a plugin may do to file descriptors ----------------------------------------

    def look_after(self):
        """Mends the loop when its own file descriptors, or those that listen, were closed.

        Those of connections are looked at only then: there may be many.
        """
        cdef Listener listener
        cdef bint well = not self.orphans and self.waker.intact() and self.epolls_intact()
        if well:
            for listener in self.listeners:
                well = well and listener.intact()
        if not well:
            self.mend()

    cdef bint epolls_intact(self) noexcept:
        return is_watched(self.epoll_fd, self.waker.fd) and (
            self.urgent_fd < 0 or is_watched(self.epoll_fd, self.urgent_fd)
        )

    cdef int not_watched(self, int error) except -1:
        """An epoll has refused a change: no matter if it is to be replaced."""
        if self.epolls_intact():
            raise OSError(error, os.strerror(error))
        self.call_soon_threadsafe(self.look_after)
        return 0

    cdef int mend_soon(self, Watched one) except -1:
        """Has the loop mended, since `one` was closed by somebody else.

        Its file may be open elsewhere. Then the epoll tells of it and nobody can make it stop, so
        that `one` has to be kept until there is another epoll.
        """
        self.orphans.append(one)
        if len(self.orphans) == 1:
            self.call_soon_threadsafe(self.look_after)
        return 0

    def mend(self):
        """Goes on with the file descriptors that are left.

        What was closed is given up, what the loop needs for itself is opened anew, and `on_loss`
        is called before anybody hears that a connection is lost.
        """
        cdef Watched one
        cdef list lost = []
        cdef list left = []
        cdef int epoll_fd, urgent_fd
        report(ERROR, "plugin code has closed file descriptors of the server; it goes on without "
               "the connections that were lost")
        for one in self.watched.values():
            (left if one.intact() else lost).append(one)
        self.renew_epolls(left)
        for one in lost:
            one.interest = 0
            del self.watched[one.fd]
        self.orphans.clear()
        if not self.waker.intact():
            self.waker = Waker()
            self.add(self.waker, self.waker.fd, EPOLLIN)
        try:
            self.on_loss()
        except BaseException as error:
            report(ERROR, "what was closed could not be replaced", error=error)
        for one in lost:
            try:
                one.close()
            except BaseException as error:
                report(ERROR, "error in the event loop", error=error)

    cdef int renew_epolls(self, list left) except -1:
        """Makes new ones, and has them watch what is left.

        Old ones are closed unless their numbers are somebody else's by now; which is so unless
        they watch what they should.
        """
        cdef Watched one
        cdef unsigned int interest
        cdef bint own = False
        cdef bint own_urgent = self.urgent_fd >= 0 and is_watched(self.epoll_fd, self.urgent_fd)
        for one in left:
            if one.interest and not one.urgent:
                own = is_watched(self.epoll_fd, one.fd)
                break
        if own:
            close_fd(self.epoll_fd)
        self.epoll_fd = open_epoll()
        if self.urgent_fd >= 0:
            if own_urgent:
                close_fd(self.urgent_fd)
            self.urgent_fd = open_epoll()
            self.watch_urgent()
        for one in left:
            interest, one.interest = one.interest, 0
            one.watch(interest)
        return 0


def nothing():
    """What is done on a loss, unless somebody has more to do."""


cdef int open_epoll() except -1:
    cdef int fd = epoll_create1(EPOLL_CLOEXEC)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return put_aside(fd)


cdef int put_aside(int fd) noexcept:
    """Gives a file descriptor a number that hardly any other will get; returns the number.

    The lowest that is free is given first. So what another thread opens is not taken for the loop's
    own, in the time until the loop notices that this was closed: the events of somebody else's
    epoll would be somebody else's pointers.
    """
    cdef int aside = fcntl(fd, F_DUPFD_CLOEXEC, ASIDE)
    if aside < 0:
        return fd  # the process may not have as many
    close_fd(fd)
    return aside


cdef bint is_watched(int epoll_fd, int fd) noexcept:
    """Whether an epoll watches a file descriptor, and so is the one that it is taken for.

    All epolls have the same numbers for ``fstat``.
    """
    cdef epoll_event event
    event.events = 0
    event.data.ptr = NULL
    if epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0:
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &event)  # it was somebody else's
        return False
    return errno == EEXIST
