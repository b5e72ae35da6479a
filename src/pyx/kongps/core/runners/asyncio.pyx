"""Handlers that are ``async def``; see ``async_runner.pxd``.

One thread runs an asyncio loop, of uvloop where that is installed. A PDK call is written in terms
of a call that waits; in an async handler it runs in a greenlet of its own, which gives the awaiting
coroutine a future and goes on when that is done.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Coroutine
from contextvars import Context, copy_context
from logging import ERROR, WARNING

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_INCREF, Py_XDECREF

from kongps.core.runners.off_loop cimport (
    CALLS, OVER_NOW, RAISED, RETURNED, OffLoopRunner, HandlerTask, Said,
)
from kongps.core.io.clock cimport monotonic
from kongps.core.dispatch.dispatcher cimport AWAY, Event, CachedAnswer, must_have_run
from kongps.core.wire.function cimport Function
from kongps.core.runners.thread_locals cimport swap_thread_locals
from kongps.core.io.loop_lock cimport LoopLock

from greenlet import getcurrent, greenlet

from kongps.core.dispatch.dispatcher import HandlerExit
from kongps.core.report import place_of, report
from kongps.core.runners.threads import Thread
from kongps.errors import PDKError

cdef enum:
    # Threads that a handler blocks, and that have not come back, before no more are made.
    MOST_BLOCKED = 8

# Seconds for which the asyncio loop may not turn before the log is told.
LAG = 1.0

# Seconds for which the asyncio loop sleeps at most: asleep, it does not see that it was closed.
LONGEST_SLEEP = 1.0

# Seconds that coroutines get at the server's end to hear that they are cancelled.
LAST_TURNS = 1.0

cdef str EVENT_OVER = "the event is over; Kong no longer listens"


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


cdef class Task(HandlerTask):
    """An async handler under way."""


cdef class AsyncioThread:
    """An asyncio loop and its thread."""

    def __init__(self, AsyncRunner runner not None, int number):
        self.runner = runner
        self.posted = deque()
        try:
            import uvloop
            self.loop = uvloop.new_event_loop()
        except ImportError:
            self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(self._make_task)
        self.thread = Thread(target=self._run, name=f"kongps-async-{number}", daemon=True)
        self.thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self._turn_over()
        while not self.stopping:  # a plugin may stop it
            try:
                self.loop.run_forever()
            except OSError as error:  # of its selector; those of coroutines are kept by their tasks
                self._end_lost(error)
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

    def _end_lost(self, error):
        """Plugin code has closed the loop's file descriptors: handlers fail, the next get a new one.

        The loop is kept as it is: closing it would close numbers that may be a connection's by now.
        """
        cdef Task task
        cdef object coroutine
        report(ERROR, "plugin code has closed file descriptors of the asyncio loop: its handlers "
               "fail, and later ones get another loop: %s", error)
        self.stopping = True
        if self.runner.home is self:
            self.runner.home = None
        self.runner.lost.append(self)
        self._take_all()
        for one in asyncio.all_tasks(self.loop):
            coroutine = one.get_coro()
            if not isinstance(coroutine, OwnLocals):
                continue
            task = (<OwnLocals>coroutine).task
            if task is not None and not task.over:
                task.ran = True
                self.end(task, RAISED, error)

    def _make_task(self, loop, coroutine, **named):
        if self.current is not None and not isinstance(coroutine, OwnLocals):
            coroutine = OwnLocals(coroutine, self, self.current, None)
        return asyncio.Task(coroutine, loop=loop, **named)

    def stop(self):
        """Ends the loop and the thread, which is not waited for."""
        self.stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    cdef int post(self, object job) except -1:
        """From anywhere: has the thread call a function, or hear of the outcome of a PDK call."""
        self.posted.append(job)
        if not self.due:
            self.due_since = monotonic()
            self.due = True
            self.loop.call_soon_threadsafe(self._take_all)
        return 0

    def _take_all(self):
        cdef object job
        self.due = self.told = False
        while self.posted:
            job = self.posted.popleft()
            if not isinstance(job, Task):
                job()
            elif (<Task>job).answered is None:
                pass
            elif not (<Task>job).answered.done():
                (<Task>job).answered.set_result(None)
            else:  # whoever asked does not wait any more
                if (<Task>job).outcome == OVER_NOW:
                    self.cancel(<Task>job)
                self.free(<Task>job)

    cdef int free(self, Task task) except -1:
        """The PDK call of a task is over; the next in its line goes on."""
        task.answered = None
        if not task.over:
            task.value = task.function = task.args = None
        while task.line:
            waiter = task.line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        return 0

    def begin(self, Task task not None):
        """Makes an asyncio task of a handler. On this thread."""
        coroutine = OwnLocals(self._handle(task), self, Locals(), task)
        self.tasks += 1
        task.task = Context().run(self.loop.create_task, coroutine)

    def cancel(self, Task task not None):
        """Cancels a handler. On this thread."""
        if task.task is not None and not task.over:
            task.cancelled = True
            task.task.cancel()

    async def _handle(self, Task task):
        cdef Said said
        task.ran = True
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
            said = RETURNED
        except BaseException as error:
            said = RAISED
            value = error
        task.coroutine = None
        self.end(task, said, value)

    cdef int end(self, Task task, Said said, object value) except -1:
        """A handler has ended. PDK calls that coroutines of it still wait for are refused."""
        task.over = True
        self.tasks -= 1
        if task.cancelled and said == RAISED and isinstance(value, asyncio.CancelledError):
            value = HandlerExit("abandoned by Kong")
        if task.answered is not None and not task.answered.done():
            task.answered.set_exception(PDKError(task.function.name, EVENT_OVER))
        while task.line:
            waiter = task.line.popleft()
            if not waiter.done():
                waiter.set_result(None)
        task.said = said
        task.end = value
        return self.runner.say(task)


cdef class AsyncRunner(OffLoopRunner):
    """Runs handlers that are ``async def``.

    :param call_soon, turn: as :class:`OffLoopRunner` has them.
    """

    def __init__(self, call_soon, LoopLock turn not None):
        OffLoopRunner.__init__(self, call_soon, turn)
        self.blocked = []
        self.lost = []
        self.works = set()

    cdef AsyncioThread thread(self):
        if self.home is None:
            self.turn.share()
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
        cdef Task task = Task()
        task.home = self.thread()
        task.event = event
        event.task = task
        event.hold()
        return task.home.post(lambda: task.home.begin(task))

    def submit(self, function, done, str what not None, str path not None):
        """Runs something that is no event's handler, such as a plugin's ``start``.

        :param function: called without arguments; what it returns is awaited if it can be.
        :param done: called on the loop's thread with what it returned and what it raised, one of
            which is None.
        :param what: what it is, for the log.
        :param path: the plugin's file.
        """
        cdef Task task = Task()
        task.home = self.thread()
        task.work = (function, done, what, path)
        task.begun = monotonic()
        self.works.add(task)
        task.home.post(lambda: task.home.begin(task))

    cdef int hear(self, HandlerTask handling) except -1:
        cdef Task task = <Task>handling
        if task.over and task.end is not None:
            # Until now its place may have been taken by the answer to a call of another coroutine.
            task.value = task.end
            task.end = None
        return OffLoopRunner.hear(self, handling)

    cdef int answer(self, HandlerTask handling) except -1:
        return (<Task>handling).home.post(handling)

    cdef object call(self, Event event, Function function, tuple args):
        cdef Task task
        cdef CachedAnswer told
        if event.task is None or not isinstance(event.task, Task):
            raise PDKError(function.name, EVENT_OVER)
        task = <Task>event.task
        if PyThread_get_thread_ident() != task.home.thread.ident:
            raise PDKError(
                function.name, "called from another thread than that of the async handlers"
            )
        here = getcurrent()
        if here.parent is None:
            raise PDKError(function.name, "call it from the handler's coroutine, and await it")
        while task.answered is not None:  # one after the other: Kong takes them in turn
            waiter = task.home.loop.create_future()
            if task.line is None:
                task.line = deque()
            task.line.append(waiter)
            try:
                here.parent.switch(waiter)
            except BaseException:
                if task.answered is None:
                    task.home.free(task)  # it may have been this one's turn
                raise
        if task.over:  # a coroutine that the handler has begun goes on after it
            raise PDKError(function.name, EVENT_OVER)
        if function.asked_once and event.told is not None and event.state == AWAY:
            told = event.find_told(function, args)
            if told is not None:
                task.home.free(task)
                return told.value
        mine = task.answered = task.home.loop.create_future()
        task.said = CALLS
        task.function = function
        task.args = args
        self.say(task)
        try:
            here.parent.switch(mine)
        except BaseException:
            # Cancelled, usually. Kong's answer is still to come, and frees the task for the next
            # call; unless it has come, and was not taken any more.
            if not mine.cancel() and not mine.cancelled():
                task.home.free(task)
            raise
        try:
            return task.result()
        finally:
            task.home.free(task)

    cdef int abandon(self, Event event) except -1:
        cdef Task task
        if event.task is None:
            return 0  # it waits for its instance to start
        task = <Task?>event.task
        if task.asked:
            return OffLoopRunner.abandon(self, event)
        self.cancel_soon(task)
        return 0

    cdef object give_up(self, Event event):
        cdef Task task
        cdef AsyncioThread home
        if event.task is None:
            return None
        task = <Task?>event.task
        home = task.home
        event.task = None
        path = event.instance.plugin.path
        place = place_in(task.coroutine, home.thread.ident, path)
        self.cancel_soon(task)
        if getattr(task.coroutine, "cr_running", False) and self.home is home:
            self.replace()
        return place

    def replace(self):
        """Has later handlers run on a new loop: one blocks the present one."""
        if len(self.blocked) < MOST_BLOCKED:
            self.blocked.append(self.home)
            self.home = None
            return
        report(
            ERROR, "%d threads for async handlers are blocked and no more are made: an async "
            "handler has to await what takes time", len(self.blocked),
        )

    def end_late(self, double limit):
        """Replaces a loop that does not turn, and cancels work that takes too long.

        :param limit: seconds.
        """
        cdef AsyncioThread home
        cdef Task task
        cdef double now = monotonic()
        for home in list(self.blocked):
            if home.due:
                continue
            if home.tasks == 0:
                self.blocked.remove(home)  # it has come back, and all its handlers have ended
                home.stop()
        for task in list(self.works):
            if now - task.begun > limit and not task.cancelled:
                what, path = task.work[2:]
                place = place_in(task.coroutine, task.home.thread.ident, path)
                report(ERROR, "%s has not ended in %g s, and is at %s; it is cancelled", what,
                       limit, place)
                task.cancelled = True
                self.cancel_soon(task)
        home = self.home
        if home is None:
            return
        if not home.due:
            home.post(nothing)
            return
        if now - home.due_since > LAG and not home.told:
            home.told = True
            report(
                WARNING, "the asyncio loop has not turned for %.1f s, and is at %s; every async "
                "handler waits meanwhile: one has to await what takes time", now - home.due_since,
                place_of(sys._current_frames().get(home.thread.ident), ""),
            )
        if now - home.due_since > limit:
            home.due_since = now
            self.replace()

    def cancel_soon(self, Task task not None):
        """Cancels a handler, from any thread."""
        task.home.post(lambda: task.home.cancel(task))

    cdef int ended(self, HandlerTask handling) except -1:
        cdef Task task = <Task>handling
        task.task = None
        if task.work is None:
            return 0
        self.works.discard(task)
        return self.work_done(task)


def nothing():
    """What a loop that turns does soon."""


cdef object place_in(object coroutine, object thread, str path):
    """Where a coroutine is, for the log."""
    inner = coroutine
    if inner is None:
        return "nothing yet: other handlers keep the asyncio loop busy"
    if getattr(inner, "cr_running", False):
        return place_of(sys._current_frames().get(thread), path)
    own = getattr(inner, "cr_frame", None)
    while getattr(getattr(inner, "cr_await", None), "cr_frame", None) is not None:
        inner = inner.cr_await
    frame = getattr(inner, "cr_frame", None)
    if own is None or frame is None or own is frame:
        return place_of(frame, path)
    return f"{place_of(own, path)}, in {place_of(frame, '')}"


cdef class Locals:
    """The ``threading.local`` values of an event, while none of its coroutines runs."""

    def __dealloc__(self):
        Py_XDECREF(self.values)


cdef class OwnLocals:
    """A coroutine that runs with the ``threading.local`` values of its event.

    :param coroutine: the coroutine.
    :param home: where it runs.
    :param locals: the values.
    :param task: the handler that it is, or None.
    """

    def __init__(self, coroutine, AsyncioThread home not None, Locals locals not None, Task task):
        self.coroutine = coroutine
        self.home = home
        self.locals = locals
        self.task = task

    cdef object run(self, object function, object args):
        cdef Locals outer = self.home.current
        cdef PyObject* outer_values
        if outer is self.locals:
            return function(*args)  # a coroutine of the same event runs it, and has them in place
        outer_values = swap_thread_locals(self.locals.values)
        self.locals.values = NULL
        if not self.locals.begun:
            # They begin with those of the thread: asyncio keeps there which loop runs, up to 3.11.
            self.locals.begun = True
            if outer_values != NULL:
                copy = dict(<dict>outer_values)
                Py_INCREF(copy)
                swap_thread_locals(<PyObject*>copy)
                copy = None
        self.home.current = self.locals
        try:
            return function(*args)
        finally:
            self.home.current = outer
            self.locals.values = swap_thread_locals(outer_values)

    def send(self, value):
        """Runs the coroutine on."""
        return self.run(self.coroutine.send, (value,))

    def throw(self, *error):
        """Raises an exception in the coroutine."""
        if self.task is not None and not self.task.ran:
            # It is cancelled before it has run at all, and none of its code ever will.
            self.task.ran = True
            self.home.end(self.task, RAISED, error[0])
        return self.run(self.coroutine.throw, error)

    def close(self):
        """Ends the coroutine."""
        self.run(self.coroutine.close, ())

    def __getattr__(self, name):
        return getattr(self.coroutine, name)  # such as cr_frame, for who looks at tasks

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)


Coroutine.register(OwnLocals)
