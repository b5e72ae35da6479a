"""Answers of Kong that hold for the rest of their event, so that Kong is asked once."""

from kongps.core.wire.function cimport Function


cdef class CachedAnswer:
    """One answer, and the one cached before it; an event has the newest."""
    cdef Function function
    cdef tuple args
    cdef object value
    cdef CachedAnswer next


cdef CachedAnswer find_answer(CachedAnswer newest, Function function, tuple args)
cdef CachedAnswer add_answer(CachedAnswer newest, Function function, tuple args, object value)
cdef CachedAnswer drop_changed(CachedAnswer newest, Function setter)
cdef object find_request_id(CachedAnswer newest)
