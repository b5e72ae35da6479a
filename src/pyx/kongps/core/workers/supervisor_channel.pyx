"""A worker's end of the channel to the supervisor: its connections come from there."""

from logging import WARNING

from libc.stdint cimport uint32_t

from kongps.core.connection cimport Unfinished
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.loop cimport Loop
from kongps.core.workers.channel cimport CONNECTION, GIVEN_BACK, Channel, Message
from kongps.core.workers.journal cimport NOT_KNOWN, Journal, Slot
from kongps.core.workers.relay cimport Routes
from kongps.core.workers.worker_connection cimport WorkerConnection
from kongps.core.workers.worker_session cimport WorkerSession

from kongps.core.report import report


cdef class SupervisorChannel(Channel):
    """A worker's end of the channel to the supervisor.

    :param journal: where it notes what it owes to Kong.
    :param area: which receive area of the journal it has.
    :param dispatcher: what carries out the calls.
    :param unfinished: the limit on unfinished messages that its connections share.
    :param max_message: bytes of the longest message taken.
    :param routes: where the steps go whose events are in another worker.
    :param on_message, on_close: as :class:`Channel` has them.
    """

    def __init__(self, Journal journal not None, int area, Dispatcher dispatcher not None,
                 Unfinished unfinished not None, size_t max_message, Routes routes not None,
                 on_message, on_close):
        Channel.__init__(self, on_message, on_close)
        self.journal = journal
        self.area = area
        self.dispatcher = dispatcher
        self.unfinished = unfinished
        self.max_message = max_message
        self.routes = routes

    def start(self, Loop loop not None, int fd):
        """Begins to receive; what comes for any connection goes to the receive area.

        :param fd: the socket, non-blocking; it is closed with the channel.
        """
        loop.receive_buffer = self.journal.area(self.area).data
        Channel.start(self, loop, fd)

    def retire(self):
        """Gives every connection back that is idle, now or later."""
        cdef WorkerConnection connection
        self.retiring = True
        for one in list(self.loop.watched.values()):
            if isinstance(one, WorkerConnection) and (<WorkerConnection>one).slot != NULL:
                connection = <WorkerConnection>one
                connection.return_idle = self.give_back
                if connection.is_idle():
                    self.give_back(connection)

    def give_back(self, WorkerConnection connection not None):
        """Gives a connection back to the supervisor, for another worker."""
        cdef uint32_t number = connection.number
        connection.slot.reading = False
        connection.release_slot()
        connection.shared = False  # it stays open
        connection.close()
        self.post(GIVEN_BACK, number, b"", [], False)

    cdef int came(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        if kind != CONNECTION:
            return Channel.came(self, kind, number, data, fds)
        if not fds:
            report(WARNING, "a connection was lost on its way to a worker")
            self.journal.slot(number).held = False
            return 0
        return self.take(number, fds[0], data)

    cdef int take(self, uint32_t number, int fd, bytes replayed) except -1:
        cdef Slot* slot = self.journal.slot(number)
        cdef WorkerConnection connection = WorkerConnection(
            WorkerSession(self.dispatcher, self.max_message, self.routes), self.unfinished
        )
        connection.use_slot(number, slot, self.journal.area(self.area))
        connection.shared = True
        if self.retiring:
            connection.return_idle = self.give_back
        self.loop.add_stream(connection, fd)
        if slot.protocol != NOT_KNOWN or slot.reading or slot.unread:
            connection.take_over(replayed)
        if self.retiring and connection.slot != NULL and connection.is_idle():
            self.give_back(connection)
        return 0
