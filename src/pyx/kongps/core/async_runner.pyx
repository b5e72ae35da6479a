"""Handlers that are ``async def``; see ``async_runner.pxd``.

One thread runs an asyncio loop, of uvloop where that is installed. A PDK call is written in terms
of a call that waits; in an async handler it runs in a greenlet of its own, which gives the awaiting
coroutine a future and goes on when that is done.
"""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Coroutine
from contextvars import Context
from logging import ERROR

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_INCREF, Py_XDECREF

from kongps.core.away_runner cimport CALLS, OVER_NOW, RAISED, RETURNED, AwayRunner, Handling
from kongps.core.dispatch cimport AWAY, Event, Told
from kongps.core.function cimport Function
from kongps.core.thread_locals cimport swap_thread_locals

from greenlet import getcurrent, greenlet

from kongps.core.report import place_of, report
from kongps.errors import PDKError

cdef enum:
    # Threads that are given up because a handler blocks them, before no more are made.
    MOST_REPLACED = 8


async def awaited(function, *args, **named):
    """Runs a function that makes PDK calls; the calls are awaited.

    :param function: called in a greenlet of its own.
    :returns: what it returns.
    """
    made = greenlet(lambda: function(*args, **named))
    waits_for = made.switch()
    while not made.dead:
        try:
            value = await waits_for
        except BaseException as error:
            waits_for = made.throw(error)
        else:
            waits_for = made.switch(value)
    return waits_for


cdef class Task(Handling):
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
        self.thread = threading.Thread(target=self._run, name=f"kongps-async-{number}", daemon=True)
        self.thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self):
        """Ends the loop and the thread, which is not waited for."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    cdef int post(self, object job) except -1:
        """From anywhere: has the thread call a function, or hear of the outcome of a PDK call."""
        self.posted.append(job)
        if not self.due:
            self.due = True
            self.loop.call_soon_threadsafe(self._take_all)
        return 0

    def _take_all(self):
        cdef object job
        self.due = False
        while self.posted:
            job = self.posted.popleft()
            if isinstance(job, Task):
                if not (<Task>job).answered.done():
                    (<Task>job).answered.set_result(None)
                else:  # whoever asked does not wait any more
                    self.free(<Task>job)
            else:
                job()

    cdef int free(self, Task task) except -1:
        """The PDK call of a task is over; the next in its line goes on."""
        task.answered = None
        task.value = task.function = task.args = None
        while task.line:
            waiter = task.line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        return 0

    def begin(self, Task task not None):
        """Makes an asyncio task of a handler. On this thread."""
        coroutine = OwnLocals(self._handle(task))
        task.task = Context().run(self.loop.create_task, coroutine)

    def cancel(self, Task task not None):
        """Cancels a handler. On this thread."""
        if task.task is not None:
            task.task.cancel()

    async def _handle(self, Task task):
        try:
            if task.event is not None:
                kong = task.event.instance.plugin.async_kong(task.event)
                task.coroutine = task.event.instance.handlers[task.event.phase](kong)
            else:
                task.coroutine = task.work[0]()
            value = await task.coroutine
            task.said = RETURNED
            task.value = value
        except BaseException as error:
            task.said = RAISED
            task.value = error
        task.coroutine = None
        self.runner.say(task)


cdef class AsyncRunner(AwayRunner):
    """Runs handlers that are ``async def``.

    :param call_soon, turn: as :class:`AwayRunner` has them.
    """

    cdef AsyncioThread thread(self):
        if self.home is None:
            self.turn.share()
            self.home = AsyncioThread(self, self.replaced + 1)
        return self.home

    def stop(self):
        """Ends the asyncio loop, whatever runs on it."""
        if self.home is not None:
            self.home.stop()
            self.home = None

    cdef int start(self, Event event) except -1:
        cdef Task task = Task()
        task.home = self.thread()
        task.event = event
        event.task = task
        event.hold()
        return task.home.post(lambda: task.home.begin(task))

    def submit(self, function, done):
        """Runs a coroutine function that is no event's handler, such as a plugin's ``start``.

        :param function: called without arguments, awaited.
        :param done: called on the loop's thread with what it returned and what it raised, one of
            which is None.
        """
        cdef Task task = Task()
        task.home = self.thread()
        task.work = (function, done)
        task.home.post(lambda: task.home.begin(task))

    cdef int answer(self, Handling handling) except -1:
        return (<Task>handling).home.post(handling)

    cdef object call(self, Event event, Function function, tuple args):
        cdef Task task
        cdef Told told
        if event.task is None or not isinstance(event.task, Task):
            raise PDKError(function.name, "the event is over; Kong no longer listens")
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
            here.parent.switch(waiter)
        if function.asked_once and event.told is not None and event.state == AWAY:
            told = event.find_told(function, args)
            if told is not None:
                task.home.free(task)
                return told.value
        task.answered = task.home.loop.create_future()
        task.said = CALLS
        task.function = function
        task.args = args
        self.say(task)
        here.parent.switch(task.answered)
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
            return AwayRunner.abandon(self, event)
        return task.home.post(lambda: task.home.cancel(task))

    cdef object give_up(self, Event event):
        cdef Task task
        cdef AsyncioThread home
        if event.task is None:
            return None
        task = <Task?>event.task
        home = task.home
        event.task = None
        path = getattr(event.instance.plugin, "path", "")
        place = place_in(task.coroutine, home.thread.ident, path)
        home.post(lambda: home.cancel(task))
        if getattr(task.coroutine, "cr_running", False) and self.home is home:
            self.replace()
        return place

    def replace(self):
        """Has later handlers run on a new loop: one blocks the present one."""
        if self.replaced == MOST_REPLACED:
            report(
                ERROR, "%d threads for async handlers have been blocked and no more are made: "
                "an async handler has to await what takes time", self.replaced,
            )
            return
        self.replaced += 1
        self.home = None

    cdef int ended(self, Handling handling) except -1:
        cdef Task task = <Task>handling
        task.task = None
        if task.work is None:
            return 0
        done = task.work[1]
        task.work = None
        value, task.value = task.value, None
        try:
            if task.said == RETURNED:
                done(value, None)
            else:
                done(None, value)
        except BaseException as error:
            report(ERROR, "what was to follow on a coroutine failed", error=error)
        return 0


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


cdef class OwnLocals:
    """A coroutine whose ``threading.local`` values are its own.

    :param coroutine: the coroutine.
    """

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __dealloc__(self):
        Py_XDECREF(self.locals)

    cdef PyObject* enter(self) except? NULL:
        """Puts its own values in place; returns those that were there."""
        cdef PyObject* outer
        cdef PyObject* own = self.locals
        self.locals = NULL
        outer = swap_thread_locals(own)
        if not self.begun:
            # It begins with those of the thread: asyncio keeps there which loop runs, up to 3.11.
            self.begun = True
            if outer != NULL:
                copy = dict(<dict>outer)
                Py_INCREF(copy)
                swap_thread_locals(<PyObject*>copy)
        return outer

    def send(self, value):
        """Runs the coroutine on."""
        cdef PyObject* outer = self.enter()
        try:
            return self.coroutine.send(value)
        finally:
            self.locals = swap_thread_locals(outer)

    def throw(self, *error):
        """Raises an exception in the coroutine."""
        cdef PyObject* outer = self.enter()
        try:
            return self.coroutine.throw(*error)
        finally:
            self.locals = swap_thread_locals(outer)

    def close(self):
        """Ends the coroutine."""
        self.coroutine.close()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)


Coroutine.register(OwnLocals)
