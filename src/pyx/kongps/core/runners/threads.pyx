"""Handlers in a bounded pool of threads; see ``thread_runner.pxd``.

Threads are made when there is work for one more, up to a limit, and kept. What has no thread
waits for one until its deadline. A thread whose event was given up is replaced; so many that do
not come back that the limit is reached twice are not.
"""

import sys
from collections import deque
from logging import ERROR
from threading import Thread  # before a plugin may replace it

from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_get_thread_ident, PyThread_release_lock,
)
from cpython.ref cimport Py_XDECREF

from kongps.core.runners.off_loop cimport CALLS, RAISED, RETURNED, OffLoopRunner, HandlerTask, Said
from kongps.core.io.clock cimport monotonic
from kongps.core.dispatch.dispatcher cimport AWAY, OVER, Event, Runner, CachedAnswer, must_have_run
from kongps.core.wire.function cimport Function
from kongps.core.wire.phases cimport phase_name
from kongps.core.runners.thread_locals cimport swap_thread_locals
from kongps.core.io.loop_lock cimport LoopLock

from kongps.core.report import place_of, report
from kongps.errors import PDKError

cdef extern from *:
    """
    #include <malloc.h>

    /* Threads that take turns under Python's lock need no memory pools of their own: with those,
       64 threads hold tens of megabytes that are free. */
    static void kongps_share_arenas(void) {
    #ifdef M_ARENA_MAX
        mallopt(M_ARENA_MAX, 2);
    #endif
    }
    """
    void share_arenas "kongps_share_arenas" () noexcept

cdef enum:
    MOST_THREADS = 64   # that may have work, unless told otherwise
    SLOW_COSTS = 16     # quick events that one slow event of a trial outweighs


cdef class HandlerThread(HandlerTask):
    """A thread of the pool."""

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
        cdef Said said
        cdef PyObject* locals
        cdef PyObject* own
        while True:
            self.saying = False
            with nogil:
                PyThread_acquire_lock(self.wake, WAIT_LOCK)
            if self.event is None and self.work is None:
                return
            self.longest = 0
            self.since = monotonic()
            value = None
            own = swap_thread_locals(NULL)
            context = PyContext_New()
            try:
                PyContext_Enter(context)
                try:
                    if self.event is not None:
                        must_have_run(
                            self.event.instance.handlers[self.event.phase](self.event.make_pdk())
                        )
                    else:
                        value = self.work[0]()
                finally:
                    PyContext_Exit(context)
                said = RETURNED
            except BaseException as error:
                said = RAISED
                value = error
            self.longest = max(self.longest, monotonic() - self.since)
            # What the handler leaves may make PDK calls as it goes.
            context = None
            locals = swap_thread_locals(own)
            Py_XDECREF(locals)
            self.said = said
            self.value = value
            value = None
            self.saying = True
            self.runner.say(self)


