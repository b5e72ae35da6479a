"""What a handler gets as `kong`: namespaces of the PDK, bound to an event."""

from kongps.core.dispatch.event cimport Event


cdef class Namespace:
    cdef Event event


cdef object make_kong(Event event)
