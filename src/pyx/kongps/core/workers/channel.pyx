"""Messages between the supervisor and a worker, with file descriptors or not; see ``channel.pxd``."""

from collections import deque
from logging import ERROR

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

from kongps.core.io.loop cimport Loop, Watched

from kongps.core.report import report

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLOUT

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        MSG_CMSG_CLOEXEC
        SOL_SOCKET
        SCM_RIGHTS
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    unsigned char* CMSG_DATA(cmsghdr* header)
    size_t CMSG_SPACE(size_t size)
    size_t CMSG_LEN(size_t size)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    ssize_t recvmsg(int fd, msghdr* message, int flags)

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_PDEATHSIG
    int prctl(int option, unsigned long value)

cdef enum:
    LARGEST_MESSAGE = 65536
    HEADER_SIZE = 8
    MOST_FDS = 4
    CONTROL_SIZE = 64
    MESSAGES_AT_ONCE = 64


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
        self.post(MESSAGE, 0, data, list(fds), True)

    def hang_up(self):
        """Closes this end."""
        self.close()

    cdef int post(self, Message kind, uint32_t number, bytes data, list fds, bint close) except -1:
        if self.fd >= 0 and (self.unsent or not self.send_now(kind, number, data, fds)):
            if self.fd >= 0:
                # A connection may be closed here before it is sent: then there is nothing to send.
                self.unsent.append((kind, number, data, fds, close))
                return self.watch(EPOLLIN | EPOLLOUT)
        if close:
            for fd in fds:
                close_fd(fd)
        return 0

    cdef bint send_now(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        """Sends, unless the other end has to read first. One that is gone is noticed elsewhere."""
        cdef uint32_t[2] header
        cdef iovec[2] parts
        cdef msghdr message
        cdef char[CONTROL_SIZE] control
        cdef cmsghdr* rights
        cdef int index, fd
        cdef size_t size = sizeof(int) * <size_t>len(fds)
        header[0] = <uint32_t>kind
        header[1] = number
        parts[0].iov_base = header
        parts[0].iov_len = HEADER_SIZE
        parts[1].iov_base = PyBytes_AS_STRING(data)
        parts[1].iov_len = <size_t>PyBytes_GET_SIZE(data)
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = 2
        if size:
            assert len(fds) <= MOST_FDS
            memset(control, 0, sizeof(control))
            message.msg_control = control
            message.msg_controllen = CMSG_SPACE(size)
            rights = CMSG_FIRSTHDR(&message)
            rights.cmsg_level = SOL_SOCKET
            rights.cmsg_type = SCM_RIGHTS
            rights.cmsg_len = CMSG_LEN(size)
            for index in range(<int>len(fds)):
                fd = fds[index]
                memcpy(CMSG_DATA(rights) + <size_t>index * sizeof(int), &fd, sizeof(int))
        while sendmsg(self.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0:
            if errno == EAGAIN:
                return False
            if errno != EINTR:
                if errno == EMSGSIZE:
                    report(ERROR, "a message of %d bytes between processes is lost", len(data))
                return True
        return True

    cdef int send_rest(self) except -1:
        while self.unsent and self.fd >= 0:
            kind, number, data, fds, close = self.unsent[0]
            if not self.send_now(kind, number, data, fds):
                return 0
            self.unsent.popleft()
            if close:
                for fd in fds:
                    close_fd(fd)
        return self.watch(EPOLLIN) if self.fd >= 0 else 0

    cdef int ready(self, unsigned int events) except -1:
        if events & EPOLLOUT:
            self.send_rest()
        for _ in range(MESSAGES_AT_ONCE):
            if self.fd < 0 or not self.receive_one():
                break
        return 0

    cdef bint receive_one(self) except -1:
        """Receives a message, if one has come whole. Returns whether there may be more."""
        cdef uint32_t[2] header
        cdef char[CONTROL_SIZE] control
        cdef iovec[2] parts
        cdef msghdr message
        cdef ssize_t size
        parts[0].iov_base = header
        parts[0].iov_len = HEADER_SIZE
        parts[1].iov_base = self.loop.receive_buffer
        parts[1].iov_len = LARGEST_MESSAGE
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = 2
        message.msg_control = control
        message.msg_controllen = CONTROL_SIZE
        size = recvmsg(self.fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
        if size < 0 and errno == EINTR:
            return True
        if size < 0 and errno == EAGAIN:
            return False
        if size <= 0:
            self.close()
            return False
        self.came(
            <Message>header[0], header[1],
            PyBytes_FromStringAndSize(<char*>self.loop.receive_buffer, size - HEADER_SIZE),
            descriptors(&message),
        )
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
        for _, _, _, fds, close in self.unsent:
            if close:
                for fd in fds:
                    close_fd(fd)
        self.unsent.clear()
        Watched.close(self)
        if self.on_close is not None:
            self.on_close()
        return 0


cdef list descriptors(msghdr* message):
    """The file descriptors that came with a message."""
    cdef cmsghdr* rights = CMSG_FIRSTHDR(message)
    cdef size_t index
    cdef int fd
    cdef list fds = []
    if rights != NULL and rights.cmsg_type == SCM_RIGHTS:
        for index in range((rights.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
            memcpy(&fd, CMSG_DATA(rights) + index * sizeof(int), sizeof(int))
            fds.append(fd)
    return fds
