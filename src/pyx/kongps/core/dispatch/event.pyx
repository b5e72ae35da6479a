"""One phase of one request, and where its handler runs; see ``event.pxd`` for its states.

An event begins with a ``HandleEvent`` and ends when its handler has returned or raised, has ended
the request, or was abandoned by Kong. Over MsgPack:1 its steps may come on any connection.
"""

cimport cython

from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from logging import ERROR, WARNING

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t

from kongps.core.dispatch.answers cimport (
    CachedAnswer, add_answer, drop_changed, find_answer, find_request_id,
)
from kongps.core.io.clock cimport coarse_monotonic
from kongps.core.wire.function cimport Function
from kongps.core.wire.phases cimport NO_PHASE, phase_name
from kongps.core.wire.protocol cimport Protocol

from kongps.core.report import report, describe_failure
from kongps.core.wire.phases import PHASE_NAMES
from kongps.errors import HandlerExit, PackError, PDKError

STATE_NAMES = ("RUNNING", "ASKING", "WAITING", "OFF_LOOP", "OVER")

# How a Lua plugin's error ends a request (kong/init.lua): the client sees the same from this server.
UNEXPECTED = (500, {"message": "An unexpected error occurred"})
cdef Function EXIT = Function(
    "kong.response.exit", phases=("rewrite", "access", "response", "preread"), since="2.0",
    terminal=True,
)
cdef Function LOG_ERR = Function("kong.log.err", phases=PHASE_NAMES, since="2.0")


cdef inline bint can_end_request(int phase) noexcept:
    return EXIT.phase_bits & (1 << phase)


cdef class EventRules:
    """What holds for all events of a server; see :class:`Dispatcher` for the parameters."""

    def __init__(self, double event_timeout, double handler_timeout, bint pipelining,
                 str on_error not None):
        self.event_timeout = event_timeout
        self.handler_timeout = handler_timeout
        self.pipelining = pipelining
        self.on_error = on_error


@cython.final
@cython.freelist(64)
cdef class Event:
    """One phase of one request, handled by one plugin instance."""

    def __dealloc__(self):
        Py_XDECREF(self.thread_locals)

    cdef int end(self) except -1:
        """The event is over; it leaves the table."""
        if self.state == OVER:
            return 0
        move(self, OVER)
        return self.table.remove(self.id)

    cdef bint is_pending(self) noexcept:
        """Whether the loop's thread has nothing to do with it now, so that it can be ended."""
        return self.state == WAITING or self.state == OFF_LOOP

    cdef int run(self, bint first) except -1:
        """Starts or resumes the handler; what its runner cannot do ends the event."""
        try:
            if first:
                self.runner.start(self)
            else:
                self.runner.resume(self)
        except BaseException as error:
            report(ERROR, "%s could not be run", self.describe(), error=error)
        if self.state == RUNNING:
            self.fail(f"{self.describe()} has ended without a reply for its event")
        return 0

    cdef int ask(self, Function function, tuple args) except -1:
        """Asks Kong to call `function`. The event is WAITING when the answer is to come as a step.

        :raises PDKError: when the event is over, or the function cannot be called in this phase.
        :raises TypeError: for an argument that Kong would not take.
        """
        cdef bint awaited
        if self.state == ASKING:
            raise PDKError(function.name, "called while the arguments of another call are packed")
        if self.state != RUNNING:
            raise PDKError(function.name, "the event is over; Kong no longer listens")
        if function.unavailable:
            raise PDKError(function.name, function.unavailable)
        if not function.phase_bits & (1 << self.phase):
            raise PDKError(
                function.name,
                f"cannot be called in the {phase_name(self.phase)} phase, "
                f"only in: {', '.join(function.phases) or 'none'}",
            )
        while args and args[-1] is None:
            args = args[:-1]
        function.check(args)
        if self.too_late():
            return 0
        if function.setter & self.cached_changed_by:
            self.cached = drop_changed(self.cached, function)
        move(self, ASKING)
        try:
            awaited = self.protocol.answer_pdk_call(
                self.sequence, self.id, function, args,
                self.rules.pipelining and self.instance.pipelined,
            )
        except PackError as error:
            raise TypeError(str(error)) from None
        finally:
            move(self, RUNNING)
        if function.terminal:
            return self.end()
        return move(self, WAITING) if awaited else 0

    cdef CachedAnswer find_cached(self, Function function, tuple args):
        """What Kong has answered to this call already; None if it must be asked."""
        if not function.asked_once or self.cached is None:
            return None
        return find_answer(self.cached, function, args)

    cdef int cache(self, Function function, tuple args, object value) except -1:
        """Keeps an answer of Kong, if it holds for the rest of the event."""
        if function.asked_once:
            self.cached = add_answer(self.cached, function, args, value)
            self.cached_changed_by |= function.changed_by
        return 0

    cdef bint too_late(self) except -1:
        """Whether Kong has given the event up by now; then it ends, and its connection too.

        Kong may use the connection for another call by then, and take an answer for that one's.
        """
        if coarse_monotonic() - self.last_step <= self.rules.event_timeout:
            return False
        report(
            WARNING, "%s: no reply for %d s, and Kong has abandoned it", self.describe(),
            <int>(coarse_monotonic() - self.last_step),
        )
        self.protocol.give_up(self.sequence)
        self.end()
        return True

    # --- the end of a handler ----------------------------------------------------------------

    cdef int returned(self) except -1:
        """The handler has returned."""
        if self.state == WAITING:
            self.ended = True
        elif self.state == RUNNING and not self.too_late():
            self.end()
            self.protocol.answer_return(self.sequence, self.id)
        return 0

    cdef int raised(self, object error) except -1:
        """The handler has raised `error`: the request ends with a 500 where it still can."""
        cdef str reason
        if self.ended:
            return 0  # it has failed before
        if self.state == OVER:
            if not isinstance(error, HandlerExit):
                report(
                    ERROR, "%s raised %s after its event was over", self.describe(),
                    type(error).__name__, error=error, config=self.instance.config,
                )
            return 0
        reason = f"{self.describe()} raised {type(error).__name__}"
        report(ERROR, "%s", reason, error=error, config=self.instance.config)
        self.unlogged = describe_failure(reason, error, self.instance.config)
        if self.state == WAITING:
            self.ended = True
            self.failure = reason
            return 0
        return self.fail(reason)

    cdef int fail(self, str reason) except -1:
        """Answers for a handler that has failed or cannot be run.

        `reason` is what Kong logs in the phases that cannot end the request.
        """
        cdef str text = self.unlogged
        if self.state == OVER or self.too_late():
            return 0
        if text is not None and self.log_failure():
            self.ended = True
            self.failure = reason
            return move(self, WAITING)
        self.end()
        if not can_end_request(self.phase):
            self.protocol.answer_failure(self.sequence, self.id, text or reason)
        elif (self.instance.on_error or self.rules.on_error) == "open":
            self.protocol.answer_return(self.sequence, self.id)
        else:
            self.protocol.answer_pdk_call(self.sequence, self.id, EXIT, UNEXPECTED, False)
        return 0

    cdef bint log_failure(self) except -1:
        """Asks Kong to log why the handler failed. Returns whether the answer comes as a step."""
        cdef str text = self.unlogged
        self.unlogged = None
        if self.protocol.logs_failures and not can_end_request(self.phase):
            return False
        try:
            return self.protocol.answer_pdk_call(
                self.sequence, self.id, LOG_ERR, (text,),
                self.rules.pipelining and self.instance.pipelined,
            )
        except Exception as error:  # the request is answered whatever becomes of the log line
            report(
                WARNING, "%s: the reason cannot be sent to Kong's log", self.describe(), error=error
            )
            return False

    cdef int overdue(self, object where) except -1:
        """The handler has taken longer than it may: the event fails, whatever the handler does.

        `where` says where it is now; None if that is not known.
        """
        cdef str reason = f"{self.describe()} has not ended in {self.rules.handler_timeout:g} s"
        report(ERROR, "%s%s; its event fails", reason, f", and is at {where}" if where else "")
        if self.state == OFF_LOOP:
            self.return_to_loop()
        self.unlogged = f"{reason}, and is at {where}" if where else reason
        return self.fail(reason)

    # --- handlers that run elsewhere ---------------------------------------------------------

    cdef int leave_loop(self) except -1:
        """The handler goes on elsewhere; Kong's call is answered later."""
        move(self, OFF_LOOP)
        return self.protocol.hold(self.id)

    cdef int return_to_loop(self) except -1:
        """The loop acts for an event that was OFF_LOOP."""
        return move(self, RUNNING)

    cdef int drop_thread_locals(self) except -1:
        """The handler has ended; what it has put into ``threading.local`` objects goes too."""
        cdef PyObject* values = self.thread_locals
        self.thread_locals = NULL
        Py_XDECREF(values)
        return 0

    cdef object describe(self):
        cdef object request = find_request_id(self.cached)
        cdef str text = (
            f"plugin {self.instance.plugin.name}, {phase_name(self.phase)} handler, "
            f"instance {self.instance.id}, event {self.id}"
        )
        return f"{text}, request {request}" if request else text


