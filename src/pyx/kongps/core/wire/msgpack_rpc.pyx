"""MsgPack:1, Kong's MessagePack-RPC, without I/O.

A request is ``[0, msgid, "plugin.Method", [argument]]``, an answer ``[1, msgid, error, result]``.
The methods on the path of every event (``HandleEvent``, the ``Step…`` family) are read in place,
field by field; any other becomes a ``COMMAND`` with its argument as a Python object.

A notification (``[2, label, arguments]``) needs no answer and is passed over. None is sent either:
Go's servers announce their pid, so that Kong forgets its instances when it changes; here an instance
id stays good or is refused, and Kong starts the instance again.

The connection has no states: Kong may send any call at any time, and all that is kept is how many
are unanswered.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from kongps.core.io.buffer cimport (
    buffer_append, buffer_consume, buffer_size,
)
from kongps.core.wire.function cimport Function
from kongps.core.wire.msgpack cimport (
    Reader, read_array, read_integer, read_map, read_text, read_value, scan, scanner_reset,
    skip_value,
)
from kongps.core.wire.msgpack_writer cimport write_array, write_text, write_unsigned, write_value
from kongps.core.wire.phases cimport NO_PHASE, phase_number
from kongps.core.wire.protocol cimport (
    COMMAND, HANDLE_EVENT, INVALID, STEP, STEP_ERROR, Call, Protocol,
)

from kongps.core.wire.msgpack import packb
from kongps.errors import NoInstance, PackError, ProtocolError, UnpackError

cdef enum:
    REQUEST = 0
    NOTIFICATION = 2
    LONGEST_METHOD = 64   # the longest method that Kong knows has 22 bytes

# The Step methods differ only in what the value is for the Go servers' static types.
cdef enum:
    STEP_PREFIX = 11      # bytes of "plugin.Step"


cdef inline bint same(const char* text, size_t size, const char* other, size_t length) noexcept:
    return size == length and memcmp(text, other, length) == 0


cdef object not_msgpack(object error):
    return ProtocolError(f"not a MessagePack-RPC message: {error}")


cdef class MsgPackRPC(Protocol):
    """One connection that speaks MsgPack:1."""

    def __cinit__(self):
        self.name = "MsgPack:1"
        self.steps_are_calls = True
        self.logs_failures = True

    cdef bint next_call(self, Call call) except -1:
        cdef Reader reader
        cdef const uint8_t* start
        cdef size_t size
        cdef bint is_call
        while True:
            buffer_consume(&self.inbox, self.taken)
            self.taken = 0
            size = buffer_size(&self.inbox)
            if size == 0:
                return False
            start = <const uint8_t*>self.inbox.data + self.inbox.begin
            try:
                if scan(&self.scanner, start, size, self.max_message) == 0:
                    return False
                reader.at = start
                is_call = self.read_message(&reader, call)
            except UnpackError as error:
                raise not_msgpack(error) from None
            self.taken = self.scanner.offset
            scanner_reset(&self.scanner)
            if is_call:
                return True

    cdef bint read_message(self, Reader* reader, Call call) except -1:
        """Reads a message that was scanned whole; False when it asks for nothing."""
        cdef uint32_t length, arguments
        cdef int64_t kind
        cdef const char* method
        cdef size_t size
        cdef bint is_event, is_step
        cdef const uint8_t* rest
        if not read_array(reader, &length) or length < 3 or not read_integer(reader, &kind):
            raise ProtocolError("a MessagePack-RPC message is an array that starts with its kind")
        if kind == NOTIFICATION and length == 3:
            return False
        if kind != REQUEST or length != 4:
            raise ProtocolError(f"a message of kind {kind} with {length} parts is not a request")
        if not read_integer(reader, &call.sequence) or call.sequence < 0:
            raise ProtocolError("a request's number must be a whole number, 0 or more")
        rest = reader.at
        call.method = call.value = None
        call.phase = NO_PHASE
        if not read_text(reader, &method, &size) or size > LONGEST_METHOD:
            raise ProtocolError("a request's method must be a short string")
        is_event = same(method, size, b"plugin.HandleEvent", 18)
        is_step = size >= STEP_PREFIX and memcmp(method, b"plugin.Step", STEP_PREFIX) == 0
        if not read_array(reader, &arguments) or arguments > 1 or (
            arguments == 0 and (is_event or is_step)
        ):
            call.kind = INVALID
            call.value = f"{method[:size].decode('utf-8', 'replace')} takes one argument"
        elif is_event:
            self.read_event(reader, call)
        elif is_step:
            call.kind = STEP
            if size > STEP_PREFIX:
                if same(method, size, b"plugin.StepError", 16):
                    call.kind = STEP_ERROR
                elif method[:size] not in STEP_METHODS:
                    call.kind = COMMAND
            if call.kind != COMMAND:
                call.raw = rest
                call.raw_size = <size_t>(
                    <const uint8_t*>self.inbox.data + self.inbox.begin + self.scanner.offset - rest
                )
                self.find_step(reader, call)
        else:
            call.kind = COMMAND
        if call.kind == COMMAND:
            call.method = method[:size].decode("utf-8", "replace")
            call.value = read_value(reader) if arguments else None
        return True

    cdef int read_event(self, Reader* reader, Call call) except -1:
        cdef uint32_t pairs
        cdef const char* text
        cdef size_t size
        cdef bint has_instance = False
        call.kind = HANDLE_EVENT
        if not read_map(reader, &pairs):
            pairs = 0
        while pairs:
            pairs -= 1
            if not read_text(reader, &text, &size):
                skip_value(reader)
                skip_value(reader)
            elif same(text, size, b"InstanceId", 10):
                has_instance = read_integer(reader, &call.target)
                if not has_instance:
                    skip_value(reader)
            elif same(text, size, b"EventName", 9):
                if read_text(reader, &text, &size):
                    call.phase = phase_number(text, size)
                else:
                    skip_value(reader)
            else:
                skip_value(reader)
        if not has_instance:
            # Kong 2.8 sends this after a StartInstance that failed; the words make every Kong
            # start the instance again.
            call.kind = INVALID
            call.value = str(NoInstance(reason="HandleEvent came without an InstanceId"))
        elif call.phase == NO_PHASE:
            call.kind = INVALID
            call.value = "HandleEvent came without the name of a phase in EventName"
        return 0

    cdef int find_step(self, Reader* reader, Call call) except -1:
        """Finds the event that a step is for, and where its value is."""
        cdef uint32_t pairs
        cdef const char* text
        cdef size_t size
        cdef bint has_event = False
        call.raw_value = NULL
        if not read_map(reader, &pairs):
            pairs = 0
        while pairs:
            pairs -= 1
            if not read_text(reader, &text, &size):
                skip_value(reader)
                skip_value(reader)
            elif same(text, size, b"EventId", 7):
                has_event = read_integer(reader, &call.target)
                if not has_event:
                    skip_value(reader)
            else:
                if same(text, size, b"Data", 4):
                    call.raw_value = reader.at
                if pairs:
                    skip_value(reader)
        if not has_event:
            call.kind = INVALID
            call.value = "a Step came without an EventId"
        return 0

    cdef int read_step(self, Call call) except -1:
        cdef Reader reader
        if call.raw_value == NULL:
            return 0
        reader.at = call.raw_value
        try:
            call.value = read_value(&reader)
        except UnpackError as error:
            raise not_msgpack(error) from None
        return 0

    cdef int begin_answer(self, int64_t sequence) except -1:
        """Writes ``[1, sequence,``; the error and the result are to follow."""
        self.event = self.asked = 0
        self.unanswered_calls -= 1
        buffer_append(&self.outbox, b"\x94\x01", 2)
        return write_unsigned(&self.outbox, <uint64_t>sequence)

    cdef int answer_return(self, int64_t sequence, int64_t event) except -1:
        self.begin_answer(sequence)
        buffer_append(&self.outbox, b"\xc0\x82\xa4Data\xa3ret\xa7EventId", 19)
        return write_unsigned(&self.outbox, <uint64_t>event)

    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1:
        cdef Py_ssize_t index = 0
        cdef Py_ssize_t count = PyTuple_GET_SIZE(args)
        cdef size_t written
        if function.msgpack_head is None:
            function.msgpack_head = (
                b"\xa4Data\x82\xa6Method" + packb(function.name) + b"\xa4Args"
            )
        written = buffer_size(&self.outbox)
        try:
            self.begin_answer(sequence)
            buffer_append(&self.outbox, b"\xc0\x82\xa7EventId", 10)
            write_unsigned(&self.outbox, <uint64_t>event)
            buffer_append(
                &self.outbox, PyBytes_AS_STRING(function.msgpack_head),
                <size_t>PyBytes_GET_SIZE(function.msgpack_head),
            )
            write_array(&self.outbox, <size_t>count)
            for index in range(count):
                write_value(&self.outbox, <object>PyTuple_GET_ITEM(args, index), 0)
        except BaseException as error:
            self.outbox.end = self.outbox.begin + written
            self.unanswered_calls += 1
            if isinstance(error, PackError):
                raise PackError(f"argument {index + 1} of {function.name}: {error}") from None
            raise
        self.asked = event
        return True

    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1:
        return self.answer_error(sequence, text)

    cdef int answer_result(self, int64_t sequence, object result) except -1:
        cdef size_t written = buffer_size(&self.outbox)
        try:
            self.begin_answer(sequence)
            buffer_append(&self.outbox, b"\xc0", 1)
            write_value(&self.outbox, result, 0)
        except BaseException:
            self.outbox.end = self.outbox.begin + written
            self.unanswered_calls += 1
            raise
        return 0

    cdef int answer_error(self, int64_t sequence, str text) except -1:
        cdef bytes utf8 = text.encode("utf-8", "backslashreplace")
        self.begin_answer(sequence)
        write_text(&self.outbox, PyBytes_AS_STRING(utf8), <size_t>PyBytes_GET_SIZE(utf8))
        return buffer_append(&self.outbox, b"\xc0", 1)


STEP_METHODS = frozenset(
    b"plugin.Step" + kind
    for kind in (
        b"MultiMap", b"Credential", b"Route", b"Service", b"Consumer", b"MemoryStats", b"Plugin",
    )
)
