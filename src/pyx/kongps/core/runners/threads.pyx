"""Handlers in a bounded pool of threads: those that block.

Threads are made when there is work for one more, up to a limit, and kept. What has no thread
waits for one until its deadline. A thread whose event was given up is replaced; when so many do
not come back that there are twice as many threads as the limit, no more are made.
"""

import sys
from collections import deque
from logging import ERROR
from threading import Thread  # before a plugin may replace it

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_get_thread_ident, PyThread_release_lock, PyThread_type_lock,
)
from cpython.ref cimport Py_XDECREF

from kongps.core.dispatch.answers cimport CachedAnswer
from kongps.core.dispatch.event cimport OFF_LOOP, OVER, Event, must_have_run
from kongps.core.dispatch.namespace cimport make_kong
from kongps.core.io.clock cimport monotonic
from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.runners.off_loop cimport (
    CALL, RAISED, RETURNED, HandlerTask, Message, OffLoopRunner,
)
from kongps.core.runners.thread_locals cimport swap_thread_locals
from kongps.core.wire.function cimport Function

from kongps.core.report import place_of, report
from kongps.core.wire.body_file import BodyFile
from kongps.errors import PDKError

cdef extern from *:
    """
    #include <malloc.h>

    /* Threads that take turns under the GIL need no memory pools of their own: with those,
       64 threads hold tens of megabytes that are free. */
    static void kongps_share_arenas(void) {
    #ifdef M_ARENA_MAX
        mallopt(M_ARENA_MAX, 2);
    #endif
    }
    """
    void share_arenas "kongps_share_arenas" () noexcept


cdef class ThreadRunner(OffLoopRunner)


cdef class HandlerThread(HandlerTask):
    """A thread of the pool, with the handler that it runs."""

    cdef ThreadRunner runner
    cdef PyThread_type_lock wake
    cdef object thread            # threading.Thread
    cdef bint given_up
    cdef bint calling             # it has posted something, and is not answered yet

    def __cinit__(self):
        self.wake = PyThread_allocate_lock()
        if self.wake == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.wake, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.wake != NULL:
            PyThread_free_lock(self.wake)

    def run(self):
        """What the thread does: one handler after another, until there is nothing to wait for."""
        cdef object context
        cdef object value
        cdef Message message
        cdef PyObject* locals
        cdef PyObject* own
        while True:
            self.calling = False
            with nogil:
                PyThread_acquire_lock(self.wake, WAIT_LOCK)
            if self.event is None and self.work is None:
                return
            value = None
            own = swap_thread_locals(NULL)
            context = PyContext_New()
            try:
                PyContext_Enter(context)
                try:
                    if self.event is not None:
                        must_have_run(
                            self.event.instance.handlers[self.event.phase](make_kong(self.event))
                        )
                    else:
                        value = self.work[0]()
                finally:
                    PyContext_Exit(context)
                message = RETURNED
            except BaseException as error:
                message = RAISED
                value = error
            # What the handler leaves may make PDK calls as it goes.
            context = None
            locals = swap_thread_locals(own)
            Py_XDECREF(locals)
            self.message = message
            self.end = value
            value = None
            self.calling = True
            self.runner.post(self)


