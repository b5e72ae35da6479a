"""Handlers that are ``async def``, on an asyncio loop in a thread of its own.

One thread runs an asyncio loop, of uvloop where that is installed. A PDK call is written in terms
of a call that waits; in an async handler it runs in a greenlet of its own, which gives the awaiting
coroutine a future and goes on when that is done.
"""

import asyncio
import sys
from collections import deque
from contextvars import Context, copy_context
from functools import partial
from logging import ERROR, WARNING

from cpython.pythread cimport PyThread_get_thread_ident

from kongps.core.dispatch.answers cimport CachedAnswer
from kongps.core.dispatch.event cimport OFF_LOOP, Event, must_have_run
from kongps.core.io.clock cimport monotonic
from kongps.core.io.loop_lock cimport LoopLock
from kongps.core.runners.off_loop cimport (
    CALL, ENDS, RAISED, RETURNED, HandlerTask, Message, OffLoopRunner, read_body,
)
from kongps.core.wire.function cimport Function

from greenlet import getcurrent, greenlet

from kongps.core.report import place_of, report
from kongps.core.runners.threads import Thread
from kongps.core.wire.body_file import BodyFile
from kongps.errors import DescriptorLost, HandlerExit, PDKError

cdef enum:
    # Threads that a handler blocks, and that have not come back, before no more are made.
    MOST_BLOCKED = 8

# Seconds for which the asyncio loop may not turn before the log says so.
cdef double LAG = 1.0

# Seconds for which the asyncio loop sleeps at most: asleep, it does not see that it was closed.
cdef double LONGEST_SLEEP = 1.0

# Seconds that cancelled coroutines get at the server's end.
cdef double LAST_TURNS = 1.0

cdef str EVENT_IS_OVER = "the event is over; Kong no longer listens"


async def awaited(function, *args, **named):
    """Runs a function that makes PDK calls; the calls are awaited.

    :param function: called in a greenlet of its own.
    :returns: what it returns.
    """
    made = greenlet(lambda: function(*args, **named))
    made.gr_context = copy_context()  # what it calls of the plugin's, such as a __str__
    waits_for = made.switch()
    while not made.dead:
        try:
            value = await waits_for
        except BaseException as error:
            waits_for = made.throw(error)
        else:
            waits_for = made.switch(value)
    return waits_for


cdef class AsyncioThread
cdef class AsyncRunner(OffLoopRunner)


cdef class AsyncTask(HandlerTask):
    """An async handler under way. Its coroutines may make several PDK calls at once."""

    cdef AsyncioThread home
    cdef object task              # asyncio.Task
    cdef object coroutine         # the plugin's own
    cdef object answered          # asyncio.Future that the present PDK call waits for
    cdef object queue             # collections.deque of futures: calls that wait for that one
    cdef bint over                # the handler has ended; coroutines that it began may go on
    cdef bint cancelled           # by us

    def done(self, task):
        """The asyncio task has ended: cancelled before it ran at all, if the handler has not."""
        if not self.over:
            self.home.end(self, RAISED, asyncio.CancelledError())


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

    def __init__(self, AsyncRunner runner not None, int number):
        self.runner = runner
        self.jobs = deque()
        try:
            import uvloop
            self.loop = uvloop.new_event_loop()
        except ImportError:
            self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self._run, name=f"kongps-async-{number}", daemon=True)
        self.thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self._turn_over()
        while not self.stopping:  # a plugin may stop it
            try:
                self.loop.run_forever()
            except OSError as error:  # of its selector; those of coroutines are kept by their tasks
                self._lost(error)
                return
            except BaseException as error:  # from a coroutine of a plugin's: SystemExit
                report(ERROR, "a coroutine has left the asyncio loop", error=error)
        try:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=LAST_TURNS))
            self.loop.close()
        except BaseException as error:
            report(ERROR, "the asyncio loop could not be ended", error=error)

    def _turn_over(self):
        self.loop.call_later(LONGEST_SLEEP, self._turn_over)

    def _lost(self, error):
        """Plugin code has closed the asyncio loop's file descriptors: the process ends."""
        def fail():
            raise DescriptorLost(f"those of the asyncio loop ({error})")
        self.stopping = True
        self.runner.call_soon(fail)

    def stop(self):
        """Ends the loop and the thread, which is not waited for."""
        self.stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    cdef int do_soon(self, object job) except -1:
        """Makes the thread call a function, or take the outcome of a PDK call. From any thread."""
        self.jobs.append(job)
        if not self.due:
            self.due_since = monotonic()
            self.due = True
            self.loop.call_soon_threadsafe(self._do_all)
        return 0

    def _do_all(self):
        cdef object job
        self.due = self.reported = False
        while self.jobs:
            job = self.jobs.popleft()
            if not isinstance(job, AsyncTask):
                job()
            elif (<AsyncTask>job).answered is None:
                pass
            elif not (<AsyncTask>job).answered.done():
                (<AsyncTask>job).answered.set_result(None)
            else:  # whoever asked does not wait any more
                if (<AsyncTask>job).outcome == ENDS:
                    self.cancel(<AsyncTask>job)
                self.free(<AsyncTask>job)

    cdef int free(self, AsyncTask task) except -1:
        """The PDK call of a task is over; the next in its queue goes on."""
        task.answered = None
        task.value = task.function = task.args = None
        while task.queue:
            waiter = task.queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        return 0

    def begin(self, AsyncTask task not None):
        """Makes an asyncio task of a handler. On this thread."""
        self.tasks += 1
        task.task = Context().run(self.loop.create_task, self._handle(task))
        task.task.add_done_callback(task.done)

    def cancel(self, AsyncTask task not None):
        """Cancels a handler. On this thread."""
        if task.task is not None and not task.over:
            task.cancelled = True
            task.task.cancel()

    async def _handle(self, AsyncTask task):
        cdef Message message
        value = None
        try:
            if task.event is not None:
                kong = task.event.instance.plugin.async_kong(task.event)
                task.coroutine = task.event.instance.handlers[task.event.phase](kong)
            else:
                task.coroutine = task.work[0]()
            if task.event is not None or hasattr(task.coroutine, "__await__"):
                value = await task.coroutine
                if task.event is not None:
                    must_have_run(value)
            else:  # a start or close that is a plain function
                value = task.coroutine
            message = RETURNED
        except BaseException as error:
            message = RAISED
            value = error
        task.coroutine = None
        self.end(task, message, value)

    cdef int end(self, AsyncTask task, Message message, object value) except -1:
        """A handler has ended. PDK calls that coroutines of it still wait for are refused."""
        task.over = True
        self.tasks -= 1
        if task.cancelled and message == RAISED and isinstance(value, asyncio.CancelledError):
            value = HandlerExit("abandoned by Kong")
        if task.answered is not None and not task.answered.done():
            task.answered.set_exception(PDKError(task.function.name, EVENT_IS_OVER))
        while task.queue:
            waiter = task.queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
        task.message = message
        task.end = value
        return self.runner.post(task)


