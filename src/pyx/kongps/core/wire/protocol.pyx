"""What dispatch and a protocol say to each other; see ``protocol.pxd``.

The ``def`` methods are the same interface for Python: tests, fuzzers and recordings drive a
protocol with them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize

from kongps.core.io.buffer cimport buffer_append, buffer_consume, buffer_free, buffer_size
from kongps.core.wire.function cimport find_function
from kongps.core.workers.journal cimport EVENT_CALL, NOTHING, OTHER_CALL, START_CALL, STEP_CALL
from kongps.core.wire.phases cimport NO_PHASE, phase_name

KIND_NAMES = ("handle_event", "step", "step_error", "command", "invalid")


cdef class Call:
    """One request from Kong.

    :ivar kind: ``handle_event``, ``step``, ``step_error``, ``command`` or ``invalid``.
    :ivar sequence: the number to repeat in the answer.
    :ivar target: the id of the instance (``handle_event``) or of the event (``step``, …).
    :ivar phase: the name of the phase of a ``handle_event``, else None.
    :ivar method: the method of a ``command``, such as ``plugin.StartInstance``.
    :ivar value: what a step carried, a command's argument, or why the call is invalid.
    """

    @property
    def kind(self):
        return KIND_NAMES[<int>self.kind]

    @property
    def sequence(self):
        return self.sequence

    @property
    def target(self):
        return self.target

    @property
    def phase(self):
        return None if self.phase == NO_PHASE else phase_name(self.phase)

    @property
    def method(self):
        return self.method

    @property
    def value(self):
        return self.value


cdef class Outlet:
    """Where a protocol's bytes leave when no call on its connection brought them about."""

    cdef int send(self) except -1:
        """Sends what is in the outbox, and closes the connection if the protocol is closing."""
        raise NotImplementedError

    cdef int push(self) except -1:
        """The same from whoever has the loop's turn: what else is to do, the loop does soon."""
        raise NotImplementedError


cdef class Elsewhere:
    """Where the steps go whose events are not in this process."""

    cdef bint is_here(self, int64_t event) noexcept:
        return True

    cdef int abandon(self, int64_t event) except -1:
        """Has an event ended, wherever it is: Kong was told that it has failed."""
        raise NotImplementedError

    cdef int forward(self, Protocol origin, int64_t sequence, int64_t event, const uint8_t* rest,
                     size_t size) except -1:
        """Has the call answered, now or later, that `origin` knows as `sequence`.

        `rest` is the request from behind its number.
        """
        raise NotImplementedError


cdef class Protocol:
    """One connection's protocol; the base of each."""

    def __dealloc__(self):
        buffer_free(&self.inbox)
        buffer_free(&self.outbox)

    cdef int receive(self, const char* data, size_t size) except -1:
        """Takes bytes from the peer, cut anywhere."""
        return buffer_append(&self.inbox, data, size)

    cdef bint next_call(self, Call call) except -1:
        """Fills `call` with the next complete call; False when more bytes are needed.

        :raises ProtocolError: what came is not this protocol; the connection must be closed.
        """
        raise NotImplementedError

    cdef bint is_idle(self) except -1:
        """Whether neither side waits for the other, and nothing has come or gone in part."""
        return not (
            self.calls or self.closing or buffer_size(&self.inbox) or buffer_size(&self.outbox)
        )

    cdef int owed(self) except -1:
        """How many PDK calls Kong has not answered that it answers on this connection."""
        return 0

    cdef bint ends_with_kong(self) noexcept:
        """Whether Kong was asked for something after which it closes the connection."""
        return False

    cdef int give_up(self, int64_t sequence) except -1:
        """The call will not be answered: Kong may use the connection for another by now."""
        self.closing = True
        return 0

    cdef int note(self, Call call) except -1:
        """Notes in the journal what has to be answered; `slot` is not NULL."""
        if self.slot.outstanding != NOTHING:
            self.slot.more = True
        self.slot.sequence = call.sequence
        self.slot.event = call.target
        self.slot.phase = <uint8_t>call.phase
        if call.kind == HANDLE_EVENT:
            self.slot.event = 0
            self.slot.outstanding = EVENT_CALL
        elif call.kind == COMMAND:
            self.slot.outstanding = (
                START_CALL if call.method == "plugin.StartInstance" else OTHER_CALL
            )
        else:
            self.slot.outstanding = STEP_CALL
        self.slot.reading = False
        return 0

    cdef int hold(self, int64_t event) except -1:
        """The present call, of `event`, is answered later: the connection belongs to it."""
        self.event = event
        return 0

    cdef int send(self) except -1:
        """What is in the outbox came about without a call on this connection: sends it."""
        cdef Outlet outlet = self.outlet  # it may let go of itself: the connection is lost
        if outlet is not None:
            outlet.send()
        return 0

    cdef int push(self) except -1:
        """The same from whoever has the loop's turn."""
        cdef Outlet outlet = self.outlet
        if outlet is not None:
            outlet.push()
        return 0

    cdef int answer_return(self, int64_t sequence, int64_t event) except -1:
        """The handler of `event` has returned."""
        raise NotImplementedError

    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1:
        """Asks Kong to call `function` for `event`.

        Returns whether the handler has to wait for Kong's answer: False, where `pipelined`
        allows it, for a function without a result, whose answer is checked off when it comes.

        :raises PackError: when an argument cannot be carried; nothing has been written then.
        :raises PDKError: when the protocol has no such function.
        """
        raise NotImplementedError

    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1:
        """The handler of `event` has failed, in a phase that cannot end the request."""
        raise NotImplementedError

    cdef int answer_result(self, int64_t sequence, object result) except -1:
        """The result of a command."""
        raise NotImplementedError

    cdef int answer_error(self, int64_t sequence, str text) except -1:
        """The call failed."""
        raise NotImplementedError

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from the peer.

        :param data: any number of bytes, cut anywhere.
        """
        if data.shape[0]:
            self.receive(<const char*>&data[0], <size_t>data.shape[0])

    def next(self):
        """:returns: the next complete :class:`Call`, or None when more bytes are needed.
        :raises ProtocolError: what came is not this protocol.
        """
        cdef Call call = Call()
        return call if self.next_call(call) else None

    def send_return(self, int64_t sequence, int64_t event):
        """Answers that the handler of `event` has returned."""
        self.answer_return(sequence, event)

    def send_pdk_call(self, int64_t sequence, int64_t event, str function not None,
                      tuple args not None):
        """Answers with a PDK function for Kong to call."""
        self.answer_pdk_call(sequence, event, find_function(function), args, False)

    def send_result(self, int64_t sequence, result):
        """Answers a command with its result."""
        self.answer_result(sequence, result)

    def send_error(self, int64_t sequence, str text not None):
        """Answers with an error."""
        self.answer_error(sequence, text)

    def data_to_send(self):
        """:returns: the bytes for the peer that were not yet taken; they are taken with this."""
        cdef bytes data
        if buffer_size(&self.outbox) == 0:
            return b""
        data = PyBytes_FromStringAndSize(
            self.outbox.data + self.outbox.begin, <Py_ssize_t>buffer_size(&self.outbox)
        )
        buffer_consume(&self.outbox, buffer_size(&self.outbox))
        return data
