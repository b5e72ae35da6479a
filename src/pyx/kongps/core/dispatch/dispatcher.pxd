"""From a call to a plugin's code, and back: the one entrance to dispatch.

Dispatch knows a protocol only as something that takes answers, and where a handler runs only as a
``Runner``.
"""

from libc.stdint cimport int64_t, uint64_t

from kongps.core.dispatch.event cimport Event, EventRules, Runner
from kongps.core.dispatch.event_table cimport EventTable
from kongps.core.dispatch.instance cimport Instance
from kongps.core.wire.protocol cimport Call, Protocol


cdef class Dispatcher:
    cdef EventTable events
    cdef readonly EventRules rules
    cdef Runner runner
    cdef dict instances               # Instance by id
    cdef dict commands                # what answers a command, by its method
    cdef object find_missing          # returns an Instance that is not here; or None
    cdef set missing_handlers         # the (plugin, phase) that the log knows to have none
    cdef readonly uint64_t max_events
    cdef readonly uint64_t handled    # events started since the server started
    cdef public bint lost_events_pass # whether requests go on whose events are lost

    cdef int handle(self, Call call, Protocol protocol, double now) except -1
    cdef int handle_event(self, Call call, Protocol protocol, double now) except -1
    cdef int handle_step(self, Call call, Protocol protocol, double now) except -1
    cdef int handle_command(self, Call call, Protocol protocol, double now) except -1
    cdef Event new_event(self, Instance instance, int phase, double now)
    cdef Event find_event(self, int64_t id)
    cdef Instance look_for_instance(self, int64_t id)
    cdef int connection_lost(self, Protocol protocol) except -1
    cdef int drop(self, Event event) except -1
