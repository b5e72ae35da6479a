"""Handlers in greenlets on the loop's thread: the fast path.

A PDK call asks Kong and switches to the loop's greenlet; the step that brings the answer
switches back. Greenlets are kept and used again: starting one costs more than a switch.
"""

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident

from kongps.core.dispatch.dispatcher cimport OVER, RUNNING, WAITING, Event, Runner, CachedAnswer, must_have_run
from kongps.core.wire.function cimport Function
from kongps.core.runners.greenlet cimport (
    PyGreenlet_GetCurrent, PyGreenlet_Import, PyGreenlet_New, PyGreenlet_Switch,
    PyGreenlet_Throw, greenlet,
)
from kongps.core.runners.thread_locals cimport swap_thread_locals
from kongps.core.runners.watchdog cimport Visits

from greenlet import GreenletExit

from kongps.core.dispatch.dispatcher import HandlerExit
from kongps.errors import PDKError

PyGreenlet_Import()

cdef enum:
    # Workers kept for the next event. Each holds a greenlet and what is left of its C stack,
    # about 2 KB; a burst of more events than this makes and drops greenlets.
    MOST_IDLE_WORKERS = 256


cdef class Worker:
    """A greenlet that runs one handler after another."""

    def __call__(self):
        cdef Event event
        cdef object context
        while True:
            while self.event is None:
                self.runner.give_back(self)  # woken by somebody else
            event = self.event
            context = PyContext_New()  # context variables are the event's own
            try:
                PyContext_Enter(context)
                try:
                    must_have_run(event.instance.handlers[event.phase](event.make_pdk()))
                finally:
                    PyContext_Exit(context)
                event.returned()
            except GreenletExit as error:
                if event.state == WAITING:  # the greenlet is thrown away; it must end
                    event.dispatcher.forget_event(event)
                    return
                event.raised(error)
            except BaseException as error:
                event.raised(error)
            event.task = None
            event = self.event = None
            context = None
            if len(self.runner.idle) >= MOST_IDLE_WORKERS:
                return
            self.runner.idle.append(self)
            self.runner.give_back(self)


cdef class InlineRunner(Runner):
    """Runs handlers in greenlets on the thread that dispatches."""

    def __init__(self):
        self.idle = []
        self.visits = Visits()

    def visit(self, what, function):
        """Calls plugin code that is no handler, such as a constructor, where handlers run.

        :param what: what it is; a watchdog hands it on.
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

    def watched(self):
        """:returns: what a :class:`kongps.core.watchdog.Watchdog` watches."""
        return self.visits

    cdef int start(self, Event event) except -1:
        cdef Worker worker
        if self.visits.thread != PyThread_get_thread_ident():
            self.idle = []  # a greenlet belongs to its thread
        if self.idle:
            worker = <Worker?>self.idle.pop()
        else:
            worker = Worker()
            worker.runner = self
            worker.greenlet = PyGreenlet_New(worker, NULL)
        worker.event = event
        event.task = worker
        return self.switch_to(event)

    cdef int resume(self, Event event) except -1:
        return self.switch_to(event)

    cdef int switch_to(self, Event event) except -1:
        cdef Event outer = self.visits.event
        cdef Worker worker = <Worker?>event.task
        cdef PyObject* locals = swap_thread_locals(event.locals)
        event.locals = NULL
        self.loop = PyGreenlet_GetCurrent()
        self.visits.thread = PyThread_get_thread_ident()
        self.visits.event = event
        self.visits.enter()
        try:
            PyGreenlet_Switch(worker.greenlet, NULL, NULL)
        finally:
            self.visits.event = outer
            event.locals = swap_thread_locals(locals)
            self.visits.leave(event)
            if event.task is None and event.locals != NULL:
                event.drop_locals()
        return 0

    cdef int give_back(self, Worker worker) except -1:
        """Switches from a worker that has nothing to do to whoever runs: the loop, usually.

        Code of a plugin that knows greenlets may have woken the worker in the middle of another
        event's handler; that one goes on then.
        """
        cdef Event current = self.visits.event
        if current is not None and current.state == RUNNING and current.task is not None and (
            current.task is not worker
        ):
            PyGreenlet_Switch((<Worker?>current.task).greenlet, NULL, NULL)
        else:
            PyGreenlet_Switch(self.loop, NULL, NULL)
        return 0

    cdef object call(self, Event event, Function function, tuple args):
        cdef object value
        cdef Worker worker
        cdef CachedAnswer told
        if event is not self.visits.event or PyThread_get_thread_ident() != self.visits.thread:
            raise PDKError(
                function.name,
                "called from outside the handler of its event: the event is over, or this is "
                "another thread or another event's handler",
            )
        worker = <Worker?>event.task
        if PyGreenlet_GetCurrent() is not worker.greenlet:
            raise PDKError(
                function.name, "called from a greenlet that the handler has made; call it from "
                "the handler itself",
            )
        if function.asked_once and event.told is not None and event.state == RUNNING:
            told = event.find_told(function, args)
            if told is not None:
                return told.value
        event.ask(function, args)
        if event.state == OVER:
            raise HandlerExit(function.name)
        if event.state == RUNNING:
            return None  # without a result, and not waited for
        PyGreenlet_Switch(self.loop, NULL, NULL)
        while event.state == WAITING:
            self.give_back(worker)  # woken by somebody else
        value = event.value
        event.value = None
        if event.failed:
            raise PDKError(function.name, str(value))
        if function.asked_once:
            event.remember(function, args, value)
        return value

    cdef int abandon(self, Event event) except -1:
        cdef Event outer = self.visits.event
        cdef PyObject* locals
        if event.task is None:
            return 0  # it waits for its instance to start
        locals = swap_thread_locals(event.locals)
        event.locals = NULL
        self.loop = PyGreenlet_GetCurrent()
        self.visits.event = event
        self.visits.enter()
        try:
            PyGreenlet_Throw(
                (<Worker?>event.task).greenlet, HandlerExit, "abandoned by Kong", NULL
            )
        finally:
            self.visits.event = outer
            event.locals = swap_thread_locals(locals)
            self.visits.leave(event)
            event.drop_locals()
        return 0
