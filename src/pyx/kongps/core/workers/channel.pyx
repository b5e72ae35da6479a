"""Messages between the supervisor and a worker, with file descriptors or not; see ``channel.pxd``.

A message is off the path of an event: a connection's file descriptor is passed once. So Python's
sockets do, bound here before plugin code may replace them.
"""

from array import array
from collections import deque
from errno import EMSGSIZE
from logging import ERROR
from socket import (
    AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET,
    socket,
)
from struct import Struct

from libc.stdint cimport uint32_t
from posix.unistd cimport close as close_fd

from kongps.core.io.epoll cimport EPOLLIN, EPOLLOUT
from kongps.core.io.loop cimport Loop, Watched

from kongps.core.report import report

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_PDEATHSIG
    int prctl(int option, unsigned long value)

cdef enum:
    LARGEST_MESSAGE = 65536
    MOST_FDS = 4
    MESSAGES_AT_ONCE = 64

# Of a message: its kind and a number.
HEADER = Struct("=II")

# The arguments of recvmsg: bytes, those of file descriptors, flags.
RECEIVED = (
    HEADER.size + LARGEST_MESSAGE, CMSG_SPACE(MOST_FDS * array("i").itemsize), MSG_CMSG_CLOEXEC,
)


def signal_at_end_of_parent(int number):
    """Asks the kernel to send this process a signal when the one that forked it is gone.

    :param number: the signal.
    """
    prctl(PR_SET_PDEATHSIG, <unsigned long>number)


cdef class Channel(Watched):
    """One end of the channel between the supervisor and a worker: a SOCK_SEQPACKET socket.

    :param on_message: called with the bytes of each message and a list of file descriptors, which it
        then owns.
    :param on_close: called without arguments when the other end is gone; or None.
    """

    def __init__(self, on_message, on_close):
        self.on_message = on_message
        self.on_close = on_close
        self.unsent = deque()

    def start(self, Loop loop not None, int fd):
        """Begins to receive.

        :param fd: the socket, non-blocking; it is closed with the channel.
        """
        loop.add(self, fd, EPOLLIN)

    def send(self, bytes data not None, fds=()):
        """Sends a message.

        :param data: the message, at most 64 KB.
        :param fds: file descriptors to go with it, at most four; they are closed here.
        """
        owned = list(fds)
        self.post(MESSAGE, 0, data, owned, owned)

    def hang_up(self):
        """Closes this end."""
        self.close()

    cdef object on_socket(self, method, tuple args):
        """Calls a method of a socket with the file descriptor, which stays the loop's to close."""
        end = socket(AF_UNIX, SOCK_SEQPACKET, 0, self.fd)
        try:
            end.setblocking(False)  # a plugin may have set a default timeout
            return method(end, *args)
        finally:
            end.detach()

    cdef int post(self, Message kind, uint32_t number, bytes data, list fds, list owned) except -1:
        """Sends a message, now or when the other end has read; then closes those that it owns."""
        self.unsent.append((kind, number, data, fds, owned))
        return self.send_unsent()

    cdef int send_unsent(self) except -1:
        """Sends what the other end has room for; what waits when the channel is closed is lost."""
        while self.unsent:
            kind, number, data, fds, owned = self.unsent[0]
            # A connection may be closed here before it is sent: then there is nothing to send.
            if self.fd >= 0 and not self.send_now(kind, number, data, fds):
                return self.watch(EPOLLIN | EPOLLOUT)
            self.unsent.popleft()
            for fd in owned:
                close_fd(fd)
        return self.watch(EPOLLIN) if self.fd >= 0 else 0

    cdef bint send_now(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        """Sends, unless the other end has to read first. One that is gone is noticed elsewhere."""
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))] if fds else []
        message = [HEADER.pack(kind, number), data]
        try:
            self.on_socket(socket.sendmsg, (message, rights, MSG_NOSIGNAL))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == EMSGSIZE:
                report(ERROR, "a message of %d bytes between processes is lost", len(data))
        return True

    cdef int ready(self, unsigned int events) except -1:
        if events & EPOLLOUT:
            self.send_unsent()
        for _ in range(MESSAGES_AT_ONCE):
            if self.fd < 0 or not self.receive_one():
                break
        return 0

    cdef bint receive_one(self) except -1:
        """Receives a message, if one has come. Returns whether there may be more."""
        try:
            data, rights, _, _ = self.on_socket(socket.recvmsg, RECEIVED)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        kind, number = HEADER.unpack_from(data)
        fds = array("i", rights[0][2]).tolist() if rights else []
        self.came(kind, number, data[HEADER.size:], fds)
        return True

    cdef int came(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        self.on_message(data, fds)
        return 0

    cdef int on_error(self, object error) except -1:
        report(ERROR, "error in a message between processes", error=error)
        return 0

    cdef int close(self) except -1:
        if self.fd < 0:
            return 0
        Watched.close(self)
        self.send_unsent()
        if self.on_close is not None:
            self.on_close()
        return 0
