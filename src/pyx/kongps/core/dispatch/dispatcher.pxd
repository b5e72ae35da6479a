"""Instances, events, phases and handlers: from a call to a plugin's code and back.

Dispatch knows protocols only as something that takes answers, and where a handler runs only as a
``Runner``.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from kongps.core.wire.function cimport Function
from kongps.core.wire.protocol cimport Call, Protocol


cdef class Instance:
    """A plugin's object for one configuration."""
    cdef readonly int64_t id
    cdef readonly object plugin
    cdef readonly object config       # as Kong sent it, decoded; for InstanceStatus
    cdef readonly double started      # seconds since the epoch
    cdef readonly str failure         # why it could not start; None when it did
    cdef readonly object close        # the plugin's own close(), or None
    cdef object pdk                   # what makes the `kong` of an event,
    cdef bint plain_pdk               # which is a class of namespaces and nothing more
    cdef list handlers                # by phase number; None where the plugin has none
    cdef list runners                 # where they run, by phase number; None: the dispatcher's
    cdef list starting                # events that wait for its start(); None: it has started
    cdef bint pipelined               # PDK calls without a result need not be waited for
    cdef double last_used             # when its last event started, monotonic seconds
    cdef uint64_t last_event          # and which event of the server that was, counted from 1
    cdef object on_error              # "open" or "closed"; None: as the dispatcher has it


cdef class CachedAnswer:
    """An answer of Kong that holds for the rest of its event; a chain of them."""
    cdef Function function
    cdef tuple args
    cdef object value
    cdef CachedAnswer next


cdef enum EventState:
    RUNNING    # its handler has the loop's thread, or the loop acts for it
    ASKING     # a PDK call is being written
    WAITING    # Kong has been asked for something
    AWAY       # its handler runs, or waits to, elsewhere than on the loop's thread
    OVER


cdef class Event:
    """One phase of one request, handled by one plugin instance."""
    cdef readonly int64_t id
    cdef readonly Instance instance
    cdef readonly int phase
    cdef EventState state
    cdef Dispatcher dispatcher
    cdef Runner runner
    cdef object task                  # the runner's own; what the handler runs in
    cdef double started               # when Kong began it, monotonic seconds
    cdef double last_step             # when Kong was last heard of, monotonic seconds
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
    cdef str untold                   # what Kong is still to log of that
    cdef PyObject* locals             # the threading.local values of its handler, while it waits
    # What Kong answered to functions that are asked once, and the setters that may change it.
    cdef CachedAnswer told
    cdef uint64_t told_changed_by

    cdef int ask(self, Function function, tuple args) except -1
    cdef CachedAnswer find_told(self, Function function, tuple args)
    cdef int remember(self, Function function, tuple args, object value) except -1
    cdef int drop_answers(self, Function setter) except -1
    cdef int returned(self) except -1
    cdef int raised(self, object error) except -1
    cdef int fail(self, str reason) except -1
    cdef bint tell(self) except -1
    cdef int drop_locals(self) except -1
    cdef int hold(self) except -1
    cdef int take_back(self) noexcept
    cdef int overdue(self, object where) except -1
    cdef bint too_late(self) except -1
    cdef object make_pdk(self)
    cdef object describe(self)
    cdef object find_request_id(self)


cdef class Runner:
    """Where handlers run. One for all events of a kind of handler."""
    cdef int start(self, Event event) except -1
    cdef int resume(self, Event event) except -1
    cdef object call(self, Event event, Function function, tuple args)
    cdef int abandon(self, Event event) except -1
    cdef object give_up(self, Event event)


cdef class DeferredResult:
    """The answer to a command that is not known yet."""
    cdef Protocol protocol
    cdef int64_t sequence
    cdef object result
    cdef str error
    cdef bint known

    cdef int give(self, Protocol protocol, int64_t sequence) except -1
    cdef int answer(self) except -1


cdef enum:
    # An event's id, where there are workers: the phase, the worker, a number. Kong knows ids as
    # doubles, so they stay below 2**53. Alone, a server gives out numbers and nothing else.
    NUMBER_BITS = 38
    WORKER_BITS = 12
    PHASE_SHIFT = 50


cdef inline int event_phase(int64_t event) noexcept:
    return <int>(event >> PHASE_SHIFT) & 7


cdef inline int event_worker(int64_t event) noexcept:
    return <int>(event >> NUMBER_BITS) & ((1 << WORKER_BITS) - 1)


cdef int refuse_unrun(object returned) except -1

cdef inline int must_have_run(object returned) except -1:
    """Looks at what a handler has returned, which Kong has no use for.

    :raises TypeError: when it is the handler's own code, still to be run.
    """
    return 0 if returned is None else refuse_unrun(returned)


cdef int fail_dead_event(Protocol protocol, int64_t sequence, int64_t event, int phase,
                         bint let_through) except -1


cdef struct EventTable:
    # Open table without collisions: the event with id n stands at n & (capacity - 1), and an id
    # whose place is taken is never given out.
    PyObject** places
    uint64_t capacity
    uint64_t live
    int64_t last_id


cdef class Dispatcher:
    cdef dict instances
    cdef dict commands
    cdef object find_missing          # gives an Instance that is not here, or None; or None
    cdef readonly uint64_t max_events
    cdef readonly size_t max_message
    cdef double heard                 # since when what is read now may have waited to be read
    cdef set missed                   # plugins' phases without a handler that Kong has run
    cdef EventTable events
    cdef int64_t worker_part          # of event ids; -1 where there are no workers
    cdef Runner runner
    cdef readonly double event_timeout
    cdef readonly double handler_timeout
    cdef readonly bint pipelining
    cdef readonly str on_error
    cdef public bint lets_lost_pass   # whether requests go on whose events are lost
    cdef readonly uint64_t handled     # events started since the server started

    cdef int handle(self, Call call, Protocol protocol) except -1
    cdef int connection_lost(self, Protocol protocol) except -1
    cdef int drop(self, Event event) except -1
    cdef int handle_event(self, Call call, Protocol protocol) except -1
    cdef str miss(self, str plugin, str phase)
    cdef object missing(self, int64_t id)
    cdef int fail_lost_event(self, Call call, Protocol protocol) except -1
    cdef int handle_step(self, Call call, Protocol protocol) except -1
    cdef int run(self, Event event, bint first) except -1
    cdef int handle_command(self, Call call, Protocol protocol) except -1
    cdef Event new_event(self, Instance instance, int phase)
    cdef Event find_event(self, int64_t id)
    cdef void forget_event(self, Event event) noexcept
    cdef int grow_events(self) except -1


cdef class Namespace:
    cdef Event event
