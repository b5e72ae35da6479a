"""Handlers that run elsewhere than on the loop's thread; the base of threads and asyncio.

The states of a handler that runs elsewhere, and what brings it from one to the next:

    RUNNING      its code runs in a thread or in an asyncio task
      -> POSTED      it has made a PDK call: ``post`` with CALL
      -> POSTED      it has ended: ``post`` with RETURNED or RAISED
    POSTED       the loop is to receive it; unless the loop sleeps, then its own thread does that
      -> ASKED       Kong was asked, and its answer comes as a step
      -> RUNNING     no answer is needed, or the call is refused: ``answer``
      -> ENDED       it was its end
    ASKED        ``asked`` is set; it sleeps until the step comes
      -> RUNNING     the step has come, or the event has ended: ``answer``
    ENDED        ``ended``; its thread is free for the next event
"""

from kongps.core.dispatch.event cimport Event, Runner
from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.wire.function cimport Function


cdef enum Message:
    CALL        # the handler makes a PDK call
    RETURNED
    RAISED


cdef enum Outcome:
    ANSWERED    # `value` is what the function returned
    REFUSED     # `value` is to be raised
    FAILED      # `value` is Kong's error
    ENDS        # the event is over: the handler ends


cdef class HandlerTask:
    """A handler that runs elsewhere: what it posts to the loop, and the answer it gets."""
    cdef Event event
    cdef Message message
    cdef Function function
    cdef tuple args
    cdef bint asked             # Kong was asked, and a step is to bring the answer
    cdef Outcome outcome
    cdef object value           # of the outcome
    cdef object end             # what the handler has returned or raised
    # Instead of an event: a function, what is called with its result, what it is, the plugin's file.
    cdef tuple work
    cdef double begun           # when it was given that, or the event; monotonic seconds

    cdef object result(self)


cdef class OffLoopRunner(Runner):
    cdef object call_soon       # makes the loop call something soon; from any thread
    cdef LoopLock lock
    cdef object receive_all
    cdef object posted          # collections.deque of HandlerTask that the loop is to receive
    cdef bint due               # the loop was asked to
    cdef bint forked            # this is a child process, in which no loop runs

    cdef int post(self, HandlerTask task) except -1
    cdef int receive_guarded(self, HandlerTask task) except -1
    cdef int receive(self, HandlerTask task) except -1
    cdef int receive_call(self, HandlerTask task) except -1
    cdef int answer(self, HandlerTask task) except -1
    cdef int ended(self, HandlerTask task) except -1
    cdef int work_done(self, HandlerTask task) except -1


cdef int read_body(Event event, object submit) except -1
