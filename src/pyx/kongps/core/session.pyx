"""One connection from Kong without I/O: a protocol joined to the dispatcher."""

from kongps.core.buffer cimport buffer_size
from kongps.core.dispatch cimport Dispatcher
from kongps.core.msgpack_rpc cimport MsgPackRPC
from kongps.core.protocol cimport Call


cdef class Session:
    """One connection from Kong: bytes in, handlers run, bytes out.

    :param dispatcher: whom the calls are for.
    """

    def __init__(self, Dispatcher dispatcher not None):
        self.dispatcher = dispatcher
        self.protocol = MsgPackRPC()
        self.call = Call()

    cdef bint carry_out(self, size_t most_unsent) except -1:
        """Carries out the calls that came, until more than `most_unsent` bytes of answers wait.

        Returns whether it stopped for that, with calls left.

        :raises ProtocolError: the connection must be closed.
        """
        while buffer_size(&self.protocol.outbox) <= most_unsent:
            if not self.protocol.next_call(self.call):
                self.call.value = None
                return False
            self.dispatcher.handle(self.call, self.protocol)
        self.call.value = None
        return True

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from Kong and carries out every call that they complete.

        :param data: any number of bytes, cut anywhere.
        :raises ProtocolError: what came is no protocol of Kong; the connection must be closed.
        """
        if data.shape[0]:
            self.protocol.receive(<const char*>&data[0], <size_t>data.shape[0])
            self.carry_out(<size_t>-1)

    def data_to_send(self):
        """:returns: the bytes for Kong that were not yet taken; they are taken with this."""
        return self.protocol.data_to_send()
