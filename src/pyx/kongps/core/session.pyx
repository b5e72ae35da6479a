"""One connection from Kong without I/O: a protocol joined to the dispatcher.

Both protocols are spoken on one socket; a connection's first four bytes tell which. Read as a
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

from kongps.core.io.buffer cimport buffer_append, buffer_free, buffer_size
from kongps.core.io.clock cimport coarse_monotonic
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protobuf_rpc cimport MAX_CALL_SIZE, ProtobufRPC
from kongps.core.wire.protocol cimport MOST_CALLS

from kongps.errors import ProtocolError

cdef enum:
    OPENING_SIZE = 4   # bytes that tell the protocols apart


cdef class Session:
    """One connection from Kong: bytes in, handlers run, bytes out.

    :param dispatcher: whom the calls are for.
    """

    def __init__(self, Dispatcher dispatcher not None):
        self.dispatcher = dispatcher
        self.call = Call()

    def __dealloc__(self):
        buffer_free(&self.opening)

    cdef int receive(self, const char* data, size_t size) except -1:
        """Takes bytes from Kong.

        :raises ProtocolError: they begin no protocol of Kong.
        """
        if self.protocol is not None:
            return self.protocol.receive(data, size)
        buffer_append(&self.opening, data, size)
        if buffer_size(&self.opening) >= OPENING_SIZE:
            self.recognise()
        return 0

    cdef int recognise(self) except -1:
        cdef const uint8_t* first = <const uint8_t*>self.opening.data + self.opening.begin
        cdef uint32_t length
        memcpy(&length, first, OPENING_SIZE)
        if length <= MAX_CALL_SIZE:
            self.protocol = ProtobufRPC()
        elif first[0] == 0x94 and first[1] == 0x00:
            self.protocol = MsgPackRPC()
        else:
            raise ProtocolError(
                f"it begins with {(<const char*>first)[:OPENING_SIZE].hex()}, as neither "
                "MsgPack:1 nor ProtoBuf:1 does"
            )
        self.protocol.longest = self.dispatcher.max_message
        self.protocol.receive(<const char*>first, buffer_size(&self.opening))
        buffer_free(&self.opening)
        return 0

    cdef bint carry_out(self, size_t most_unsent) except -1:
        """Carries out the calls that came, until more than `most_unsent` bytes of answers wait.

        Returns whether it stopped for that, with calls left.

        :raises ProtocolError: the connection must be closed.
        """
        if self.protocol is None:
            return False
        while buffer_size(&self.protocol.outbox) <= most_unsent:
            if self.full():
                self.call.value = None
                return False
            if not self.protocol.next_call(self.call):
                self.call.value = None
                return False
            self.dispatcher.handle(self.call, self.protocol)
        self.call.value = None
        return True

    cdef bint full(self) noexcept:
        """Whether so many calls wait for answers that no further one is carried out."""
        return self.protocol.calls >= MOST_CALLS and not self.protocol.is_peer

    cdef bint busy(self) except -1:
        """Whether a message has not come whole, or Kong is likely to go on with an event here."""
        if self.protocol is None:
            return buffer_size(&self.opening) > 0
        if self.protocol.asked and self.protocol.elsewhere is not None and not (
            self.protocol.elsewhere.is_here(self.protocol.asked)
        ):
            return True  # who knows
        return (
            self.protocol.is_peer
            or buffer_size(&self.protocol.inbox) > 0
            or self.protocol.calls > 0
            or self.protocol.owed() > 0
            or self.dispatcher.find_event(self.protocol.asked) is not None
        )

    cdef int lost(self) except -1:
        """The connection is gone."""
        if self.protocol is not None:
            self.dispatcher.connection_lost(self.protocol)
        return 0

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from Kong and carries out every call that they complete.

        :param data: any number of bytes, cut anywhere.
        :raises ProtocolError: what came is no protocol of Kong; the connection must be closed.
        """
        if data.shape[0]:
            self.dispatcher.heard = coarse_monotonic()
            self.receive(<const char*>&data[0], <size_t>data.shape[0])
            self.carry_out(<size_t>-1)

    def data_to_send(self):
        """:returns: the bytes for Kong that were not yet taken; they are taken with this."""
        return b"" if self.protocol is None else self.protocol.data_to_send()

    @property
    def closing(self):
        """Whether the connection is to be closed when ``data_to_send`` has been sent."""
        return self.protocol is not None and self.protocol.closing

    def connection_lost(self):
        """Says that the connection is gone; the event that it belonged to ends."""
        self.lost()
