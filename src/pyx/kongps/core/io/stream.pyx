"""One accepted connection: bytes both ways.

A peer that does not read is not read from until it does.
"""

from logging import WARNING

from libc.errno cimport EAGAIN, EINTR, errno
from posix.unistd cimport close as close_fd

from kongps.core.io.buffer cimport buffer_consume, buffer_size
from kongps.core.io.epoll cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, MSG_NOSIGNAL, MSG_PEEK, SHUT_RDWR, recv, send, shutdown,
)
from kongps.core.io.loop cimport RECEIVE_SIZE, Watched

from kongps.core.report import report


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
                # The peer sends no more; what it asked for is still to be sent.
                self.ended = True
                self.watch(EPOLLOUT)
            elif size == 0 or (errno != EAGAIN and errno != EINTR):
                self.close()
        return 0

    cdef int flush(self) except -1:
        """Sends what can be sent now; the loop sends the rest."""
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
        if self.fd >= 0 and not self.busy():
            self.close()
        return 0

    cdef int finish(self) except -1:
        self.flush()
        return self.close()

    cdef int close(self) except -1:
        if self.fd < 0:
            return 0
        self.loop.streams -= 1
        if self.leave():
            if self.shared:
                shutdown(self.fd, SHUT_RDWR)
            close_fd(self.fd)
        self.fd = -1
        return self.lost()

    cdef int descriptor_lost(self) except -1:
        if self.shared or self.urgent:  # the peer would not notice, or is of this server
            return self.loop.fail("a connection")
        report(WARNING, "plugin code has closed a file descriptor of the server: a connection is "
               "lost; a plugin must close only what it has opened")
        return 0
