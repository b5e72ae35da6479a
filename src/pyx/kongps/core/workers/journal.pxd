"""What the connections of all workers owe Kong, in memory that outlives a worker."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef enum Outstanding:
    NOTHING          # Kong waits for no answer
    EVENT_CALL       # a HandleEvent, over ProtoBuf:1 the whole event
    STEP_CALL
    START_CALL       # StartInstance
    OTHER_CALL
    KONG_ENDS_IT     # Kong was asked for an exit over ProtoBuf:1; it closes the connection

cdef enum SpokenProtocol:
    NOT_KNOWN
    SPEAKS_MSGPACK
    SPEAKS_PROTOBUF

cdef enum:
    SLOT_SIZE = 64          # a cache line: workers do not disturb each other
    NO_SLOT = 0xffffffff
    # Bytes in which a request is looked for that came in the moment of a worker's death.
    REPLAYED_SIZE = 256

cdef struct Slot:
    int64_t sequence        # of the call that is not answered
    int64_t event           # that it is for, as far as that is known
    int32_t unanswered      # PDK calls that Kong has not answered, over ProtoBuf:1
    uint8_t held            # a worker may write to this slot
    uint8_t protocol
    uint8_t outstanding
    uint8_t phase
    uint8_t more            # another call came before that one was answered
    uint8_t reading         # bytes may have been taken from the socket and not understood yet
    uint8_t sending         # the last of an answer may have been sent
    uint8_t unread          # a message has come in part
    uint8_t unsent          # an answer has gone in part

cdef struct ReceiveArea:
    # Where a worker receives: what it had in hand when it died is found here.
    int64_t size
    char[1] data


cdef class Journal:
    cdef char* memory
    cdef size_t memory_size
    cdef readonly uint32_t capacity
    cdef readonly int areas
    cdef uint32_t fresh
    cdef list free
    cdef list leaving             # numbers of slots that a worker has not let go of

    cdef Slot* slot(self, uint32_t number) noexcept
    cdef ReceiveArea* area(self, int number) noexcept
    cdef uint32_t take(self) except? 4294967295
    cdef int give(self, uint32_t number) except -1
