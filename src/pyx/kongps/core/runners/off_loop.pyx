"""Handlers that run elsewhere than on the loop's thread; see ``away_runner.pxd``.

All that belongs to an event is changed by who has the loop's turn: its thread, or one that borrows
it while the loop sleeps. A handler elsewhere *says* what it wants, a PDK call or its end, and
sleeps; the loop *hears* it, does for it what an inline handler would have done itself, and
*answers* when Kong has. While the loop sleeps, the handler's own thread hears what it says.
"""

from collections import deque
from logging import ERROR

from posix.unistd cimport _exit

from kongps.core.dispatch.dispatcher cimport AWAY, OVER, RUNNING, WAITING, Event, Runner
from kongps.core.wire.function cimport Function
from kongps.core.io.loop_lock cimport LoopLock

from kongps.core.dispatch.dispatcher import HandlerExit
from kongps.core.report import report
from kongps.errors import PDKError


cdef class HandlerTask:
    """A handler under way elsewhere: what it says to the loop, and what it hears."""

    cdef object result(self):
        """What the handler's PDK call comes to."""
        cdef object value = self.value
        cdef Function function = self.function
        self.value = self.function = self.args = None
        if self.outcome == GIVEN:
            return value
        if self.outcome == OVER_NOW:
            raise HandlerExit(function.name)
        if self.outcome == FAILED:
            raise PDKError(function.name, str(value))
        raise value


cdef class OffLoopRunner(Runner):
    """The base of those that run handlers elsewhere than on the loop's thread.

    :param call_soon: has the loop's thread call something soon, from any thread; such as
        ``Loop.call_soon_threadsafe``.
    :param turn: the loop's turn.
    """

    def __init__(self, call_soon, LoopLock turn not None):
        self.call_soon = call_soon
        self.turn = turn
        self.hear_all = self._hear_all
        self.said = deque()

    cdef int say(self, HandlerTask handling) except -1:
        """From anywhere: has the loop hear what `handling` says."""
        if self.forked:
            _exit(1)  # a handler has forked, and the child came here
        if handling.said != RAISED and handling.event is not None and self.turn.borrow():
            try:
                self.hear_guarded(handling)
            finally:
                self.turn.return_it()
            return 0
        self.said.append(handling)
        if not self.due:
            self.due = True
            self.call_soon(self.hear_all)
        return 0

    def _hear_all(self):
        # What is said while this runs is heard too, or the loop is asked again.
        self.due = False
        while self.said:
            self.hear_guarded(<HandlerTask?>self.said.popleft())

    def after_fork(self):
        """In a child process that a handler has forked: what it has to say ends the process."""
        self.forked = True

    cdef int hear_guarded(self, HandlerTask handling) except -1:
        # What a plugin hung into signals or logging may raise; other handlers wait to be heard.
        try:
            self.hear(handling)
        except BaseException as error:
            report(ERROR, "a handler elsewhere could not be heard", error=error)
        return 0

    cdef int hear(self, HandlerTask handling) except -1:
        """In the loop's turn: does what a handler elsewhere wants."""
        cdef Event event = handling.event
        cdef bint given_up
        if event is None:
            return self.ended(handling)  # it was no event's handler
        given_up = event.task is not handling
        if handling.said == CALLS:
            if given_up or event.state != AWAY:
                handling.outcome = OVER_NOW
                return self.answer(handling)
            event.take_back()
            try:
                event.ask(handling.function, handling.args)
            except BaseException as error:
                handling.outcome = REFUSED
                handling.value = error
            else:
                handling.outcome = GIVEN
            if event.state == OVER:
                handling.outcome = OVER_NOW
            handling.asked = event.state == WAITING
            if not handling.asked:
                if event.state == RUNNING:
                    event.hold()
                self.answer(handling)
            return event.protocol.push()
        if not given_up:
            event.task = None
            if event.state == AWAY:
                event.take_back()
        if handling.said == RAISED:
            event.raised(handling.value)
        elif not given_up:
            event.returned()
        event.protocol.push()
        handling.event = None
        handling.value = None
        return self.ended(handling)

    cdef int resume(self, Event event) except -1:
        cdef HandlerTask handling = <HandlerTask?>event.task
        handling.asked = False
        handling.outcome = FAILED if event.failed else GIVEN
        handling.value = event.value
        event.value = None
        if not event.failed and handling.function.asked_once:
            event.remember(handling.function, handling.args, handling.value)
        event.hold()
        return self.answer(handling)

    cdef int abandon(self, Event event) except -1:
        cdef HandlerTask handling = <HandlerTask?>event.task
        if handling.asked:
            handling.asked = False
            handling.outcome = OVER_NOW
            self.answer(handling)
        return 0  # else it hears of it with its next call

    cdef int answer(self, HandlerTask handling) except -1:
        """Wakes the handler: its PDK call has an outcome."""
        raise NotImplementedError

    cdef int ended(self, HandlerTask handling) except -1:
        """The handler has ended, and its event knows."""
        return 0

    cdef int work_done(self, HandlerTask handling) except -1:
        """What ran was no event's handler: tells who waits for its end."""
        cdef object done = handling.work[1]
        value, handling.value = handling.value, None
        what, handling.work = handling.work[2], None
        try:
            if handling.said == RETURNED:
                done(value, None)
            else:
                done(None, value)
        except BaseException as error:
            report(ERROR, "what follows on %s has failed", what, error=error)
        return 0
