"""The supervisor's side of connections: each goes to the worker that has fewest.

The supervisor accepts, passes each connection's file descriptor to a worker, and keeps it too, so that
a connection outlives its worker. It reads nothing. What it watches for is the end of the connection,
which either side brings about: a worker shuts a connection down before it closes it.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from posix.unistd cimport close as close_fd

from kongps.core.io.epoll cimport EPOLLET
from kongps.core.io.listener cimport Listener
from kongps.core.io.loop cimport Loop, Watched
from kongps.core.wire.msgpack cimport Scanner, scan, scanner_reset
from kongps.core.workers.channel cimport CONNECTION, GIVEN_BACK, Channel, Message
from kongps.core.workers.journal cimport (
    NO_SLOT, NOTHING, REPLAYED_SIZE, Journal, ReceiveArea, Slot,
)

from kongps.errors import UnpackError


cdef class ConnectionBroker
cdef class WorkerChannel(Channel)


cdef class SharedConnection(Watched):
    """A connection that a worker has, as the supervisor keeps it."""
    cdef ConnectionBroker broker
    cdef uint32_t number          # of its slot in the journal
    cdef WorkerChannel channel    # None: no worker has it

    cdef int ready(self, unsigned int events) except -1:
        return self.close()  # nothing else is waited for

    cdef int close(self) except -1:
        if self.fd < 0:
            return 0
        self.loop.streams -= 1
        Watched.close(self)
        del self.broker.shared[self.number]
        if self.channel is not None:
            self.channel.connections.discard(self)
        elif self in self.broker.waiting:
            self.broker.waiting.remove(self)
        return self.broker.journal.give(self.number)


cdef class WorkerChannel(Channel):
    """The supervisor's end of the channel to one worker.

    :param broker: what gives it connections.
    :param area: which receive area of the journal the worker has.
    :param on_message, on_close: as :class:`Channel` has them.
    """
    cdef ConnectionBroker broker
    cdef readonly int area
    cdef set connections

    def __init__(self, ConnectionBroker broker not None, int area, on_message, on_close):
        Channel.__init__(self, on_message, on_close)
        self.broker = broker
        self.area = area
        self.connections = set()

    cdef int came(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        cdef SharedConnection one
        if kind != GIVEN_BACK:
            return Channel.came(self, kind, number, data, fds)
        one = self.broker.shared.get(number)
        if one is not None and one.channel is self:
            self.connections.discard(one)
            return self.broker.place(one, b"")
        return 0


cdef class ConnectionBroker:
    """Gives connections to workers.

    :param journal: where what they owe is noted.
    """
    cdef Journal journal
    cdef dict shared              # SharedConnection by the number of its slot
    cdef list channels            # of the workers that get connections
    cdef list waiting             # SharedConnection for which there is no worker

    def __init__(self, Journal journal not None):
        self.journal = journal
        self.shared = {}
        self.channels = []
        self.waiting = []

    def listen(self, Loop loop not None, listening):
        """Takes the connections of a listening socket.

        :param listening: a ``socket.socket``, bound and listening.
        """
        cdef SharedListener listener = SharedListener(listening, None)
        listener.broker = self
        listener.start(loop)

    def open(self, channels):
        """Gives connections to workers from now on, first those that have waited."""
        cdef SharedConnection one
        self.channels += channels
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            self.place(one, b"")

    def close(self, WorkerChannel channel not None):
        """Stops giving connections to a worker; it keeps those that it has."""
        if channel in self.channels:
            self.channels.remove(channel)

    def worker_died(self, WorkerChannel channel not None):
        """Gives the connections of a worker that is dead to others.

        :returns: how many there were.
        """
        cdef SharedConnection one
        cdef set left = channel.connections
        cdef Slot* slot
        cdef bytes replayed
        self.close(channel)
        channel.connections = set()
        for one in left:
            replayed = b""
            slot = self.journal.slot(one.number)
            if slot != NULL and slot.reading and slot.outstanding == NOTHING:
                replayed = received_last(self.journal.area(channel.area))
            self.place(one, replayed)
        return len(left)

    @property
    def connections(self):
        """How many connections there are."""
        return len(self.shared)

    cdef WorkerChannel least_loaded(self):
        cdef WorkerChannel best = None
        cdef WorkerChannel channel
        for channel in self.channels:
            if best is None or len(channel.connections) < len(best.connections):
                best = channel
        return best

    cdef int place(self, SharedConnection one, bytes replayed) except -1:
        cdef Slot* slot = self.journal.slot(one.number)
        one.channel = self.least_loaded()
        if slot != NULL:
            slot.held = one.channel is not None
        if one.channel is None:
            self.waiting.append(one)
            return 0
        one.channel.connections.add(one)
        return one.channel.post(CONNECTION, one.number, replayed, [one.fd], [])


cdef bytes received_last(ReceiveArea* area):
    """The request that a worker had just received when it died; empty when that is not known.

    It may have died before it noted how much it received. What is not received is zero.
    """
    cdef Scanner scanner
    cdef uint32_t length
    cdef size_t size = 0
    cdef const uint8_t* data = <const uint8_t*>area.data
    if area.size > 0:
        return area.data[:area.size] if area.size <= REPLAYED_SIZE else b""
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
    return area.data[:size]


cdef class SharedListener(Listener):
    """A listening socket whose connections go to workers."""
    cdef ConnectionBroker broker

    def take(self, int fd):
        """Gives a connection to a worker.

        :param fd: its file descriptor, non-blocking.
        """
        cdef SharedConnection one = SharedConnection()
        one.broker = self.broker
        try:
            one.number = self.broker.journal.take()
            assert one.number != NO_SLOT
        except BaseException:
            close_fd(fd)
            raise
        self.loop.streams += 1
        self.broker.shared[one.number] = one
        # Nothing but its end, which epoll reports unasked, and once.
        self.loop.add(one, fd, EPOLLET)
        self.broker.place(one, b"")
