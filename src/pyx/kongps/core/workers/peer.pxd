"""The far end of a link between two workers: the other one's calls come out of it."""

from kongps.core.session cimport Session
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC


cdef class PeerRPC(MsgPackRPC):
    pass


cdef class PeerSession(Session):
    cdef dict commands            # what answers a command of another worker, by its method
