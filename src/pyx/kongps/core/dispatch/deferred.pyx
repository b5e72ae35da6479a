"""The result of a command that is not known yet."""

from kongps.core.wire.protocol cimport Protocol, send_answer

cdef enum:
    NO_EVENT = -1       # a connection that waits for a command's result belongs to no event


cdef class DeferredResult:
    """What a command returns whose result comes later.

    Whoever made it calls ``resolve`` or ``fail``, once, on the loop's thread.
    """

    def resolve(self, result):
        """Answers with a result."""
        self.result = result
        self.known = True
        self.answer()

    def fail(self, str text not None):
        """Answers with an error."""
        self.error = text
        self.known = True
        self.answer()

    cdef int answer_to(self, Protocol protocol, int64_t sequence) except -1:
        """Sets who waits for the result."""
        self.protocol = protocol
        self.sequence = sequence
        return self.answer() if self.known else protocol.hold(NO_EVENT)

    cdef int answer(self) except -1:
        if self.protocol is None:
            return 0
        if self.error is not None:
            self.protocol.answer_error(self.sequence, self.error)
        else:
            self.protocol.answer_result(self.sequence, self.result)
        return send_answer(self.protocol)
