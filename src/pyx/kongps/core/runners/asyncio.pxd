"""Handlers that are ``async def``, on an asyncio loop in a thread of its own."""

from kongps.core.dispatch.event cimport Event
from kongps.core.runners.off_loop cimport HandlerTask, Message, OffLoopRunner


cdef class AsyncTask(HandlerTask):
    """An async handler under way. Its coroutines may make several PDK calls at once."""
    cdef AsyncioThread home
    cdef object task              # asyncio.Task
    cdef object coroutine         # the plugin's own
    cdef object answered          # asyncio.Future that the present PDK call waits for
    cdef object queue             # collections.deque of futures: calls that wait for that one
    cdef bint over                # the handler has ended; coroutines that it began may go on
    cdef bint cancelled           # by us
    cdef object end               # what the handler has returned or raised


cdef class AsyncioThread:
    """An asyncio loop and its thread."""
    cdef AsyncRunner runner
    cdef object loop
    cdef object thread
    cdef object jobs              # collections.deque of what the thread is to do
    cdef bint due
    cdef double due_since         # monotonic seconds
    cdef int tasks                # handlers, starts and closes that have not ended
    cdef bint stopping
    cdef bint reported            # the log has said that it is blocked

    cdef int do_soon(self, object job) except -1
    cdef int free(self, AsyncTask task) except -1
    cdef int end(self, AsyncTask task, Message message, object value) except -1


cdef class AsyncRunner(OffLoopRunner):
    cdef AsyncioThread home       # None until there is something to run
    cdef int made                 # threads, ever; for their names
    cdef list blocked             # AsyncioThreads that were replaced and have not come back
    cdef set works                # AsyncTasks of no event
    cdef object submit_read       # runs something in a thread, from the loop's

    cdef AsyncioThread thread(self)
    cdef AsyncTask calling_task(self, Event event, str function)
    cdef object wait_in_queue(self, AsyncTask task)
    cdef object read_body(self, Event event, AsyncioThread home, object read)
    cdef int replace(self) except -1
    cdef int end_late_works(self, double limit) except -1
    cdef int cancel_soon(self, AsyncTask task) except -1
