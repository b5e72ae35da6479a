"""Connections on their way from the supervisor to a worker; see ``handover.pxd``.

The supervisor accepts, passes each connection's file descriptor to the worker that has fewest, and
keeps it too, so that a connection outlives its worker. It reads nothing. What it watches for is the
end of the connection, which either side brings about: a worker shuts a connection down before it
closes it.
"""

import os
from collections import deque
from logging import ERROR, WARNING

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

from kongps.core.connection cimport Connection
from kongps.core.workers.journal cimport (
    NO_SLOT, NOT_KNOWN, NOTHING, REPLAYED_SIZE, SPEAKS_MSGPACK, ReceiveArea, Journal, Slot,
)
from kongps.core.io.loop cimport Loop
from kongps.core.wire.msgpack cimport Scanner, scan, scanner_reset

from kongps.core.report import report
from kongps.errors import UnpackError

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLOUT
    const unsigned int EPOLLET

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        MSG_CMSG_CLOEXEC
        SOL_SOCKET
        SCM_RIGHTS
        SHUT_RDWR
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
    int shutdown(int fd, int how)

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
    """Has the kernel send this process a signal when the one that forked it is gone.

    :param number: the signal.
    """
    prctl(PR_SET_PDEATHSIG, <unsigned long>number)


cdef class Channel(Watched):
    """One end of the line between the supervisor and a worker: a SOCK_SEQPACKET socket.

    :param talk: called with the bytes of each message and a list of file descriptors, which then
        belong to it.
    :param ended: called without arguments when the other end is gone.
    """

    def __init__(self, talk, ended):
        self.talk = talk
        self.ended = ended
        self.unsent = deque()

    def start(self, Loop loop not None, int fd):
        """Begins to listen.

        :param fd: the socket, non-blocking; it is closed with the channel.
        """
        loop.add(self, fd, EPOLLIN)

    def tell(self, bytes data not None, fds=()):
        """Sends a message.

        :param data: what to say, 64 KB at the most.
        :param fds: file descriptors to go with it, four at the most; they are closed here.
        """
        self.say(TALK, 0, data, list(fds), True)

    def hang_up(self):
        """Closes this end."""
        self.close()

    cdef int say(self, Message kind, uint32_t number, bytes data, list fds, bint close) except -1:
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
        """Sends, or not when the other end has to read first; one that is gone is another's worry.
        """
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
        cdef uint32_t[2] header
        cdef char[CONTROL_SIZE] control
        cdef iovec[2] parts
        cdef msghdr message
        cdef cmsghdr* rights
        cdef ssize_t size
        cdef int fd
        cdef size_t index
        cdef list fds
        if events & EPOLLOUT:
            self.send_rest()
        for _ in range(MESSAGES_AT_ONCE):
            if self.fd < 0:
                return 0
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
            if size < 0:
                if errno == EINTR:
                    continue
                return 0 if errno == EAGAIN else self.close()
            if size == 0:
                return self.close()
            fds = []
            rights = CMSG_FIRSTHDR(&message)
            if rights != NULL and rights.cmsg_type == SCM_RIGHTS:
                for index in range((rights.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
                    memcpy(&fd, CMSG_DATA(rights) + index * sizeof(int), sizeof(int))
                    fds.append(fd)
            self.heard(
                <Message>header[0], header[1],
                PyBytes_FromStringAndSize(<char*>self.loop.receive_buffer, size - HEADER_SIZE), fds,
            )
        return 0

    cdef int heard(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        self.talk(data, fds)
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
        if self.ended is not None:
            self.ended()
        return 0


# --- the supervisor's side ----------------------------------------------------------------------


cdef class SharedConnection(Watched):
    """A connection that a worker has, as the supervisor keeps it."""

    cdef int ready(self, unsigned int events) except -1:
        return self.close()  # all that is waited for is the end

    cdef int close(self) except -1:
        if self.fd < 0:
            return 0
        self.loop.streams -= 1
        Watched.close(self)
        del self.board.passed[self.number]
        if self.line is not None:
            self.line.connections.discard(self)
        elif self in self.board.waiting:
            self.board.waiting.remove(self)
        return self.board.journal.give(self.number)


cdef class WorkerChannel(Channel):
    """The supervisor's end of the line to one worker.

    :param board: what gives it connections.
    :param desk: which desk of the journal the worker has.
    """

    def __init__(self, ConnectionBroker board not None, int desk, talk, ended):
        Channel.__init__(self, talk, ended)
        self.board = board
        self.desk = desk
        self.connections = set()

    @property
    def load(self):
        """How many connections the worker has."""
        return len(self.connections)

    cdef int heard(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        cdef SharedConnection one
        if kind != HANDED_BACK:
            return Channel.heard(self, kind, number, data, fds)
        one = self.board.passed.get(number)
        if one is not None and one.line is self:
            self.connections.discard(one)
            return self.board.place(one, b"")
        return 0


cdef class ConnectionBroker:
    """Gives connections to workers.

    :param journal: where what they owe is noted.
    """

    def __init__(self, Journal journal not None):
        self.journal = journal
        self.passed = {}
        self.lines = []
        self.waiting = []

    def listen(self, Loop loop not None, listening):
        """Takes connections of a listening socket.

        :param listening: a ``socket.socket``, bound and listening.
        """
        cdef SharedListener acceptor = SharedListener(listening, None)
        acceptor.board = self
        acceptor.start(loop)

    def open(self, lines):
        """Has workers get connections from now on, those first that have waited."""
        cdef SharedConnection one
        cdef WorkerChannel line
        for line in lines:
            self.lines.append(line)
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            self.place(one, b"")

    def close(self, WorkerChannel line not None):
        """Gives a worker no connections any more; those that it has stay."""
        if line in self.lines:
            self.lines.remove(line)

    def bereave(self, WorkerChannel line not None):
        """Gives the connections of a worker that is dead to others.

        :returns: how many there were.
        """
        cdef SharedConnection one
        cdef set left = line.connections
        cdef Slot* slot
        cdef bytes replayed
        self.close(line)
        line.connections = set()
        for one in left:
            replayed = b""
            slot = self.journal.slot(one.number)
            if slot != NULL and slot.reading and slot.outstanding == NOTHING:
                replayed = in_hand(self.journal.desk(line.desk), slot.protocol)
            self.place(one, replayed)
        return len(left)

    @property
    def connections(self):
        """How many connections there are."""
        return len(self.passed)

    cdef WorkerChannel least_loaded(self):
        cdef WorkerChannel best = None
        cdef WorkerChannel line
        for line in self.lines:
            if best is None or len(line.connections) < len(best.connections):
                best = line
        return best

    cdef int place(self, SharedConnection one, bytes replayed) except -1:
        cdef Slot* slot = self.journal.slot(one.number)
        one.line = self.least_loaded()
        if slot != NULL:
            slot.held = one.line is not None
        if one.line is None:
            self.waiting.append(one)
            return 0
        one.line.connections.add(one)
        return one.line.say(CONNECTION, one.number, replayed, [one.fd], False)


cdef bytes in_hand(ReceiveArea* desk, uint8_t protocol):
    """The request that a worker had just received when it died; empty when that is not known.

    It may have died before it noted how much it received. What is not received is zero.
    """
    cdef Scanner scanner
    cdef uint32_t length
    cdef size_t size = 0
    cdef const uint8_t* data = <const uint8_t*>desk.data
    if desk.size > 0:
        return desk.data[:desk.size] if desk.size <= REPLAYED_SIZE else b""
    memcpy(&length, data, 4)
    if data[0] == 0x94 and data[1] == 0:
        scanner_reset(&scanner)
        try:
            if scan(&scanner, data, REPLAYED_SIZE, REPLAYED_SIZE):
                size = scanner.offset
        except UnpackError:
            return b""
    elif 0 < length <= REPLAYED_SIZE - 4:
        size = length + 4
    return desk.data[:size]


cdef class SharedListener(Listener):
    """A listening socket whose connections go to workers."""

    def take(self, int fd):
        """Gives a connection to a worker.

        :param fd: its file descriptor, non-blocking.
        """
        cdef SharedConnection one = SharedConnection()
        one.board = self.board
        try:
            one.number = self.board.journal.take()
            assert one.number != NO_SLOT
        except BaseException:
            close_fd(fd)
            raise
        self.loop.streams += 1
        self.board.passed[one.number] = one
        # Nothing but its end, which epoll tells unasked, and once.
        self.loop.add(one, fd, EPOLLET)
        self.board.place(one, b"")


# --- a worker's side ----------------------------------------------------------------------------


cdef class SupervisorChannel(Channel):
    """A worker's end of the line to the supervisor.

    :param journal: where it notes what it owes.
    :param desk: which desk of the journal it has.
    :param dispatcher: whom the calls are for.
    :param unfinished: what its connections may hold of unfinished messages.
    :param routes: where steps go whose events are elsewhere.
    """

    def __init__(self, Journal journal not None, int desk, Dispatcher dispatcher not None,
                 Unfinished unfinished not None, Routes routes not None, talk, ended):
        Channel.__init__(self, talk, ended)
        self.journal = journal
        self.desk = desk
        self.dispatcher = dispatcher
        self.unfinished = unfinished
        self.routes = routes
        self.holder = SupervisorChannelHolder(self)

    def start(self, Loop loop not None, int fd):
        """Begins to listen; what comes for any connection is received where it can be found.

        :param fd: the socket, non-blocking; it is closed with the channel.
        """
        loop.receive_buffer = self.journal.desk(self.desk).data
        Channel.start(self, loop, fd)

    def retire(self):
        """Hands every connection back that is idle, now or later."""
        cdef Connection connection
        self.retiring = True
        for one in list(self.loop.watched.values()):
            if isinstance(one, Connection) and (<Connection>one).slot != NULL:
                connection = <Connection>one
                connection.holder = self.holder
                if connection.is_idle():
                    self.holder.hand_back(connection)

    cdef int heard(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        if kind == CONNECTION:
            if not fds:
                report(WARNING, "a connection was lost on its way to a worker")
                self.journal.slot(number).held = False
                return 0
            return self.take(number, fds[0], data)
        return Channel.heard(self, kind, number, data, fds)

    cdef int take(self, uint32_t number, int fd, bytes replayed) except -1:
        cdef Connection connection = Connection(self.dispatcher, self.unfinished)
        connection.number = number
        connection.slot = self.journal.slot(number)
        connection.desk = self.journal.desk(self.desk)
        connection.elsewhere = self.routes
        connection.shared = True
        if self.retiring:
            connection.holder = self.holder
        self.loop.add_stream(connection, fd)
        if connection.slot.protocol != NOT_KNOWN or connection.slot.reading or (
            connection.slot.unread
        ):
            connection.take_over(replayed, self.routes.let_through)
        if self.retiring and connection.fd >= 0 and connection.is_idle():
            self.holder.hand_back(connection)
        return 0


cdef class SupervisorChannelHolder(Holder):
    """Hands connections back to the supervisor."""

    def __init__(self, SupervisorChannel intake not None):
        self.intake = intake

    cdef int hand_back(self, Connection connection) except -1:
        cdef uint32_t number = connection.number
        connection.slot.reading = False
        connection.slot = NULL  # the supervisor's now
        connection.shared = False  # it stays open
        connection.close()
        return self.intake.say(HANDED_BACK, number, b"", [], False)
