"""Steps on their way to the worker in which their event lives; see ``relay.pxd``.

A link between two workers speaks MsgPack:1. Where calls come out of it, it is a connection as
those of Kong are; where they go in, it is a ``Relay``. A step is passed on as it came, but with a
number of the link's own, and its answer likewise on the way back: neither is taken apart.
"""

from logging import ERROR, WARNING

cimport cython
from libc.stdint cimport SIZE_MAX, int64_t, uint8_t, uint32_t, uint64_t

from kongps.core.io.buffer cimport Buffer, buffer_append, buffer_consume, buffer_free, buffer_size
from kongps.core.connection cimport Connection
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.dispatch.event cimport fail_lost_event
from kongps.core.dispatch.event_table cimport phase_in_id, tag_in_id
from kongps.core.io.loop cimport Loop
from kongps.core.io.stream cimport Stream
from kongps.core.session cimport Session
from kongps.core.wire.msgpack cimport (
    Reader, Scanner, read_array, read_integer, read_value, scan, scanner_reset,
)
from kongps.core.wire.msgpack_writer cimport write_unsigned
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protocol cimport COMMAND, Call, Protocol, send_answer

from kongps.core.connection import Unfinished
from kongps.core.report import report
from kongps.core.wire.msgpack import packb
from kongps.errors import ProtocolError, UnpackError

cdef enum:
    ANSWER = 1
    CLOSE_CONNECTION = 0xc2   # stands for the error: what `PeerRPC.give_up` says

# Other workers are trusted with memory; the limit is for what Kong sends.
cdef size_t MAX_MEMORY = <size_t>-1 >> 1


@cython.freelist(256)
cdef class Relayed:
    """A call that a link has taken away."""
    cdef Protocol origin          # where the answer goes, as `sequence`,
    cdef int64_t sequence
    cdef int64_t event
    cdef object answered          # or what is called with it


cdef class Relay(Stream):
    """The near end of a link to another worker: calls go in, answers come out."""
    cdef Buffer inbox
    cdef Buffer calls
    cdef Scanner scanner
    cdef dict waiting             # by number
    cdef int64_t last_number
    cdef bint flushing            # at the end of the loop's turn
    cdef Routes routes
    cdef readonly int worker
    cdef list touched             # protocols with answers to send

    def __cinit__(self):
        self.outbox = &self.calls
        self.waiting = {}
        self.touched = []

    def __dealloc__(self):
        buffer_free(&self.inbox)
        buffer_free(&self.calls)

    cdef int begin(self, Relayed relayed) except -1:
        """Writes ``[0, number,``; what it asks is to follow."""
        # Numbers that are in use again after 128 calls take one byte.
        self.last_number = (self.last_number + 1) & 127
        if self.last_number in self.waiting:
            self.last_number = 128
            while self.last_number in self.waiting:
                self.last_number += 1
        self.waiting[self.last_number] = relayed
        buffer_append(&self.calls, b"\x94\x00", 2)
        write_unsigned(&self.calls, <uint64_t>self.last_number)
        return 0

    cdef int flush_soon(self) except -1:
        """Sends at the end of the loop's turn what all connections of this turn have brought."""
        if not self.flushing:
            self.flushing = True
            self.loop.calls.append(self.flush_calls)
        return 0

    def flush_calls(self):
        """Sends what waits to be sent."""
        self.flushing = False
        self.flush()

    cdef int forward(self, Protocol origin, Call call) except -1:
        cdef Relayed relayed = Relayed.__new__(Relayed)
        relayed.origin = origin
        relayed.sequence = call.sequence
        relayed.event = call.target
        self.begin(relayed)
        buffer_append(&self.calls, call.raw, call.raw_size)
        return self.flush()  # now: plugin code may take long before the loop's turn ends

    def ask(self, str method not None, argument, answered):
        """Calls a method of the other worker.

        :param method: such as ``kongps.Status``.
        :param argument: its argument.
        :param answered: called with the result, or with None when there is none.
        """
        cdef Relayed relayed = Relayed()
        cdef bytes rest = packb(method) + packb([argument])
        relayed.answered = answered
        self.begin(relayed)
        buffer_append(&self.calls, <const char*>rest, <size_t>len(rest))
        self.flush_soon()

    cdef bint busy(self) except -1:
        return True  # as long as there are two workers

    cdef int received(self, const char* data, size_t size, double now) except -1:
        cdef size_t held
        cdef Protocol origin
        buffer_append(&self.inbox, data, size)
        try:
            while True:
                held = buffer_size(&self.inbox)
                if held == 0 or scan(
                    &self.scanner, <const uint8_t*>self.inbox.data + self.inbox.begin, held, SIZE_MAX
                ) == 0:
                    break
                self.read_answer(
                    <const uint8_t*>self.inbox.data + self.inbox.begin, self.scanner.offset
                )
                buffer_consume(&self.inbox, self.scanner.offset)
                scanner_reset(&self.scanner)
        finally:
            for origin in self.touched:
                send_answer(origin)
            self.touched.clear()
        return 0

    cdef int read_answer(self, const uint8_t* data, size_t size) except -1:
        cdef Reader reader
        cdef Relayed relayed
        cdef uint32_t length
        cdef int64_t kind, number
        reader.at = data
        if not (
            read_array(&reader, &length) and length == 4 and read_integer(&reader, &kind)
            and kind == ANSWER and read_integer(&reader, &number) and number in self.waiting
        ):
            raise UnpackError("a worker got a reply that it had not asked for")
        relayed = <Relayed>self.waiting.pop(number)
        if relayed.origin is None:
            error = read_value(&reader)
            result = read_value(&reader)
            relayed.answered(result if error is None else None)
            return 0
        if reader.at[0] == CLOSE_CONNECTION:
            relayed.origin.close()
        else:
            (<MsgPackRPC>relayed.origin).begin_answer(relayed.sequence)
            buffer_append(
                &relayed.origin.outbox, reader.at, <size_t>(data + size - reader.at)
            )
            relayed.origin.asked = relayed.event  # as far as is known here
        self.touched.append(relayed.origin)
        return 0

    cdef int lost(self) except -1:
        """The other worker is gone, and with it the events whose steps it was given."""
        cdef Relayed relayed
        cdef list waiting = list(self.waiting.values())
        self.waiting.clear()
        if self.routes.relays.get(self.worker) is self:
            del self.routes.relays[self.worker]
        for relayed in waiting:
            if relayed.origin is None:
                relayed.answered(None)
            else:
                self.routes.fail(relayed.origin, relayed.sequence, relayed.event)
                send_answer(relayed.origin)
        return 0


