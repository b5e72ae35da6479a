"""Handlers in greenlets on the loop's thread: the fast path.

A PDK call asks Kong and switches to the loop's greenlet; the step that brings the answer
switches back. Greenlets are kept and used again: starting one costs more than a switch.
"""

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident

from kongps.core.dispatch.answers cimport CachedAnswer
from kongps.core.dispatch.event cimport (
    OFF_LOOP, OVER, RUNNING, WAITING, Event, Runner, must_have_run,
)
from kongps.core.dispatch.namespace cimport make_kong
from kongps.core.runners.greenlet cimport (
    PyGreenlet_GetCurrent, PyGreenlet_Import, PyGreenlet_New, PyGreenlet_Switch,
    PyGreenlet_Throw, greenlet,
)
from kongps.core.runners.off_loop cimport read_body
from kongps.core.runners.thread_locals cimport swap_thread_locals
from kongps.core.runners.watchdog cimport Visits
from kongps.core.wire.function cimport Function

from greenlet import GreenletExit

from kongps.core.wire.body_file import BodyFile
from kongps.errors import HandlerExit, PDKError

PyGreenlet_Import()

cdef enum:
    # Greenlets kept for the next event. Each holds what is left of its C stack, about 2 KB;
    # a burst of more events than this makes and drops greenlets.
    MOST_IDLE = 256

cdef type BODY_FILE = BodyFile


cdef class InlineRunner(Runner)


cdef class HandlerGreenlet:
    """A greenlet that runs one handler after another."""

    cdef greenlet greenlet
    cdef InlineRunner runner
    cdef Event event

    def __call__(self):
        cdef Event event
        cdef object context
        while True:
            while self.event is None:
                self.runner.give_back(self)  # plugin code has woken it
            event = self.event
            context = PyContext_New()  # context variables are the event's own
            try:
                PyContext_Enter(context)
                try:
                    must_have_run(event.instance.handlers[event.phase](make_kong(event)))
                finally:
                    PyContext_Exit(context)
                event.returned()
            except BaseException as error:
                if event.state == OFF_LOOP:
                    event.return_to_loop()  # thrown into it while a body is read
                elif event.state == WAITING and isinstance(error, GreenletExit):
                    event.end()
                    return  # the greenlet is thrown away; it must end
                event.raised(error)
            event.task = None
            event = self.event = None
            context = None
            if len(self.runner.idle) >= MOST_IDLE:
                return
            self.runner.idle.append(self)
            self.runner.give_back(self)


cdef class InlineRunner(Runner):
    """Runs handlers in greenlets on the thread that dispatches.

    :param submit: runs something in a thread of a pool, as ``ThreadRunner.submit`` does: a request's
        body that Kong has left in a file is read there. None: on this thread.
    """

    cdef greenlet loop            # the greenlet that dispatches
    cdef list idle                # HandlerGreenlets without an event
    cdef readonly Visits visits   # what a watchdog watches
    cdef object submit            # runs something in a thread; None: there are none

    def __init__(self, submit=None):
        self.idle = []
        self.visits = Visits()
        self.submit = submit

    def visit(self, what, function):
        """Calls plugin code that is no handler, such as a constructor, where handlers run.

        :param what: what it is, for the watchdog.
        :param function: called without arguments.
        :returns: what it returns.
        """
        self.visits.thread = PyThread_get_thread_ident()
        self.visits.hook = what
        self.visits.enter()
        try:
            return function()
        finally:
            self.visits.leave(None)
            self.visits.hook = None

    cdef int start(self, Event event) except -1:
        cdef HandlerGreenlet one
        if self.visits.thread != PyThread_get_thread_ident():
            self.idle = []  # a greenlet belongs to its thread
        if self.idle:
            one = <HandlerGreenlet?>self.idle.pop()
        else:
            one = HandlerGreenlet()
            one.runner = self
            one.greenlet = PyGreenlet_New(one, NULL)
        one.event = event
        event.task = one
        return self.switch_to(event, False)

    cdef int resume(self, Event event) except -1:
        if type(event.value) is BODY_FILE and self.submit is not None:
            return read_body(event, self.submit)
        return self.switch_to(event, False)

    cdef int switch_to(self, Event event, bint to_end) except -1:
        """Switches to an event's greenlet; to end its handler, with `to_end`."""
        cdef Event outer = self.visits.event
        cdef HandlerGreenlet one = <HandlerGreenlet?>event.task
        cdef PyObject* locals = swap_thread_locals(event.thread_locals)
        event.thread_locals = NULL
        self.loop = PyGreenlet_GetCurrent()
        self.visits.thread = PyThread_get_thread_ident()
        self.visits.event = event
        self.visits.enter()
        try:
            if to_end:
                PyGreenlet_Throw(one.greenlet, HandlerExit, "abandoned by Kong", NULL)
            else:
                PyGreenlet_Switch(one.greenlet, NULL, NULL)
        finally:
            self.visits.event = outer
            event.thread_locals = swap_thread_locals(locals)
            self.visits.leave(event)
            if (to_end or event.task is None) and event.thread_locals != NULL:
                event.drop_thread_locals()
        return 0

    cdef int give_back(self, HandlerGreenlet one) except -1:
        """Switches from a greenlet that has nothing to do to whoever runs: the loop, usually.

        Plugin code that knows greenlets may have woken this one in the middle of another event's
        handler; that one goes on then.
        """
        cdef Event current = self.visits.event
        if current is not None and current.state == RUNNING and current.task is not None and (
            current.task is not one
        ):
            PyGreenlet_Switch((<HandlerGreenlet?>current.task).greenlet, NULL, NULL)
        else:
            PyGreenlet_Switch(self.loop, NULL, NULL)
        return 0

    cdef object call(self, Event event, Function function, tuple args):
        cdef object value
        cdef HandlerGreenlet one
        cdef CachedAnswer cached
        if event is not self.visits.event or PyThread_get_thread_ident() != self.visits.thread:
            raise PDKError(
                function.name,
                "called from outside the handler of its event: the event is over, or this is "
                "another thread or another event's handler",
            )
        one = <HandlerGreenlet?>event.task
        if PyGreenlet_GetCurrent() is not one.greenlet:
            raise PDKError(
                function.name, "called from a greenlet that the handler has created; call it from "
                "the handler itself",
            )
        if event.state == RUNNING:
            cached = event.find_cached(function, args)
            if cached is not None:
                return cached.value
        event.ask(function, args)
        if event.state == OVER:
            raise HandlerExit(function.name)
        if event.state == RUNNING:
            return None  # without a result, and not waited for
        PyGreenlet_Switch(self.loop, NULL, NULL)
        while event.is_pending():
            self.give_back(one)  # plugin code has woken it
        value = event.value
        event.value = None
        if event.failed:
            raise PDKError(function.name, str(value))
        if type(value) is BODY_FILE:
            return value.read(function.name)  # there are no threads
        event.cache(function, args, value)
        return value

    cdef int abandon(self, Event event) except -1:
        if event.task is None:
            return 0  # it waits for its instance to start
        return self.switch_to(event, True)

    cdef object give_up(self, Event event):
        return None if event.task is None else "reading the request's body from Kong's file"
