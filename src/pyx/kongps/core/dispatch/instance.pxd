"""A plugin's object for one configuration."""

from libc.stdint cimport int64_t, uint64_t


cdef class Instance:
    cdef readonly int64_t id
    cdef readonly object plugin
    cdef readonly object config       # as Kong sent it, decoded; for InstanceStatus
    cdef readonly double started      # seconds since the epoch
    cdef readonly str failure         # why it could not start; None when it did
    cdef readonly object close        # the plugin's own close(), or None
    cdef object kong                  # the class of what handlers get,
    cdef bint kong_is_plain           # which leaves making its objects to Namespace
    cdef list handlers                # by phase number; None where the plugin has none
    cdef list runners                 # where they run, by phase number; None: the dispatcher's
    cdef list waiting                 # events that wait for its start(); None: it has started
    cdef bint pipelined               # PDK calls without a result need not be waited for
    cdef object on_error              # "open" or "closed"; None: as the server has it
    cdef double last_used             # when its last event started, monotonic seconds,
    cdef uint64_t last_event          # and which event of the server that was, counted from 1
