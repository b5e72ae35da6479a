"""One phase of one request, and where its handler runs.

The states of an event, and the moves between them:

    RUNNING    its handler has the loop's thread, or the loop acts for it
      -> ASKING     a PDK call is being written
      -> WAITING    Kong has been asked, and its answer comes as a step
      -> OFF_LOOP   the handler goes on in a thread or in a task of asyncio
      -> OVER
    ASKING     a PDK call is being written; plugin code may run (an argument's own methods)
      -> RUNNING
    WAITING    for a step from Kong
      -> RUNNING    it has come
      -> OVER       it will not come: Kong, its connection or the server has ended the event
    OFF_LOOP   the handler runs, or waits to, elsewhere than on the loop's thread
      -> RUNNING    the loop acts for it
      -> OVER       as for WAITING
    OVER       nothing reaches Kong any more
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from kongps.core.dispatch.answers cimport CachedAnswer
from kongps.core.dispatch.event_table cimport EventTable
from kongps.core.dispatch.instance cimport Instance
from kongps.core.wire.function cimport Function
from kongps.core.wire.protocol cimport Protocol

cdef extern from *:
    """
    enum kongps_event_state {
        KONGPS_RUNNING, KONGPS_ASKING, KONGPS_WAITING, KONGPS_OFF_LOOP, KONGPS_OVER
    };

    /* By state, the set of states that an event may move to: the table above. */
    static const int kongps_event_moves[] = {
        [KONGPS_RUNNING] = 1 << KONGPS_ASKING | 1 << KONGPS_WAITING | 1 << KONGPS_OFF_LOOP
            | 1 << KONGPS_OVER,
        [KONGPS_ASKING] = 1 << KONGPS_RUNNING,
        [KONGPS_WAITING] = 1 << KONGPS_RUNNING | 1 << KONGPS_OVER,
        [KONGPS_OFF_LOOP] = 1 << KONGPS_RUNNING | 1 << KONGPS_OVER,
        [KONGPS_OVER] = 0,
    };
    """
    enum EventState "kongps_event_state":
        RUNNING "KONGPS_RUNNING"
        ASKING "KONGPS_ASKING"
        WAITING "KONGPS_WAITING"
        OFF_LOOP "KONGPS_OFF_LOOP"
        OVER "KONGPS_OVER"
    const int* MOVES "kongps_event_moves"


cdef class EventRules:
    """What holds for all events of a server."""
    cdef readonly double event_timeout    # seconds without a step after which Kong has given up
    cdef readonly double handler_timeout  # seconds that a handler may take
    cdef readonly bint pipelining
    cdef readonly str on_error            # "open" or "closed", where a plugin does not say


cdef class Event:
    cdef readonly int64_t id
    cdef readonly Instance instance
    cdef readonly int phase
    cdef readonly double started      # when Kong began it, monotonic seconds
    cdef EventState state
    cdef EventRules rules
    cdef EventTable table
    cdef Runner runner
    cdef object task                  # the runner's own: what the handler runs in
    cdef double last_step             # when Kong last sent something for it, monotonic seconds
    # The call from Kong that is still to be answered: where it came from, and its number.
    cdef Protocol protocol
    cdef int64_t sequence
    # What Kong's last step brought.
    cdef object value
    cdef bint failed
    # The handler has ended, but Kong was asked for something and answers that first. `failure`:
    # why the handler failed, None when it returned.
    cdef bint ended
    cdef str failure
    cdef str unlogged                 # what Kong is still to log of that
    cdef PyObject* thread_locals      # the threading.local values of its handler, while it waits
    cdef CachedAnswer cached          # what Kong has answered to functions that are asked once,
    cdef uint64_t cached_changed_by   # and the setters that change one of these answers, a bit each

    cdef int end(self) except -1
    cdef bint is_pending(self) noexcept
    cdef int run(self, bint first) except -1
    cdef int ask(self, Function function, tuple args) except -1
    cdef CachedAnswer find_cached(self, Function function, tuple args)
    cdef int cache(self, Function function, tuple args, object value) except -1
    cdef int returned(self) except -1
    cdef int raised(self, object error) except -1
    cdef int fail(self, str reason) except -1
    cdef bint log_failure(self) except -1
    cdef int leave_loop(self) except -1
    cdef int return_to_loop(self) except -1
    cdef int overdue(self, object where) except -1
    cdef bint too_late(self) except -1
    cdef int drop_thread_locals(self) except -1
    cdef object describe(self)


cdef int refuse_move(Event event, EventState to) except -1


cdef inline int move(Event event, EventState to) except -1:
    """Changes the state of an event.

    :raises RuntimeError: for a move that is not in the table above.
    """
    if not MOVES[<int>event.state] & (1 << to):
        return refuse_move(event, to)
    event.state = to
    return 0


cdef class Runner:
    """Where handlers run. One for all events of a kind of handler."""
    cdef int start(self, Event event) except -1
    cdef int resume(self, Event event) except -1
    cdef object call(self, Event event, Function function, tuple args)
    cdef int abandon(self, Event event) except -1
    cdef object give_up(self, Event event)


cdef int refuse_unrun(object returned) except -1

cdef inline int must_have_run(object returned) except -1:
    """Checks what a handler has returned, for which Kong has no use.

    :raises TypeError: when it is the handler's own code, still to be run.
    """
    return 0 if returned is None else refuse_unrun(returned)


cdef int fail_lost_event(Protocol protocol, int64_t sequence, int64_t event, int phase,
                         bint let_through) except -1