cdef class ThreadRunner(OffLoopRunner):
    """Runs handlers in threads.

    :param call_soon, turn: as :class:`OffLoopRunner` has them.
    :param most: most threads that may have work at a time.
    """

    def __init__(self, call_soon, LoopLock turn not None, int most=MOST_THREADS):
        OffLoopRunner.__init__(self, call_soon, turn)
        share_arenas()
        self.most = most
        self.idle = []
        self.waiting = deque()
        self.by_ident = {}
        self.trials = {}

    cdef int hear(self, HandlerTask handling) except -1:
        if self.trials and handling.said != CALLS and handling.event is not None:
            self.judge(<HandlerThread>handling)
        return OffLoopRunner.hear(self, handling)

    cdef int judge(self, HandlerThread thread) except -1:
        cdef tuple which = (thread.event.instance.plugin.name, phase_name(thread.event.phase))
        cdef object trial = self.trials.get(which)
        return 0 if trial is None else (<TrialRunner>trial).judge(thread.longest)

    def end_trial(self, str plugin not None, str phase not None):
        """Looks no more whether a plugin's handlers of a phase are quick."""
        self.trials.pop((plugin, phase), None)

    cdef int start(self, Event event) except -1:
        cdef HandlerThread thread = self.free_thread()
        event.hold()
        if thread is None:
            self.waiting.append(event)
            return 0
        return self.give(thread, event)

    def submit(self, function, done, str what not None, str path not None):
        """Runs something in a thread that is no event's handler, such as a plugin's ``start``.

        :param function: called without arguments.
        :param done: called on the loop's thread with what it returned and what it raised, one of
            which is None.
        :param what: what it is, for the log.
        :param path: the plugin's file.
        """
        cdef HandlerThread thread = self.free_thread()
        if thread is None:
            self.waiting.append((function, done, what, path))
        else:
            self.give(thread, (function, done, what, path))

    def end_late(self, double limit):
        """Lets go of threads whose work, or whose event that is over already, takes too long.

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
                what = thread.event.describe()
                path = thread.event.instance.plugin.path
            else:
                continue
            place = place_of(sys._current_frames().get(thread.thread.ident), path)
            report(
                ERROR, "%s has not ended in %g s%s; its thread is given up", what, limit,
                f", and is at {place}" if place else "",
            )
            self.lose(thread)

    def stop(self):
        """Ends the threads that have nothing to do."""
        cdef HandlerThread thread
        while self.idle:
            thread = self.idle.pop()
            self.dismiss(thread)

    def dismiss(self, HandlerThread thread not None):
        """Ends a thread that has nothing to do."""
        self.threads -= 1
        self.by_ident.pop(thread.thread.ident, None)
        PyThread_release_lock(thread.wake)  # without work: it ends

    cdef bint has_free(self):
        """Whether an event need not wait for a thread."""
        return len(self.idle) > 0 or (
            self.threads - self.stuck < self.most and self.threads < 2 * self.most
        )

    cdef HandlerThread free_thread(self):
        if not self.idle and self.threads - self.stuck < self.most:
            if self.threads < 2 * self.most:
                self.try_to_spawn()
            elif not self.told_full:
                self.told_full = True
                report(
                    ERROR, "%d threads are stuck in handlers and %d more are not made: events of "
                    "plugins that block wait for the others, and fail when that takes too long",
                    self.stuck, self.threads,
                )
        return <HandlerThread>self.idle.pop() if self.idle else None

    cdef int try_to_spawn(self) except -1:
        """Makes a thread; without one, what is to run waits, and fails when that takes too long."""
        try:
            self.spawn()
            self.told_refused = False
        except Exception as error:
            if not self.told_refused:
                self.told_refused = True
                report(ERROR, "no thread can be made for handlers, beyond %d", self.threads,
                       error=error)
        return 0

    cdef int spawn(self) except -1:
        cdef HandlerThread made = HandlerThread()
        self.turn.share()
        made.runner = self
        self.started += 1
        made.thread = Thread(
            target=made.run, name=f"kongps-handler-{self.started}", daemon=True
        )
        made.thread.start()
        self.by_ident[made.thread.ident] = made
        self.threads += 1
        self.idle.append(made)
        return 0

    cdef int give(self, HandlerThread thread, object job) except -1:
        if isinstance(job, Event):
            thread.event = <Event>job
            thread.event.task = thread
        else:
            thread.work = job
        thread.begun = monotonic()
        PyThread_release_lock(thread.wake)
        return 0

    cdef int answer(self, HandlerTask handling) except -1:
        PyThread_release_lock((<HandlerThread>handling).wake)
        return 0

    cdef object call(self, Event event, Function function, tuple args):
        cdef HandlerThread thread
        cdef CachedAnswer told
        cdef object found = self.by_ident.get(PyThread_get_thread_ident())
        if found is None or (<HandlerThread>found).event is not event:
            raise PDKError(
                function.name,
                "called from outside the handler of its event: the event is over, or this is "
                "another thread than the handler's",
            )
        thread = <HandlerThread>found
        if thread.saying:
            raise PDKError(
                function.name, "called while another call is made, or after the handler's end"
            )
        if function.asked_once and event.told is not None and event.state == AWAY:
            told = event.find_told(function, args)
            if told is not None:
                return told.value
        thread.longest = max(thread.longest, monotonic() - thread.since)
        thread.said = CALLS
        thread.function = function
        thread.args = args
        thread.saying = True
        self.say(thread)
        with nogil:
            PyThread_acquire_lock(thread.wake, WAIT_LOCK)
        thread.saying = False
        thread.since = monotonic()
        return thread.result()

    cdef int abandon(self, Event event) except -1:
        if event.task is not None:
            return OffLoopRunner.abandon(self, event)
        try:
            self.waiting.remove(event)
        except ValueError:
            pass  # it waits for its instance to start
        return 0

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

    def lose(self, HandlerThread thread not None):
        """Counts a thread out that does not come back, and gives its place to another."""
        thread.given_up = True
        self.stuck += 1
        self.next_job(None)

    def next_job(self, HandlerThread thread):
        """Has what waits run: in `thread`, or in a new one."""
        while self.waiting:
            if thread is None:
                thread = self.free_thread()
                if thread is None:
                    return
            self.give(thread, self.waiting.popleft())
            return
        if thread is not None:
            self.idle.append(thread)

    cdef int ended(self, HandlerTask handling) except -1:
        cdef HandlerThread thread = <HandlerThread>handling
        if thread.work is not None:
            self.work_done(thread)
        if thread.given_up:
            thread.given_up = False
            self.stuck -= 1
            self.told_full = False
            if self.threads - self.stuck > self.most:
                self.dismiss(thread)
                return 0
        self.next_job(thread)
        return 0


cdef class TrialRunner(Runner):
    """Runs the handlers of a plugin's phase until it is known whether they are quick.

    A few at a time run inline, under the watchdog's eyes; with more, they run in threads while
    there are some, so that a burst of events at the beginning does not block one after the other.

    :param plugin: the plugin's name.
    :param phase: the phase's name.
    :param inline: where handlers run that are quick.
    :param threads: where the others do.
    :param most_inline: most events at a time that run inline meanwhile.
    :param needed: so many events have to be quick, and 16 more for each that is not.
    :param threshold: seconds between two PDK calls that are not quick, in a thread.
    :param passed: called with plugin and phase when they are.
    """

    def __init__(self, str plugin not None, str phase not None, Runner inline not None,
                 ThreadRunner threads not None, int most_inline, int needed, double threshold,
                 passed):
        self.inline = inline
        self.threads = threads
        self.most_inline = most_inline
        self.needed = self.left = needed
        self.threshold = threshold
        self.inline_events = []
        self.passed = lambda: passed(plugin, phase)
        threads.trials[plugin, phase] = self

    cdef int start(self, Event event) except -1:
        cdef Event one
        cdef list inline_events = []
        for one in self.inline_events:
            if one.state == OVER:
                self.judge(0.0)  # the watchdog would have said so
            else:
                inline_events.append(one)
        self.inline_events = inline_events
        if self.left == 0 or len(inline_events) < self.most_inline or (
            self.most_inline and not self.threads.has_free()
        ):
            inline_events.append(event)
            event.runner = self.inline
        else:
            event.runner = self.threads
        return event.runner.start(event)

    cdef int abandon(self, Event event) except -1:
        return 0  # it waits for its instance to start

    cdef int judge(self, double seconds) except -1:
        """Takes note of how long a handler has gone without a PDK call."""
        if self.left == 0:
            return 0
        if seconds > self.threshold:
            # It may have waited for Python's lock: one that blocks does so more often than that.
            self.left = min(self.needed, self.left + SLOW_COSTS)
        else:
            self.left -= 1
        if self.left == 0:
            self.passed()
        return 0
