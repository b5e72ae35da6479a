"""Handlers that run elsewhere than on the loop's thread; see ``off_loop.pxd``.

All that belongs to an event is changed by whoever has the loop's lock: its thread, or one that
takes the lock while the loop sleeps. A handler elsewhere *posts* what it wants, a PDK call or its
end, and sleeps; the loop *receives* it, does for it what an inline handler would have done itself,
and *answers* when Kong has. While the loop sleeps, the handler's own thread receives what it posts.
"""

from collections import deque
from functools import partial
from logging import ERROR

from posix.unistd cimport _exit

from kongps.core.dispatch.event cimport OFF_LOOP, OVER, RUNNING, WAITING, Event, Runner
from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.wire.function cimport Function
from kongps.core.wire.protocol cimport push_answer, send_answer

from kongps.core.report import report
from kongps.errors import HandlerExit, PDKError


cdef class HandlerTask:
    """A handler that runs elsewhere: what it posts to the loop, and the answer it gets."""

    cdef object result(self):
        """What the handler's PDK call comes to."""
        cdef object value = self.value
        cdef Function function = self.function
        self.value = self.function = self.args = None
        if self.outcome == ANSWERED:
            return value
        if self.outcome == ENDS:
            raise HandlerExit(function.name)
        if self.outcome == FAILED:
            raise PDKError(function.name, str(value))
        raise value


cdef class OffLoopRunner(Runner):
    """The base of those that run handlers elsewhere than on the loop's thread.

    :param call_soon: makes the loop's thread call something soon, from any thread; such as
        ``Loop.call_soon_threadsafe``.
    :param lock: the loop's.
    """

    def __init__(self, call_soon, LoopLock lock not None):
        self.call_soon = call_soon
        self.lock = lock
        self.receive_all = self._receive_all
        self.posted = deque()

    cdef int post(self, HandlerTask task) except -1:
        """Makes the loop receive what a handler wants. From any thread."""
        if self.forked:
            _exit(1)  # a handler has forked, and the child came here
        if task.message != RAISED and task.event is not None and self.lock.try_acquire():
            try:
                self.receive_guarded(task)
            finally:
                self.lock.release()
            return 0
        self.posted.append(task)
        if not self.due:
            self.due = True
            self.call_soon(self.receive_all)
        return 0

    def _receive_all(self):
        # What is posted while this runs is received too, or the loop is asked again.
        self.due = False
        while self.posted:
            self.receive_guarded(<HandlerTask?>self.posted.popleft())

    def after_fork(self):
        """In a child process that a handler has forked: what it posts ends the process."""
        self.forked = True

    cdef int receive_guarded(self, HandlerTask task) except -1:
        # What a plugin put into signals or logging may raise; other handlers wait for their turn.
        try:
            self.receive(task)
        except BaseException as error:
            report(ERROR, "a PDK call or the end of a handler was lost", error=error)
        return 0

    cdef int receive(self, HandlerTask task) except -1:
        """With the loop's lock: does what a handler elsewhere wants."""
        cdef Event event = task.event
        cdef bint given_up
        if event is None:
            return self.ended(task)  # it was no event's handler
        if task.message == CALL:
            return self.receive_call(task)
        given_up = event.task is not task
        if not given_up:
            event.task = None
            if event.state == OFF_LOOP:
                event.return_to_loop()
        if task.message == RAISED:
            event.raised(task.end)
        elif not given_up:
            event.returned()
        push_answer(event.protocol)
        task.event = task.value = task.end = None
        return self.ended(task)

    cdef int receive_call(self, HandlerTask task) except -1:
        """With the loop's lock: asks Kong what a handler elsewhere wants to ask."""
        cdef Event event = task.event
        if event.task is not task or event.state != OFF_LOOP:  # given up, or over
            task.outcome = ENDS
            return self.answer(task)
        event.return_to_loop()
        try:
            event.ask(task.function, task.args)
        except BaseException as error:
            task.outcome = REFUSED
            task.value = error
        else:
            task.outcome = ANSWERED
        if event.state == OVER:
            task.outcome = ENDS
        task.asked = event.state == WAITING
        if not task.asked:
            if event.state == RUNNING:
                event.leave_loop()
            self.answer(task)
        return push_answer(event.protocol)

    cdef int resume(self, Event event) except -1:
        cdef HandlerTask task = <HandlerTask?>event.task
        task.asked = False
        task.outcome = FAILED if event.failed else ANSWERED
        task.value = event.value
        event.value = None
        if not event.failed:
            event.cache(task.function, task.args, task.value)
        event.leave_loop()
        return self.answer(task)

    cdef int abandon(self, Event event) except -1:
        cdef HandlerTask task = <HandlerTask?>event.task
        if task.asked:
            task.asked = False
            task.outcome = ENDS
            self.answer(task)
        return 0  # else its next call ends it

    cdef int answer(self, HandlerTask task) except -1:
        """Wakes the handler: its PDK call has an outcome."""
        raise NotImplementedError

    cdef int ended(self, HandlerTask task) except -1:
        """The handler has ended, and its event knows."""
        return 0

    cdef int work_done(self, HandlerTask task) except -1:
        """What ran was no event's handler: calls what was to be called at its end."""
        _, done, what, _ = task.work
        value, task.end, task.work = task.end, None, None
        try:
            if task.message == RETURNED:
                done(value, None)
            else:
                done(None, value)
        except BaseException as error:
            report(ERROR, "what follows %s has failed", what, error=error)
        return 0


# --- a request's body that Kong has left in a file -----------------------------------------------

cdef int read_body(Event event, object submit) except -1:
    """Reads the body in a thread: it may be large, or the disk slow. The event waits.

    `submit` runs something in a thread of a pool, as ``ThreadRunner.submit`` does.
    """
    cdef object body = event.value
    event.value = None
    event.leave_loop()
    submit(
        partial(body.read, "kong.request.get_raw_body"), partial(body_read, event),
        f"reading the request's body for {event.describe()}", event.instance.plugin.path,
    )
    return 0


def body_read(Event event not None, value, error):
    """Gives the handler the body. On the loop's thread."""
    if event.state != OFF_LOOP:
        return  # given up, or Kong has left
    event.return_to_loop()
    event.failed = error is not None
    event.value = value
    if error is not None:
        event.value = error.reason if isinstance(error, PDKError) else repr(error)
    event.run(False)
    send_answer(event.protocol)