cdef int refuse_move(Event event, EventState to) except -1:
    raise RuntimeError(
        f"event {event.id} cannot move from {STATE_NAMES[<int>event.state]} to "
        f"{STATE_NAMES[<int>to]}"
    )


cdef class Runner:
    """Where handlers run: the one interface between dispatch and greenlets, threads, asyncio.

    Dispatch calls `start` and `resume` with an event that is RUNNING. When they return, the handler
    waits for Kong or is done, and the event knows; or it goes on elsewhere, and is OFF_LOOP.
    """

    cdef int start(self, Event event) except -1:
        """Runs the event's handler until it waits or ends."""
        raise NotImplementedError

    cdef int resume(self, Event event) except -1:
        """Runs it on with what Kong's step brought."""
        raise NotImplementedError

    cdef object call(self, Event event, Function function, tuple args):
        """From the handler: asks Kong, waits, returns the answer."""
        raise NotImplementedError

    cdef int abandon(self, Event event) except -1:
        """Ends a handler whose event is over: no step will come, or it was OFF_LOOP."""
        raise NotImplementedError

    cdef object give_up(self, Event event):
        """Lets go of a handler that is OFF_LOOP for too long. Returns where it is, if known."""
        return None


cdef int refuse_unrun(object returned) except -1:
    cdef str kind
    if not isinstance(returned, (Awaitable, Generator, AsyncGenerator)):
        return 0
    kind = type(returned).__name__
    if isinstance(returned, (Coroutine, Generator)):
        returned.close()
    raise TypeError(
        f"the handler has not run: what was called returned a {kind}; make the handler itself "
        "`async def`, or have it run what it returns"
    )


cdef int fail_lost_event(Protocol protocol, int64_t sequence, int64_t event, int phase,
                         bint let_through) except -1:
    """Answers a call of an event that is lost, as for a handler that has failed."""
    if phase != NO_PHASE and not can_end_request(phase):
        return protocol.answer_failure(sequence, event, "the event does not exist any more")
    if let_through:
        return protocol.answer_return(sequence, event)
    protocol.answer_pdk_call(sequence, event, EXIT, UNEXPECTED, False)
    return 0