cdef class PeerRPC(MsgPackRPC):
    """MsgPack:1 between two workers."""

    cdef int give_up(self, int64_t sequence) except -1:
        # An error of false, which no answer has: the connection that it came on is to be closed.
        self.begin_answer(sequence)
        return buffer_append(&self.outbox, b"\xc2\xc0", 2)


cdef class PeerSession(Session):
    """The calls of another worker.

    :param dispatcher: where the events of its steps are.
    :param commands: what answers its commands, by method: takes the argument, returns the result.
    """
    cdef dict commands

    def __init__(self, Dispatcher dispatcher not None, dict commands not None):
        Session.__init__(self, dispatcher, SIZE_MAX)  # who has received it from Kong has checked
        self.commands = commands
        self.speak(PeerRPC(SIZE_MAX))

    cdef int carry_out(self, Call call, double now) except -1:
        # What goes wrong in one call costs that call: the link has those of all connections.
        if call.kind == COMMAND:
            return self.carry_out_command(call)
        try:
            return Session.carry_out(self, call, now)
        except ProtocolError as error:
            report(WARNING, "closing a connection of another worker: %s", error)
            return self.protocol.give_up(call.sequence)

    cdef int carry_out_command(self, Call call) except -1:
        try:
            result = self.commands[call.method](call.value)
            return self.protocol.answer_result(call.sequence, result)
        except Exception as error:
            report(ERROR, "%s failed for another worker", call.method, error=error)
            return self.protocol.answer_error(call.sequence, f"{call.method} failed")

    cdef bint full(self) noexcept:
        return False

    cdef bint expects_step(self) except -1:
        return True  # as long as there are two workers


cdef class Routes:
    """The links of one worker: where the steps go whose events are in another one.

    :param worker: its number.
    :param loop: its loop.
    :param lost_events_pass: whether a request goes on whose event was in a worker that is dead;
        else it ends with a 500.
    """

    def __init__(self, int worker, Loop loop not None, bint lost_events_pass):
        self.worker = worker
        self.loop = loop
        self.lost_events_pass = lost_events_pass
        self.relays = {}

    cdef bint is_here(self, int64_t event) noexcept:
        return tag_in_id(event) == self.worker or event <= 0

    cdef int forward(self, Protocol origin, Call call) except -1:
        """Passes a step on; its answer, now or later, goes to `origin`."""
        cdef object relay = self.relays.get(tag_in_id(call.target))
        if relay is None:
            return self.fail(origin, call.sequence, call.target)
        return (<Relay>relay).forward(origin, call)

    cdef int abandon(self, int64_t event) except -1:
        """Ends an event in another worker; Kong has got an answer that says it has failed."""
        cdef object relay = self.relays.get(tag_in_id(event))
        if relay is not None:
            relay.ask("kongps.Abandon", event, lambda _: None)
        return 0

    cdef int fail(self, Protocol origin, int64_t sequence, int64_t event) except -1:
        return fail_lost_event(
            origin, sequence, event, phase_in_id(event), self.lost_events_pass
        )

    def add(self, int worker, int calls_fd, int answers_fd, Dispatcher dispatcher not None,
            dict commands not None):
        """Links this worker with another one.

        :param worker: the other's number.
        :param calls_fd: a connected stream socket, for the calls to the other.
        :param answers_fd: another, for its calls to this one.
        :param dispatcher: where the events of this worker are.
        :param commands: what answers the other's commands, by method.
        """
        cdef Relay relay = Relay()
        cdef Connection connection = Connection(
            PeerSession(dispatcher, commands), Unfinished(MAX_MEMORY)
        )
        relay.worker = worker
        relay.routes = self
        self.relays[worker] = relay
        self.loop.add_urgent(relay, calls_fd)
        self.loop.add_urgent(connection, answers_fd)

    def others(self):
        """:returns: the :class:`Relay` to each worker that this one is linked with."""
        return list(self.relays.values())

    @property
    def outstanding(self):
        """How many calls other workers have not answered."""
        return sum(len((<Relay>relay).waiting) for relay in self.relays.values())
