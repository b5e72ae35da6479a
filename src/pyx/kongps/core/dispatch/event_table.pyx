"""The events under way, by their ids.

An open table without collisions: the event with id n has the entry n & (capacity - 1), and an id
whose entry is taken is not given out.
"""

import secrets

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from kongps.core.wire.phases cimport NO_PHASE

cdef enum:
    FIRST_CAPACITY = 64   # entries at first; the table doubles when half of them are taken


cdef class EventTable:
    """The events under way."""

    def __init__(self):
        # At random, so that an id of a server that ran here before is hardly ever one of ours.
        self.last_id = secrets.randbelow(1 << 31)
        self.tag = -1

    def __dealloc__(self):
        cdef uint64_t index
        for index in range(self.capacity):
            if self.entries[index].event != NULL:
                Py_DECREF(<object>self.entries[index].event)
        PyMem_Free(self.entries)

    cdef int64_t add(self, object event, int phase) except -1:
        """Adds an event that has just begun. Returns its id."""
        cdef uint64_t mask
        cdef int64_t id
        if self.live * 2 >= self.capacity:
            self.grow()
        mask = self.capacity - 1
        self.last_id += 1
        while self.entries[<uint64_t>self.last_id & mask].event != NULL:
            self.last_id += 1
        id = self.last_id
        if self.tag >= 0:
            self.last_id &= (<int64_t>1 << NUMBER_BITS) - 1
            id = self.last_id | self.tag << NUMBER_BITS | <int64_t>phase << PHASE_SHIFT
        Py_INCREF(event)
        self.entries[<uint64_t>id & mask].id = id
        self.entries[<uint64_t>id & mask].event = <PyObject*>event
        self.live += 1
        return id

    cdef PyObject* find(self, int64_t id) noexcept:
        """The event with an id, a borrowed reference; NULL if there is none."""
        cdef Entry* entry
        if self.capacity == 0:
            return NULL
        entry = &self.entries[<uint64_t>id & (self.capacity - 1)]
        return entry.event if entry.id == id else NULL

    cdef int remove(self, int64_t id) except -1:
        """Removes an event that is in the table."""
        cdef Entry* entry = &self.entries[<uint64_t>id & (self.capacity - 1)]
        cdef PyObject* event = entry.event
        entry.event = NULL
        self.live -= 1
        Py_DECREF(<object>event)
        return 0

    cdef list all(self):
        """A list of all events."""
        cdef uint64_t index
        return [
            <object>self.entries[index].event
            for index in range(self.capacity)
            if self.entries[index].event != NULL
        ]

    cdef int phase_of(self, int64_t id) noexcept:
        """The phase of an event that is not here any more; ``NO_PHASE`` if its id does not say."""
        return phase_in_id(id) if self.tag >= 0 else NO_PHASE

    cdef int grow(self) except -1:
        cdef uint64_t capacity = self.capacity * 2 or FIRST_CAPACITY
        cdef Entry* entries = <Entry*>PyMem_Calloc(capacity, sizeof(Entry))
        cdef uint64_t index
        if entries == NULL:
            raise MemoryError
        for index in range(self.capacity):
            if self.entries[index].event != NULL:
                # Ids that differ in their low bits differ in one more of them too: no collision.
                entries[<uint64_t>self.entries[index].id & (capacity - 1)] = self.entries[index]
        PyMem_Free(self.entries)
        self.entries = entries
        self.capacity = capacity
        return 0
