"""Handlers that run elsewhere than on the loop's thread; the base of threads and asyncio."""

from kongps.core.dispatch.dispatcher cimport Event, Runner
from kongps.core.wire.function cimport Function
from kongps.core.io.loop_lock cimport LoopLock


cdef enum Said:
    CALLS       # a PDK function
    RETURNED
    RAISED


cdef enum Outcome:
    GIVEN       # `value` is what the function returned
    REFUSED     # `value` is to be raised
    FAILED      # `value` is what Kong says was wrong
    OVER_NOW    # the event is over: the handler ends


cdef class HandlerTask:
    """A handler under way elsewhere: what it says to the loop, and what it hears."""
    cdef Event event
    cdef Said said
    cdef Function function
    cdef tuple args
    cdef bint asked             # Kong was asked, and a step is to bring the answer
    cdef Outcome outcome
    cdef object value           # of the outcome; or what the handler raised
    # Instead of an event: a function, what hears of its end, what it is, the plugin's file.
    cdef tuple work
    cdef double begun           # when it was given that, or the event; monotonic seconds

    cdef object result(self)


cdef class OffLoopRunner(Runner):
    cdef object call_soon       # has the loop call something soon; from any thread
    cdef LoopLock turn
    cdef object hear_all
    cdef object said            # collections.deque of HandlerTask that the loop is to hear
    cdef bint due               # the loop was asked to
    cdef bint forked            # this is a child process, in which no loop listens

    cdef int say(self, HandlerTask handling) except -1
    cdef int hear_guarded(self, HandlerTask handling) except -1
    cdef int hear(self, HandlerTask handling) except -1
    cdef int answer(self, HandlerTask handling) except -1
    cdef int ended(self, HandlerTask handling) except -1
    cdef int work_done(self, HandlerTask handling) except -1
