"""Handlers that are ``async def``, on an asyncio loop in a thread of its own."""

from cpython.object cimport PyObject

from kongps.core.runners.off_loop cimport OffLoopRunner, HandlerTask, Said
from kongps.core.dispatch.dispatcher cimport Event


cdef class Task(HandlerTask):
    """An async handler under way."""
    cdef AsyncioThread home
    cdef object task              # asyncio.Task
    cdef object coroutine         # the plugin's own
    cdef object answered          # asyncio.Future that the present PDK call waits for
    cdef object line              # collections.deque of futures: calls that wait for that one
    cdef bint ran                 # the handler's code has run, if only a little
    cdef bint over                # the handler has ended; coroutines that it began may go on
    cdef bint cancelled           # by us
    cdef object end               # what the handler has returned or raised


cdef class AsyncioThread:
    """An asyncio loop and its thread."""
    cdef AsyncRunner runner
    cdef object loop
    cdef object thread
    cdef object posted            # collections.deque of what the thread is to do
    cdef bint due
    cdef double due_since         # monotonic seconds
    cdef int tasks                # handlers, starts and closes that have not ended
    cdef Locals current           # the values of the event whose coroutine runs
    cdef bint stopping
    cdef bint told                # the log has been told that it is blocked

    cdef int post(self, object job) except -1
    cdef int free(self, Task task) except -1
    cdef int end(self, Task task, Said said, object value) except -1


cdef class AsyncRunner(OffLoopRunner):
    cdef AsyncioThread home       # None until there is something to run
    cdef int made                 # threads, ever; for their names
    cdef list blocked             # AsyncioThreads that were replaced and have not come back
    cdef list lost                # AsyncioThreads whose file descriptors were closed
    cdef set works                # Tasks of no event

    cdef AsyncioThread thread(self)


cdef class Locals:
    """The ``threading.local`` values of an event, while none of its coroutines runs."""
    cdef PyObject* values
    cdef bint begun


cdef class OwnLocals:
    """A coroutine with the ``threading.local`` values of its event."""
    cdef object coroutine
    cdef AsyncioThread home
    cdef Locals locals
    cdef Task task                # whose handler it is; None for a coroutine that one has begun

    cdef object run(self, object function, object args)
