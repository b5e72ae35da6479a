"""Handlers in greenlets on the loop's thread: the fast path.

A PDK call asks Kong and switches to the loop's greenlet; the step that brings the answer
switches back. Greenlets are kept and used again: starting one costs more than a switch.
"""

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.pythread cimport PyThread_get_thread_ident

from kongps.core.dispatch cimport OVER, RUNNING, Event, Runner
from kongps.core.function cimport Function
from kongps.core.greenlet cimport (
    PyGreenlet_GetCurrent, PyGreenlet_Import, PyGreenlet_New, PyGreenlet_Switch,
    PyGreenlet_Throw, greenlet,
)

from greenlet import GreenletExit

from kongps.core.dispatch import HandlerExit
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
            event = self.event
            context = PyContext_New()  # context variables are the event's own
            try:
                PyContext_Enter(context)
                try:
                    event.instance.handlers[event.phase](event.instance.pdk(event))
                finally:
                    PyContext_Exit(context)
                event.returned()
            except GreenletExit:  # the interpreter ends
                return
            except BaseException as error:
                event.raised(error)
            event.task = None
            event = self.event = None
            if len(self.runner.idle) >= MOST_IDLE_WORKERS:
                return
            self.runner.idle.append(self)
            PyGreenlet_Switch(self.runner.loop, NULL, NULL)


cdef class InlineRunner(Runner):
    """Runs handlers in greenlets on the thread that dispatches."""

    def __init__(self):
        self.idle = []

    cdef int start(self, Event event) except -1:
        cdef Worker worker
        if self.idle:
            worker = <Worker>self.idle.pop()
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
        cdef Event outer = self.current
        self.loop = PyGreenlet_GetCurrent()
        self.thread = PyThread_get_thread_ident()
        self.current = event
        try:
            PyGreenlet_Switch((<Worker>event.task).greenlet, NULL, NULL)
        finally:
            self.current = outer
        return 0

    cdef object call(self, Event event, Function function, tuple args):
        cdef object value
        cdef bint kept
        if event is not self.current or PyThread_get_thread_ident() != self.thread:
            raise PDKError(
                function.name,
                "called from outside the handler of its event: the event is over, or this is "
                "another thread or another event's handler",
            )
        # Only of calls without an argument or with a name: others may not even be hashable.
        kept = function.asked_once and (not args or type(args[0]) is str)
        if (
            kept and event.state == RUNNING and event.told is not None
            and (function.name, args) in event.told
        ):
            return event.told[function.name, args]
        event.ask(function, args)
        if event.state == OVER:
            raise HandlerExit(function.name)
        if event.state == RUNNING:
            return None  # without a result, and not waited for
        PyGreenlet_Switch(self.loop, NULL, NULL)
        value = event.value
        event.value = None
        if event.failed:
            raise PDKError(function.name, str(value))
        if kept:
            event.remember(function, args, value)
        return value

    cdef int abandon(self, Event event) except -1:
        cdef Event outer = self.current
        self.loop = PyGreenlet_GetCurrent()
        self.current = event
        try:
            PyGreenlet_Throw((<Worker>event.task).greenlet, HandlerExit, "abandoned by Kong", NULL)
        finally:
            self.current = outer
        return 0
