"""One connection from Kong without I/O: a protocol joined to the dispatcher.

Both protocols are spoken on one socket; a connection's first four bytes show which. Read as a
length in the machine's order, those of a ProtoBuf:1 frame with a call are at most MAX_CALL_SIZE,
8 MiB. A MsgPack:1 request starts with 94 00 (an array of four, the number 0), then the request's
number and a text. On a little-endian machine the length reads m * 2**16 + s * 2**24 + 0x94, where
m is the number's first byte and s the next. If the number is one byte, s is the first byte of a
text, 0xa0 or more: at least 2**24. If it is longer, m is 0xca or more: at least 0xca0094. Either
is more than 8 MiB. On a big-endian machine the length has 94 in its highest byte. So no opening
of one is taken for the other.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.buffer cimport buffer_append, buffer_free, buffer_size
from kongps.core.io.clock cimport coarse_monotonic
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protobuf_rpc cimport MAX_CALL_SIZE, ProtobufRPC
from kongps.core.wire.protocol cimport MAX_UNANSWERED_CALLS, Call, Protocol, take_call, unread

from kongps.errors import ProtocolError

cdef enum:
    OPENING_SIZE = 4   # bytes that distinguish the protocols


cdef class Session:
    """One connection from Kong: bytes in, handlers run, bytes out.

    :param dispatcher: what carries out its calls.
    :param max_message: bytes of the longest message taken; a longer one closes the connection.
    """

    def __cinit__(self):
        self.outbox = &self.nothing

    def __init__(self, Dispatcher dispatcher not None, size_t max_message):
        self.dispatcher = dispatcher
        self.max_message = max_message
        self.call = Call()

    def __dealloc__(self):
        buffer_free(&self.opening)

    cdef int feed(self, const char* data, size_t size) except -1:
        """Takes bytes from Kong; ``pump`` then carries out what they complete.

        :raises ProtocolError: they begin no protocol of Kong.
        """
        if self.protocol is not None:
            return buffer_append(&self.protocol.inbox, data, size)
        buffer_append(&self.opening, data, size)
        return self.recognise() if buffer_size(&self.opening) >= OPENING_SIZE else 0

    cdef int recognise(self) except -1:
        """Chooses the protocol by the first bytes: one line for each that there is."""
        cdef const uint8_t* first = <const uint8_t*>self.opening.data + self.opening.begin
        cdef uint32_t length
        memcpy(&length, first, OPENING_SIZE)
        if length <= MAX_CALL_SIZE:
            self.speak(ProtobufRPC(self.max_message))
        elif first[0] == 0x94 and first[1] == 0x00:
            self.speak(MsgPackRPC(self.max_message))
        else:
            raise ProtocolError(
                f"it begins with {(<const char*>first)[:OPENING_SIZE].hex()}, as neither "
                "MsgPack:1 nor ProtoBuf:1 does"
            )
        buffer_append(&self.protocol.inbox, first, buffer_size(&self.opening))
        buffer_free(&self.opening)
        return 0

    cdef int speak(self, Protocol protocol) except -1:
        """The protocol is known."""
        self.protocol = protocol
        self.outbox = &protocol.outbox
        protocol.outlet = self.outlet
        return 0

    cdef bint pump(self, size_t most_unsent, double now) except -1:
        """Carries out the calls that came, until more than `most_unsent` bytes of answers wait.

        Returns whether it stopped for that, with calls left.

        :raises ProtocolError: the connection must be closed.
        """
        cdef bint more = False
        if self.protocol is None:
            return False
        while True:
            if buffer_size(self.outbox) > most_unsent:
                more = True
                break
            if self.full() or not take_call(self.protocol, self.call):
                break
            self.carry_out(self.call, now)
        self.call.value = None
        return more

    cdef int carry_out(self, Call call, double now) except -1:
        """Carries out one call, which came at `now`, monotonic seconds."""
        return self.dispatcher.handle(call, self.protocol, now)

    cdef bint full(self) noexcept:
        """Whether so many calls wait for answers that no further one is carried out."""
        return self.protocol.unanswered_calls >= MAX_UNANSWERED_CALLS

    cdef bint is_closing(self) noexcept:
        """Whether the connection is to be closed when what is in the outbox has been sent."""
        return self.protocol is not None and self.protocol.closing

    cdef size_t unread(self) noexcept:
        """Bytes of a message that has not come whole, or of a call that is not carried out yet."""
        return buffer_size(&self.opening) if self.protocol is None else unread(self.protocol)

    cdef bint idle(self) except -1:
        """Whether neither side waits for the other, and nothing has come or gone in part."""
        if self.protocol is None:
            return buffer_size(&self.opening) == 0
        return self.protocol.is_idle()

    cdef bint expects_step(self) except -1:
        """Whether Kong is likely to go on with a call or an event on this connection."""
        if self.protocol is None:
            return False
        return (
            self.protocol.unanswered_calls > 0
            or self.protocol.unanswered_functions() > 0
            or self.dispatcher.find_event(self.protocol.asked) is not None
        )

    cdef int lost(self) except -1:
        """The connection is gone; the event that it belonged to ends."""
        if self.protocol is None:
            return 0
        self.protocol.outlet = None
        return self.dispatcher.connection_lost(self.protocol)

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from Kong and carries out every call that they complete.

        :param data: any number of bytes, cut anywhere.
        :raises ProtocolError: what came is no protocol of Kong; the connection must be closed.
        """
        if data.shape[0]:
            self.feed(<const char*>&data[0], <size_t>data.shape[0])
            self.pump(<size_t>-1, coarse_monotonic())

    def data_to_send(self):
        """:returns: the bytes for Kong that were not yet taken; they are taken with this."""
        return b"" if self.protocol is None else self.protocol.data_to_send()

    @property
    def closing(self):
        """Whether the connection is to be closed when ``data_to_send`` has been sent."""
        return self.is_closing()

    def connection_lost(self):
        """Ends the event that the connection belonged to."""
        self.lost()
