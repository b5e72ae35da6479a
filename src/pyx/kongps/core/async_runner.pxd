"""Handlers that are ``async def``, on an asyncio loop in a thread of its own."""

from cpython.object cimport PyObject

from kongps.core.away_runner cimport AwayRunner, Handling
from kongps.core.dispatch cimport Event


cdef class Task(Handling):
    """An async handler under way."""
    cdef AsyncioThread home
    cdef object task              # asyncio.Task
    cdef object coroutine         # the plugin's own
    cdef object work              # instead of an event: a function and what hears of its end
    cdef object answered          # asyncio.Future that the present PDK call waits for
    cdef object line              # collections.deque of futures: calls that wait for that one


cdef class AsyncioThread:
    """An asyncio loop and its thread."""
    cdef AsyncRunner runner
    cdef object loop
    cdef object thread
    cdef object posted            # collections.deque of what the thread is to do
    cdef bint due

    cdef int post(self, object job) except -1
    cdef int free(self, Task task) except -1


cdef class AsyncRunner(AwayRunner):
    cdef AsyncioThread home       # None until there is something to run
    cdef int replaced             # threads that were given up

    cdef AsyncioThread thread(self)


cdef class OwnLocals:
    """A coroutine with ``threading.local`` values of its own."""
    cdef object coroutine
    cdef PyObject* locals
    cdef bint begun

    cdef PyObject* enter(self) except? NULL