cdef class ThreadRunner(OffLoopRunner):
    """Runs handlers in threads.

    :param call_soon, lock: as :class:`OffLoopRunner` has them.
    :param most: most threads that may have work at a time.
    """

    cdef readonly int most        # threads that may have work
    cdef readonly int stuck       # threads whose event was given up, and that have not come back
    cdef readonly int threads     # all there are
    cdef int started              # ever; for their names
    cdef list idle                # the one last used is used next
    cdef object waiting           # collections.deque: events and work without a thread
    cdef dict by_ident
    cdef bint reported_full       # the log has said that so many are stuck that no more are made,
    cdef bint reported_refused    # and that the system makes none

    def __init__(self, call_soon, LoopLock lock not None, int most):
        OffLoopRunner.__init__(self, call_soon, lock)
        share_arenas()
        self.most = most
        self.idle = []
        self.waiting = deque()
        self.by_ident = {}

    cdef int start(self, Event event) except -1:
        event.leave_loop()
        self.waiting.append(event)
        return self.next_job(None)

    def submit(self, function, done, str what not None, str path not None):
        """Runs something in a thread that is no event's handler, such as a plugin's ``start``.

        :param function: called without arguments.
        :param done: called on the loop's thread with what it returned and what it raised, one of
            which is None.
        :param what: what it is, for the log.
        :param path: the plugin's file.
        """
        self.waiting.append((function, done, what, path))
        self.next_job(None)

    cdef object call(self, Event event, Function function, tuple args):
        cdef HandlerThread thread
        cdef CachedAnswer cached
        cdef object value
        cdef object found = self.by_ident.get(PyThread_get_thread_ident())
        if found is None or (<HandlerThread>found).event is not event:
            raise PDKError(
                function.name,
                "called from outside the handler of its event: the event is over, or this is "
                "another thread than the handler's",
            )
        thread = <HandlerThread>found
        if thread.calling:
            raise PDKError(
                function.name, "called while another call is made, or after the handler's end"
            )
        if event.state == OFF_LOOP:
            cached = event.find_cached(function, args)
            if cached is not None:
                return cached.value
        thread.message = CALL
        thread.function = function
        thread.args = args
        thread.calling = True
        self.post(thread)
        with nogil:
            PyThread_acquire_lock(thread.wake, WAIT_LOCK)
        thread.calling = False
        value = thread.result()
        return value.read(function.name) if type(value) is BodyFile else value

    cdef int answer(self, HandlerTask task) except -1:
        PyThread_release_lock((<HandlerThread>task).wake)
        return 0

    cdef int abandon(self, Event event) except -1:
        if event.task is not None:
            return OffLoopRunner.abandon(self, event)
        try:
            self.waiting.remove(event)
        except ValueError:
            pass  # it waits for its instance to start
        return 0

    # --- what takes too long ---------------------------------------------------------------------

    cdef object give_up(self, Event event):
        cdef HandlerThread thread
        if event.task is None:
            self.abandon(event)
            return "no thread: all were taken"
        thread = <HandlerThread?>event.task
        event.task = None
        self.lose(thread)
        frame = sys._current_frames().get(thread.thread.ident)
        return place_of(frame, event.instance.plugin.path)

    def end_late(self, double limit):
        """Gives up threads whose work, or whose event that is over already, takes too long.

        :param limit: seconds.
        """
        cdef HandlerThread thread
        cdef double before = monotonic() - limit
        for thread in list(self.by_ident.values()):
            if thread.given_up or thread.begun > before:
                continue
            if thread.work is not None:
                what, path = thread.work[2:]
            elif thread.event is not None and thread.event.state == OVER:
                what, path = thread.event.describe(), thread.event.instance.plugin.path
            else:
                continue
            place = place_of(sys._current_frames().get(thread.thread.ident), path)
            report(
                ERROR, "%s has not ended in %g s%s; its thread is replaced", what, limit,
                f", and is at {place}" if place else "",
            )
            self.lose(thread)

    cdef int lose(self, HandlerThread thread) except -1:
        """Counts a thread out that does not come back, and gives its place to another."""
        thread.given_up = True
        self.stuck += 1
        return self.next_job(None)

    cdef int ended(self, HandlerTask task) except -1:
        cdef HandlerThread thread = <HandlerThread>task
        if thread.work is not None:
            self.work_done(thread)
        if thread.given_up:
            thread.given_up = False
            self.stuck -= 1
            self.reported_full = False
            if self.threads - self.stuck > self.most:
                return self.dismiss(thread)
        return self.next_job(thread)

    # --- the pool --------------------------------------------------------------------------------

    cdef HandlerThread free_thread(self):
        if not self.idle and self.threads - self.stuck < self.most:
            if self.threads < 2 * self.most:
                self.spawn()
            elif not self.reported_full:
                self.reported_full = True
                report(
                    ERROR, "%d of %d threads are stuck in handlers, and no more are started: events "
                    "that run in threads wait for the others, and fail if that takes too long",
                    self.stuck, self.threads,
                )
        return <HandlerThread>self.idle.pop() if self.idle else None

    cdef int spawn(self) except -1:
        """Makes a thread; without one, what is to run waits, and fails when that takes too long."""
        cdef HandlerThread made = HandlerThread()
        try:
            self.lock.share()
            made.runner = self
            self.started += 1
            made.thread = Thread(
                target=made.run, name=f"kongps-handler-{self.started}", daemon=True
            )
            made.thread.start()
            self.by_ident[made.thread.ident] = made
            self.threads += 1
            self.idle.append(made)
            self.reported_refused = False
        except Exception as error:
            if not self.reported_refused:
                self.reported_refused = True
                report(ERROR, "no thread can be started for handlers, beyond %d", self.threads,
                       error=error)
        return 0

    cdef int next_job(self, HandlerThread thread) except -1:
        """Runs what waits: in `thread`, or in one that is free or new."""
        if self.waiting and thread is None:
            thread = self.free_thread()
        if thread is None:
            return 0
        if not self.waiting:
            self.idle.append(thread)
            return 0
        job = self.waiting.popleft()
        if isinstance(job, Event):
            thread.event = <Event>job
            thread.event.task = thread
        else:
            thread.work = job
        thread.begun = monotonic()
        PyThread_release_lock(thread.wake)
        return 0

    cdef int dismiss(self, HandlerThread thread) except -1:
        """Ends a thread that has nothing to do."""
        self.threads -= 1
        self.by_ident.pop(thread.thread.ident, None)
        PyThread_release_lock(thread.wake)  # without work: it ends
        return 0

    def stop(self):
        """Ends the threads that have nothing to do."""
        while self.idle:
            self.dismiss(<HandlerThread>self.idle.pop())
