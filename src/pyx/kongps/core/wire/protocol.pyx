"""The protocol interface; see ``protocol.pxd``.

The ``def`` methods are the same interface for Python: tests, fuzzers and recordings drive a
protocol with them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize

from kongps.core.io.buffer cimport buffer_append, buffer_consume, buffer_free
from kongps.core.wire.function cimport find_function
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
    """What sends the bytes of a protocol when no call on its connection brought them about."""

    cdef int send(self) except -1:
        """Sends what is in the outbox, and closes the connection if the protocol is closing."""
        raise NotImplementedError

    cdef int push(self) except -1:
        """The same on a thread that has borrowed the loop's lock: the rest is left to the loop."""
        raise NotImplementedError


cdef class Protocol:
    """One connection's protocol; the base of each.

    :param max_message: bytes of the longest message taken.
    """

    def __init__(self, size_t max_message):
        self.max_message = max_message

    def __dealloc__(self):
        buffer_free(&self.inbox)
        buffer_free(&self.outbox)

    cdef bint next_call(self, Call call) except -1:
        """Parses the next complete call; False when more bytes are needed."""
        raise NotImplementedError

    cdef int read_step(self, Call call) except -1:
        """Decodes the value of a step; one that the protocol finds bad becomes a STEP_ERROR."""
        raise NotImplementedError

    cdef bint is_idle(self) except -1:
        """Whether neither side waits for the other, and nothing has come or gone in part."""
        return not (
            self.unanswered_calls or self.closing or unread(self) or buffer_size(&self.outbox)
        )

    cdef int unanswered_functions(self) except -1:
        """How many PDK calls Kong is still to answer on this connection."""
        return 0

    cdef bint closed_by_kong(self) noexcept:
        """Whether Kong was asked for something after which it closes the connection."""
        return False

    cdef int close(self) except -1:
        """The connection is to be closed once the outbox has been sent."""
        self.closing = True
        return 0

    cdef int give_up(self, int64_t sequence) except -1:
        """The call will not be answered: Kong may use the connection for another by now."""
        return self.close()

    cdef int hold(self, int64_t event) except -1:
        """The present call, of `event`, is answered later: the connection belongs to it."""
        self.event = event
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

    cdef int answer_no_instance(self, int64_t sequence, str text) except -1:
        """There is no instance of the id that the call has: Kong is to start it again."""
        return self.answer_error(sequence, text)

    def receive_data(self, const unsigned char[::1] data not None):
        """Takes bytes from the peer.

        :param data: any number of bytes, cut anywhere.
        """
        if data.shape[0]:
            buffer_append(&self.inbox, &data[0], <size_t>data.shape[0])

    def next(self):
        """:returns: the next complete :class:`Call`, or None when more bytes are needed.
        :raises ProtocolError: what came is not this protocol.
        """
        cdef Call call = Call()
        if not take_call(self, call):
            return None
        if call.kind == STEP or call.kind == STEP_ERROR:
            self.read_step(call)
        return call

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
