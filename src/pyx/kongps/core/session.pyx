"""One connection from Kong without I/O: a protocol joined to the dispatcher."""

from cpython.bytes cimport PyBytes_FromStringAndSize

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

    cdef int receive(self, const char* data, size_t size) except -1:
        """Takes bytes and carries out every call that they complete.

        :raises ProtocolError: the connection must be closed.
        """
        self.protocol.receive(data, size)
        while self.protocol.next_call(self.call):
            self.dispatcher.handle(self.call, self.protocol)
        self.call.value = None
        return 0

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from Kong and carries out every call that they complete.

        :param data: any number of bytes, cut anywhere.
        :raises ProtocolError: what came is no protocol of Kong; the connection must be closed.
        """
        if data.shape[0]:
            self.receive(<const char*>&data[0], <size_t>data.shape[0])

    def data_to_send(self):
        """:returns: the bytes for Kong that were not yet taken; they are taken with this."""
        return self.protocol.data_to_send()
