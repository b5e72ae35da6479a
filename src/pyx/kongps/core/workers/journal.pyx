"""What the connections of all workers owe Kong, in memory that outlives a worker.

The supervisor makes it before the workers; it is shared by all of them. Each connection has a slot,
written by the worker that has the connection with a few plain stores per call. When that worker is
gone, the worker that gets the connection reads there what Kong waits for.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)

from kongps.core.io.loop cimport RECEIVE_SIZE

cdef enum:
    AREA_SIZE = 266240   # RECEIVE_SIZE and a page

assert sizeof(Slot) <= SLOT_SIZE and RECEIVE_SIZE + sizeof(ReceiveArea) <= AREA_SIZE


cdef class Journal:
    """The shared memory; pages of it that nobody uses take none.

    :param capacity: most connections that are accounted for.
    :param areas: most workers at a time.
    """

    def __init__(self, uint32_t capacity, int areas):
        cdef void* memory
        self.memory_size = <size_t>capacity * SLOT_SIZE + <size_t>areas * AREA_SIZE
        memory = mmap(
            NULL, self.memory_size, PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
        )
        if memory == MAP_FAILED:
            raise MemoryError
        self.memory = <char*>memory
        self.capacity = capacity
        self.areas = areas
        self.free = []
        self.leaving = []

    def __dealloc__(self):
        if self.memory != NULL:
            munmap(self.memory, self.memory_size)

    cdef Slot* slot(self, uint32_t number) noexcept:
        if number >= self.capacity:
            return NULL
        return <Slot*>(self.memory + <size_t>number * SLOT_SIZE)

    cdef ReceiveArea* area(self, int number) noexcept:
        return <ReceiveArea*>(
            self.memory + <size_t>self.capacity * SLOT_SIZE + <size_t>number * AREA_SIZE
        )

    cdef uint32_t take(self) except? 4294967295:
        """The number of a slot for a new connection; NO_SLOT when there is none."""
        cdef uint32_t number
        if self.free:
            number = self.free.pop()
        elif self.leaving and not self.slot(self.leaving[0]).held:
            number = self.leaving.pop(0)
        elif self.fresh < self.capacity:
            number = self.fresh
            self.fresh += 1
        else:
            return NO_SLOT
        memset(self.slot(number), 0, SLOT_SIZE)
        return number

    cdef int give(self, uint32_t number) except -1:
        """A connection is over; its slot is taken again once the worker has let go of it."""
        if number == NO_SLOT:
            return 0
        if self.slot(number).held:
            self.leaving.append(number)
        else:
            self.free.append(number)
        return 0
