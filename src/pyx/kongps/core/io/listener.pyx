"""A listening socket, and what makes the streams of those who connect."""

import os
import resource
from logging import ERROR

from libc.errno cimport (
    EBADF, ECONNABORTED, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, errno,
)
from posix.unistd cimport close as close_fd

from kongps.core.io.clock cimport monotonic
from kongps.core.io.epoll cimport (
    EPOLLIN, SHUT_RDWR, SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, shutdown,
)
from kongps.core.io.loop cimport Loop, Watched
from kongps.core.io.stream cimport Stream

from kongps.core.report import report

cdef enum:
    ACCEPTS_AT_ONCE = 64          # connections accepted before others get their turn
    NO_ERROR = 0                  # of accepting, where the limit is our own

# Seconds without accepting after the process ran out of file descriptors or memory.
cdef double ACCEPT_PAUSE = 0.1

# Seconds between log lines that say so.
cdef double ACCEPT_LOG_INTERVAL = 10.0


cdef class Listener(Watched):
    """A listening socket.

    :param listening: the ``socket.socket``, bound and listening.
    :param accept_stream: called with the loop and nothing else for each connection; returns
        the :class:`Stream` for it, or None to refuse it.
    """

    def __init__(self, listening, accept_stream):
        listening.setblocking(False)
        self.reported_at = -ACCEPT_LOG_INTERVAL
        self.listening = listening
        self.accept_stream = accept_stream

    def start(self, Loop loop not None):
        """Begins to accept connections.

        :param loop: the loop that does it.
        """
        loop.add(self, self.listening.fileno(), EPOLLIN)
        loop.listeners.add(self)

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
            elif errno == EBADF or errno == ENOTSOCK or errno == EINVAL:
                return self.descriptor_lost()
            elif errno != EINTR and errno != ECONNABORTED:
                return 0
        return 0

    cdef int pause(self, int error) except -1:
        """Accepts no more for a moment; those who connect wait."""
        cdef double now = monotonic()
        self.watch(0)
        self.loop.call_later(ACCEPT_PAUSE, self.accept_again)
        if now - self.reported_at < ACCEPT_LOG_INTERVAL:
            return 0
        self.reported_at = now
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

    cdef int on_error(self, object error) except -1:
        report(ERROR, "a connection could not be accepted", error=error)
        return 0

    cdef int close(self) except -1:
        """Closes, having accepted the connections that wait; who comes later is refused."""
        cdef int fd
        if self.fd < 0:
            return 0
        if self.intact():
            shutdown(self.fd, SHUT_RDWR)
            while self.loop.streams < self.loop.max_streams:
                fd = accept4(self.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
                if fd < 0:
                    break
                try:
                    self.take(fd)
                except BaseException as error:
                    self.on_error(error)
        self.loop.listeners.discard(self)
        if self.leave():
            self.listening.close()
        else:
            self.listening.detach()  # the number is not ours any more
        self.fd = -1
        return 0

    cdef int descriptor_lost(self) except -1:
        return self.loop.fail("a socket that it listens on")