cdef class AsyncRunner(OffLoopRunner):
    """Runs handlers that are ``async def``.

    :param call_soon, lock: as :class:`OffLoopRunner` has them.
    :param submit: runs something in a thread of a pool, as ``ThreadRunner.submit`` does: a request's
        body that Kong has left in a file is read there.
    """

    cdef AsyncioThread home       # None until there is something to run
    cdef int made                 # threads, ever; for their names
    cdef list blocked             # AsyncioThreads that were replaced and have not come back
    cdef set works                # AsyncTasks of no event
    cdef object submit_read       # runs something in a thread, from the loop's

    def __init__(self, call_soon, LoopLock lock not None, submit):
        OffLoopRunner.__init__(self, call_soon, lock)
        self.submit_read = submit
        self.blocked = []
        self.works = set()

    cdef AsyncioThread thread(self):
        if self.home is None:
            self.lock.share()
            self.home = AsyncioThread(self, self.made + 1)
            self.made += 1
        return self.home

    def stop(self):
        """Ends the asyncio loop, whatever runs on it."""
        cdef AsyncioThread home
        for home in self.blocked:
            home.stop()
        if self.home is not None:
            self.home.stop()
            self.home.thread.join(LAST_TURNS)
            self.home = None

    cdef int start(self, Event event) except -1:
        cdef AsyncTask task = AsyncTask()
        task.home = self.thread()
        task.event = event
        event.task = task
        event.leave_loop()
        return task.home.do_soon(partial(task.home.begin, task))

    def submit(self, function, done, str what not None, str path not None):
        """Runs something that is no event's handler, such as a plugin's ``start``.

        :param function: called without arguments; what it returns is awaited if it can be.
        :param done: called on the loop's thread with what it returned and what it raised, one of
            which is None.
        :param what: what it is, for the log.
        :param path: the plugin's file.
        """
        cdef AsyncTask task = AsyncTask()
        task.home = self.thread()
        task.work = (function, done, what, path)
        task.begun = monotonic()
        self.works.add(task)
        task.home.do_soon(partial(task.home.begin, task))

    cdef int resume(self, Event event) except -1:
        if type(event.value) is BodyFile:
            return read_body(event, self.submit_read)
        return OffLoopRunner.resume(self, event)

    cdef int answer(self, HandlerTask task) except -1:
        return (<AsyncTask>task).home.do_soon(task)

    cdef int ended(self, HandlerTask handler) except -1:
        cdef AsyncTask task = <AsyncTask>handler
        task.task = None
        if task.work is None:
            return 0
        self.works.discard(task)
        return self.work_done(task)

    # --- PDK calls -------------------------------------------------------------------------------

    cdef object call(self, Event event, Function function, tuple args):
        cdef AsyncTask task = self.calling_task(event, function.name)
        cdef CachedAnswer cached
        self.wait_in_queue(task)
        if task.over:  # a coroutine that the handler has begun goes on after it
            raise PDKError(function.name, EVENT_IS_OVER)
        if event.state == OFF_LOOP:
            cached = event.find_cached(function, args)
            if cached is not None:
                task.home.free(task)
                return cached.value
        answered = task.answered = task.home.loop.create_future()
        task.message = CALL
        task.function = function
        task.args = args
        self.post(task)
        try:
            getcurrent().parent.switch(answered)
        except BaseException:
            # Cancelled, usually. Kong's answer is still to come, and frees the task for the next
            # call; unless it has come, and was not taken any more.
            if not answered.cancel() and not answered.cancelled():
                task.home.free(task)
            raise
        try:
            return task.result()
        finally:
            task.home.free(task)

    cdef AsyncTask calling_task(self, Event event, str function):
        """The task whose handler calls a PDK function; PDKError when it cannot from here."""
        if event.task is None or not isinstance(event.task, AsyncTask):
            raise PDKError(function, EVENT_IS_OVER)
        if PyThread_get_thread_ident() != (<AsyncTask>event.task).home.thread.ident:
            raise PDKError(function, "called from another thread than that of the async handlers")
        if getcurrent().parent is None:
            raise PDKError(function, "call it from the handler's coroutine, and await it")
        return <AsyncTask>event.task

    cdef object wait_in_queue(self, AsyncTask task):
        """Waits until no other call of the handler is under way: Kong takes one at a time."""
        while task.answered is not None:
            waiter = task.home.loop.create_future()
            if task.queue is None:
                task.queue = deque()
            task.queue.append(waiter)
            try:
                getcurrent().parent.switch(waiter)
            except BaseException:
                if task.answered is None:
                    task.home.free(task)  # it may have been this one's turn
                raise
        return None

    # --- what takes too long ---------------------------------------------------------------------

    cdef int abandon(self, Event event) except -1:
        cdef AsyncTask task
        if event.task is None:
            return 0  # it waits for its instance to start
        task = <AsyncTask?>event.task
        if task.asked:
            return OffLoopRunner.abandon(self, event)
        return self.cancel_soon(task)

    cdef object give_up(self, Event event):
        cdef AsyncTask task
        cdef AsyncioThread home
        if event.task is None:
            return None
        task = <AsyncTask?>event.task
        home = task.home
        event.task = None
        place = place_in(task.coroutine, home.thread.ident, event.instance.plugin.path)
        self.cancel_soon(task)
        if getattr(task.coroutine, "cr_running", False) and self.home is home:
            self.replace()
        return place

    cdef int replace(self) except -1:
        """Makes later handlers run on a new loop: one blocks the present one."""
        if len(self.blocked) < MOST_BLOCKED:
            self.blocked.append(self.home)
            self.home = None
            return 0
        report(
            ERROR, "%d threads for async handlers are blocked and no more are started: an async "
            "handler must await everything that takes time", len(self.blocked),
        )
        return 0

    def end_late(self, double limit):
        """Replaces a loop that does not turn, and cancels work that takes too long.

        :param limit: seconds.
        """
        cdef AsyncTask task
        cdef AsyncioThread home
        cdef double now = monotonic()
        for home in list(self.blocked):
            if not home.due and home.tasks == 0:
                self.blocked.remove(home)  # it has come back, and all its handlers have ended
                home.stop()
        for task in list(self.works):
            if task.begun < now - limit and not task.cancelled:
                _, _, what, path = task.work
                place = place_in(task.coroutine, task.home.thread.ident, path)
                report(ERROR, "%s has not ended in %g s, and is at %s; it is cancelled", what,
                       limit, place)
                task.cancelled = True
                self.cancel_soon(task)
        home = self.home
        if home is None:
            return
        if not home.due:
            home.do_soon(nothing)
            return
        if now - home.due_since > LAG and not home.reported:
            home.reported = True
            report(
                WARNING, "the asyncio loop has been blocked for %.1f s, at %s; every async "
                "handler waits meanwhile; handlers must await everything that takes time",
                now - home.due_since, place_of(sys._current_frames().get(home.thread.ident), ""),
            )
        if now - home.due_since > limit:
            home.due_since = now
            self.replace()

    cdef int cancel_soon(self, AsyncTask task) except -1:
        """Cancels a handler, from any thread."""
        return task.home.do_soon(partial(task.home.cancel, task))


def nothing():
    """What a loop that turns does soon."""


cdef object place_in(object coroutine, object thread, str path):
    """Where a coroutine is, for the log."""
    if coroutine is None:
        return "nothing yet: other handlers keep the asyncio loop busy"
    if getattr(coroutine, "cr_running", False):
        return place_of(sys._current_frames().get(thread), path)
    own = getattr(coroutine, "cr_frame", None)
    while getattr(getattr(coroutine, "cr_await", None), "cr_frame", None) is not None:
        coroutine = coroutine.cr_await
    frame = getattr(coroutine, "cr_frame", None)
    if own is None or frame is None or own is frame:
        return place_of(frame, path)
    return f"{place_of(own, path)}, in {place_of(frame, '')}"
