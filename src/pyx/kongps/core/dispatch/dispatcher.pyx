"""Instances, events, phases and handlers; see ``dispatch.pxd``.

An event begins with a ``HandleEvent`` and lives until its handler has returned or raised, has
ended the request, or was abandoned by Kong. In between it is either running or waiting for the
``Step`` that brings the answer to a PDK call; steps may come on any connection.
"""

cimport cython

import secrets
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from logging import ERROR, INFO, WARNING

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF

from kongps.core.io.clock cimport coarse_monotonic as monotonic
from kongps.core.wire.function cimport Function, find_function
from kongps.core.wire.phases cimport NO_PHASE, phase_name
from kongps.core.wire.protocol cimport (
    COMMAND, HANDLE_EVENT, MAX_MESSAGE, STEP, STEP_ERROR, Call, Protocol,
)

from kongps.core.wire.body_file import BodyFile
from kongps.core.wire.phases import PHASE_NAMES
from kongps.core.report import report, told_of
from kongps.errors import KongpsError, PDKError, PackError

cdef enum:
    FIRST_EVENTS = 64   # places of the event table at first; it doubles when half of it is taken
    # Most events under way, unless told otherwise; each holds about 7 KB. Kong has at most one for
    # each connection that its nginx workers serve (worker_connections, 16384 each by default).
    MAX_EVENTS = 65536
    LONGEST_REQUEST_ID = 128    # characters; a UUID has 36
    NO_EVENT = -1       # holds a connection for a command

# Headers of a request that have its id, by Kong's correlation-id plugin or something before Kong.
cdef frozenset REQUEST_ID_HEADERS = frozenset({
    "kong-request-id", "x-kong-request-id", "x-request-id", "x-correlation-id",
})

# Seconds, below the 60 that Kong waits for an answer.
HANDLER_TIMEOUT = 50.0

# What a Lua plugin's error ends in (kong/init.lua); the client sees the same from this server.
UNEXPECTED = (500, {"message": "An unexpected error occurred"})
cdef Function EXIT = Function(
    "kong.response.exit", phases=("rewrite", "access", "response", "preread"), since="2.0",
    terminal=True,
)
cdef Function LOG_ERR = Function("kong.log.err", phases=PHASE_NAMES, since="2.0")


class HandlerTimeout(BaseException):
    """Ends a handler that has held the loop's thread for longer than ``--handler-timeout``.

    It derives from BaseException, so that a handler's ``except Exception`` does not hold it up.
    """


class HandlerExit(BaseException):
    """Ends a handler whose event is over: after ``kong.response.exit``, or abandoned by Kong.

    It derives from BaseException, so that a handler's ``except Exception`` does not hold it up.
    """


cdef class Instance:
    """A plugin's object for one configuration.

    :param id: the id that Kong knows it by.
    :param plugin: the :class:`kongps.plugins.plugin.Plugin`.
    :param config: the configuration as Kong sent it, decoded.
    :param started: when it was started, seconds since the epoch.
    :param handlers: its handlers by phase name, each taking one `kong`; and ``close``, called
        without arguments when the instance is closed, if there is one.
    :param failure: why the instance could not start; its events then fail. None otherwise.
    :param runners: where handlers run, by phase name; those that are not named, where the
        dispatcher has handlers run.
    """

    def __init__(self, int64_t id, plugin, config, double started, dict handlers not None,
                 str failure=None, dict runners=None):
        self.id = id
        self.plugin = plugin
        self.config = config
        self.started = started
        self.failure = failure
        self.pdk = plugin.kong
        self.plain_pdk = is_plain(self.pdk)
        self.pipelined = plugin.pipelined
        self.on_error = plugin.on_error
        self.handlers = [handlers.get(name) for name in PHASE_NAMES]
        if runners:
            self.runners = [runners.get(name) for name in PHASE_NAMES]
        self.close = handlers.get("close")
        self.last_used = monotonic()

    def run_in(self, str phase not None, Runner runner not None):
        """Has the handler of a phase run elsewhere from the next event on.

        :param phase: the phase's name.
        :param runner: where.
        """
        if self.runners is None:
            self.runners = [None] * len(PHASE_NAMES)
        self.runners[PHASE_NAMES.index(phase)] = runner

    @property
    def has_started(self):
        """Whether no ``start`` of the plugin's is under way."""
        return self.starting is None

    def hold_events(self):
        """Has events wait from now on, until ``release_events``."""
        if self.starting is None:
            self.starting = []

    def release_events(self, str failure=None):
        """Runs the events that have waited. On the loop's thread.

        :param failure: why the instance could not start: they fail, as all later ones.
        """
        cdef list waiting = self.starting
        cdef Event event
        self.starting = None
        if failure is not None:
            self.failure = failure
            self.handlers = [None] * len(PHASE_NAMES)
        for event in waiting or ():
            if event.state != AWAY:
                continue
            event.take_back()
            if failure is not None:
                event.fail(failure)
            else:
                event.dispatcher.run(event, True)
            event.protocol.send()


cdef class CachedAnswer:
    """An answer of Kong that holds for the rest of its event; a chain of them."""


@cython.freelist(64)
cdef class Event:
    """One phase of one request, handled by one plugin instance."""

    def __dealloc__(self):
        Py_XDECREF(self.locals)

    cdef int drop_locals(self) except -1:
        """The handler has ended; what it left in ``threading.local`` objects goes with it."""
        cdef PyObject* locals = self.locals
        self.locals = NULL
        Py_XDECREF(locals)
        return 0

    cdef int ask(self, Function function, tuple args) except -1:
        """Asks Kong to call `function`. The event is WAITING when the answer is to come as a step.

        :raises PDKError: when the event is over, or the function has no place in this phase.
        :raises TypeError: for an argument that Kong would not take.
        """
        cdef bint awaited
        if self.state == ASKING:
            raise PDKError(function.name, "called while the arguments of another call are packed")
        if self.state != RUNNING:
            raise PDKError(function.name, "the event is over; Kong no longer listens")
        if function.unavailable:
            raise PDKError(function.name, function.unavailable)
        if not function.phase_bits & (1 << self.phase):
            raise PDKError(
                function.name,
                f"cannot be called in the {phase_name(self.phase)} phase, "
                f"only in: {', '.join(function.phases) or 'none'}",
            )
        while args and args[-1] is None:
            args = args[:-1]
        function.check(args)
        if self.too_late():
            return 0
        if function.setter & self.told_changed_by:
            self.drop_answers(function)
        self.state = ASKING
        try:
            awaited = self.protocol.answer_pdk_call(
                self.sequence, self.id, function, args,
                self.dispatcher.pipelining and self.instance.pipelined,
            )
        except PackError as error:
            raise TypeError(str(error)) from None
        finally:
            self.state = RUNNING
        if function.terminal:
            self.dispatcher.forget_event(self)
        elif awaited:
            self.state = WAITING
        return 0

    cdef bint too_late(self) except -1:
        """Whether Kong has given the event up by now; if so it ends, and its connection too.

        Kong may use the connection for another call by then, and take an answer for that one's.
        """
        if monotonic() - self.last_step <= self.dispatcher.event_timeout:
            return False
        report(
            WARNING, "%s: no answer for %d s, Kong has given it up", self.describe(),
            <int>(monotonic() - self.last_step),
        )
        self.protocol.give_up(self.sequence)
        self.dispatcher.forget_event(self)
        return True

    cdef CachedAnswer find_told(self, Function function, tuple args):
        """What Kong has answered to this call already; None if it has not been asked."""
        cdef CachedAnswer told = self.told
        while told is not None:
            if told.function is function and (told.args is args or told.args == args):
                return told
            told = told.next
        return None

    cdef int remember(self, Function function, tuple args, object value) except -1:
        """Keeps an answer that cannot change, if the plugin cannot change it either."""
        cdef CachedAnswer told
        if value is not None and not isinstance(value, str) and not isinstance(value, (int, float)):
            return 0
        if function.lasting is not None and args not in function.lasting:
            return 0
        told = CachedAnswer.__new__(CachedAnswer)
        told.function = function
        told.args = args
        told.value = value
        told.next = self.told
        self.told = told
        self.told_changed_by |= function.changed_by
        return 0

    cdef int drop_answers(self, Function setter) except -1:
        """Forgets the answers that a call of `setter` may change."""
        cdef CachedAnswer told = self.told
        cdef CachedAnswer kept = None
        cdef CachedAnswer next_told
        self.told_changed_by = 0
        while told is not None:
            next_told = told.next
            if not told.function.changed_by & setter.setter:
                self.told_changed_by |= told.function.changed_by
                told.next = kept
                kept = told
            told = next_told
        self.told = kept
        return 0

    cdef int returned(self) except -1:
        """The handler has returned."""
        if self.state == WAITING:
            self.ended = True
        elif self.state == RUNNING and not self.too_late():
            self.dispatcher.forget_event(self)
            self.protocol.answer_return(self.sequence, self.id)
        return 0

    cdef int raised(self, object error) except -1:
        """The handler has raised `error`: the request ends with a 500 where it still can."""
        cdef str reason
        if self.ended:
            return 0  # given up before
        if self.state == OVER:
            if not isinstance(error, HandlerExit):
                report(
                    ERROR, "%s raised %s after its event was over", self.describe(),
                    type(error).__name__, error=error, config=self.instance.config,
                )
            return 0
        reason = f"{self.describe()} raised {type(error).__name__}"
        report(ERROR, "%s", reason, error=error, config=self.instance.config)
        self.untold = told_of(reason, error, self.instance.config)
        if self.state == WAITING:
            self.ended = True
            self.failure = reason
            return 0
        return self.fail(reason)

    cdef int fail(self, str reason) except -1:
        """Answers for a handler that cannot be run or has failed.

        `reason` is what Kong logs in the phases that cannot end the request.
        """
        cdef str told = self.untold
        if self.state == OVER or self.too_late():
            return 0
        if told is not None and self.tell():
            self.ended = True
            self.failure = reason
            self.state = WAITING
            return 0
        self.dispatcher.forget_event(self)
        if not EXIT.phase_bits & (1 << self.phase):
            self.protocol.answer_failure(self.sequence, self.id, told or reason)
        elif (self.instance.on_error or self.dispatcher.on_error) == "open":
            self.protocol.answer_return(self.sequence, self.id)
        else:
            self.protocol.answer_pdk_call(self.sequence, self.id, EXIT, UNEXPECTED, False)
        return 0

    cdef int hold(self) except -1:
        """The handler goes on elsewhere; Kong's call is answered later."""
        self.state = AWAY
        return self.protocol.hold(self.id)

    cdef int take_back(self) noexcept:
        """The loop acts for an event that was AWAY."""
        self.state = RUNNING
        return 0

    cdef int overdue(self, object where) except -1:
        """The handler has had its time: the event fails, whatever the handler does.

        `where` says where it is now, None where nobody can tell.
        """
        cdef str limit = f"{self.dispatcher.handler_timeout:g} s"
        cdef str reason = f"{self.describe()} has not ended in {limit}"
        report(ERROR, "%s%s; its event fails", reason, f", and is at {where}" if where else "")
        if self.state == AWAY:
            self.take_back()
        self.untold = f"{reason}, and is at {where}" if where else reason
        return self.fail(reason)

    cdef object make_pdk(self):
        """What the handler gets."""
        if self.instance.plain_pdk:
            return bind(self.instance.pdk, self)
        return self.instance.pdk(self)

    cdef bint tell(self) except -1:
        """Has Kong log why the handler failed; returns whether its answer comes as a step."""
        cdef str text = self.untold
        self.untold = None
        if self.protocol.logs_failures and not EXIT.phase_bits & (1 << self.phase):
            return False
        try:
            return self.protocol.answer_pdk_call(
                self.sequence, self.id, LOG_ERR, (text,),
                self.dispatcher.pipelining and self.instance.pipelined,
            )
        except Exception as error:  # the request is answered for, whatever becomes of the text
            report(WARNING, "%s: Kong cannot be told of it", self.describe(), error=error)
            return False

    cdef object describe(self):
        cdef object request = self.find_request_id()
        cdef str text = (
            f"plugin {self.instance.plugin.name}, {phase_name(self.phase)} handler, "
            f"instance {self.instance.id}, event {self.id}"
        )
        return f"{text}, request {request}" if request else text

    cdef object find_request_id(self):
        """The request's id, if the handler has asked for it; else None."""
        cdef CachedAnswer told = self.told
        while told is not None:
            if is_request_id(told.value) and (
                told.function.name == "kong.nginx.get_var"
                or told.function.name == "kong.request.get_header"
                # Of a class of the plugin's, its own methods are not called.
                and isinstance(told.args[0], str) and str.lower(told.args[0]) in REQUEST_ID_HEADERS
            ):
                return told.value
            told = told.next
        return None


cdef int refuse_unrun(object returned) except -1:
    cdef str kind
    if not isinstance(returned, (Awaitable, Generator, AsyncGenerator)):
        return 0
    kind = type(returned).__name__
    if isinstance(returned, (Coroutine, Generator)):
        returned.close()
    raise TypeError(
        f"the handler has not run: what was called returned a {kind}; make the handler itself "
        "`async def`, or have it run what it returns"
    )


cdef bint is_request_id(object value) except -1:
    """Whether text may stand in a log as a request's id: a header has what its client sends."""
    return (
        isinstance(value, str) and 0 < len(value) <= LONGEST_REQUEST_ID
        and value.isascii() and value.isprintable() and " " not in value
    )


cdef int fail_dead_event(Protocol protocol, int64_t sequence, int64_t event, int phase,
                         bint let_through) except -1:
    """Answers a call of an event that is lost, as for a handler that has failed."""
    if phase != NO_PHASE and not EXIT.phase_bits & (1 << phase):
        return protocol.answer_failure(sequence, event, "the event is not here any more")
    if let_through:
        return protocol.answer_return(sequence, event)
    protocol.answer_pdk_call(sequence, event, EXIT, UNEXPECTED, False)
    return 0


cdef class Runner:
    """Where handlers run; the one interface between dispatch and greenlets, threads, ….

    Dispatch calls `start` and `resume` with an event that is RUNNING; when they return, the
    handler waits for Kong or is done, and has reported either to the event; or it goes on
    elsewhere, and the event is on `hold`.
    """

    cdef int start(self, Event event) except -1:
        """Runs the event's handler until it waits or ends."""
        raise NotImplementedError

    cdef int resume(self, Event event) except -1:
        """Runs it on with what Kong's step brought."""
        raise NotImplementedError

    cdef object call(self, Event event, Function function, tuple args):
        """From the handler: asks Kong, waits, gives the answer."""
        raise NotImplementedError

    cdef int abandon(self, Event event) except -1:
        """Ends a handler whose event is over: no step will come, or it is AWAY."""
        raise NotImplementedError

    cdef object give_up(self, Event event):
        """Lets go of a handler that is AWAY for too long. Says where it is, if that is known."""
        return None


cdef class DeferredResult:
    """The answer to a command that is not known yet: a command's handler returns it.

    Whoever made it calls ``resolve`` or ``fail``, once, on the loop's thread.
    """

    def resolve(self, result):
        """Answers with a result."""
        self.result = result
        self.known = True
        self.answer()

    def fail(self, str text not None):
        """Answers with an error."""
        self.error = text
        self.known = True
        self.answer()

    cdef int give(self, Protocol protocol, int64_t sequence) except -1:
        """Says whom the answer is for."""
        self.protocol = protocol
        self.sequence = sequence
        if self.known:
            return self.answer()
        return protocol.hold(NO_EVENT)

    cdef int answer(self) except -1:
        if self.protocol is None:
            return 0  # `give` comes
        if self.error is not None:
            self.protocol.answer_error(self.sequence, self.error)
        else:
            self.protocol.answer_result(self.sequence, self.result)
        return self.protocol.send()


cdef class Dispatcher:
    """Takes calls, finds the instance or the event they are for, and runs handlers.

    :param runner: where handlers run.
    :param event_timeout: seconds without a step after which Kong has given an event up. Kong
        itself waits 60 s for an answer.
    :param pipelining: whether a PDK call without a result need not be waited for, where the
        protocol allows that.
    :param on_error: what becomes of a request whose handler failed, where its plugin does not say:
        ``closed`` ends it with a 500, ``open`` lets it through.
    :param max_events: most events under way; one more fails.
    :param max_message: bytes of the longest message that connections take; with a longer one, its
        connection is closed.
    :param handler_timeout: seconds after which an event fails whose handler has not ended; it
        stays below Kong's own 60 s.
    """

    def __init__(self, Runner runner not None, double event_timeout=60.0, bint pipelining=True,
                 str on_error not None="closed", uint64_t max_events=MAX_EVENTS,
                 double handler_timeout=HANDLER_TIMEOUT, size_t max_message=MAX_MESSAGE):
        self.runner = runner
        self.max_message = max_message
        self.handler_timeout = handler_timeout
        self.on_error = on_error
        self.max_events = max_events
        self.event_timeout = event_timeout
        self.pipelining = pipelining
        self.instances = {}
        self.commands = {}
        # An id of a server that was here before is not one of ours.
        self.events.last_id = secrets.randbelow(1 << 31)
        self.worker_part = -1
        self.heard = monotonic()
        self.missed = set()
        self.lets_lost_pass = on_error == "open"

    def __dealloc__(self):
        cdef uint64_t place
        for place in range(self.events.capacity):
            if self.events.places[place] != NULL:
                Py_DECREF(<object>self.events.places[place])
        PyMem_Free(self.events.places)

    # --- what Python sees of it --------------------------------------------------------------

    def on_command(self, str method not None, handler):
        """Has `handler` answer every call of `method`.

        :param method: such as ``plugin.StartInstance``.
        :param handler: takes the call's argument, returns its result; what it raises becomes
            the error that Kong gets.
        """
        self.commands[method] = handler

    def be_worker(self, int number):
        """Has the ids of events tell in which worker they live.

        :param number: the worker's, below 4096.
        """
        if not 0 <= number < 1 << WORKER_BITS:
            raise ValueError(f"no worker has the number {number}")
        self.worker_part = <int64_t>number << NUMBER_BITS

    def add_instance(self, Instance instance not None):
        """Takes in an instance; its events are served from now on."""
        if instance.id in self.instances:
            raise ValueError(f"instance {instance.id} exists")
        self.instances[instance.id] = instance

    def remove_instance(self, int64_t id):
        """Takes out an instance. Events of it that are under way go on to their end.

        :returns: the :class:`Instance`.
        :raises KongpsError: when there is none with this id, in the words that Kong knows.
        """
        cdef Instance instance = self.instance(id)
        del self.instances[id]
        return instance

    def instance(self, int64_t id):
        """:returns: the :class:`Instance` with this id.
        :raises KongpsError: when there is none, in the words that Kong knows.
        """
        cdef object found = self.instances.get(id)
        if found is None:
            raise KongpsError(no_instance(id))
        return found

    def on_missing_instance(self, handler):
        """Has `handler` look for an instance that an event is for and that is not here.

        :param handler: takes the id; adds the :class:`Instance` and returns it, or raises a
            KongpsError when there is none.
        """
        self.find_missing = handler

    def all_instances(self):
        """:returns: a list of every :class:`Instance`."""
        return list(self.instances.values())

    def idle_instances(self, double seconds):
        """Those without an event under way, of which no event has started for some time.

        :param seconds: how long.
        :returns: a list of :class:`Instance`, the one first that was used least recently.
        """
        cdef double before = monotonic() - seconds
        cdef Instance instance
        cdef uint64_t place
        cdef list idle = []
        cdef set busy = set()
        for instance in self.instances.values():
            if instance.last_used <= before:
                idle.append(instance)
        if not idle:
            return idle
        for place in range(self.events.capacity):
            if self.events.places[place] != NULL:
                busy.add((<Event><object>self.events.places[place]).instance.id)
        idle = [one for one in idle if one.id not in busy]
        idle.sort(key=last_use)
        return idle

    @property
    def live_instances(self):
        """How many instances are here."""
        return len(self.instances)

    @property
    def live_events(self):
        """How many events are under way."""
        return self.events.live

    def abandon_idle_events(self):
        """Ends the events that Kong has not stepped for ``event_timeout`` seconds.

        Kong never says that it has given up an event, as after a PDK call that it refused.

        :returns: how many there were.
        """
        return self._abandon(monotonic() - self.event_timeout, "Kong has given it up")

    def abandon_all_events(self):
        """Ends every event that waits for Kong.

        :returns: how many there were.
        """
        return self._abandon(float("inf"), "the server ends")

    cdef int connection_lost(self, Protocol protocol) except -1:
        """Ends the event that a connection belonged to; most belong to none."""
        cdef Event event
        if protocol.event:
            event = self.find_event(protocol.event)
            if event is not None and (event.state == WAITING or event.state == AWAY):
                self.drop(event)
        return 0

    cdef int drop(self, Event event) except -1:
        """Ends an event that is WAITING or AWAY, and its handler."""
        self.forget_event(event)
        return 0 if event.ended else event.runner.abandon(event)

    def _abandon(self, double before, str reason):
        cdef uint64_t place
        cdef Event event
        cdef list idle = []
        for place in range(self.events.capacity):
            if self.events.places[place] != NULL:
                event = <Event><object>self.events.places[place]
                if event.last_step <= before and (event.state == WAITING or event.state == AWAY):
                    idle.append(event)
        for event in idle:
            report(INFO, "%s is ended: %s", event.describe(), reason)
            if event.state == AWAY or event.protocol.event == event.id:
                event.protocol.give_up(event.sequence)  # out of step with Kong from now on
            self.drop(event)
            event.protocol.send()
        return len(idle)

    def abandon_event(self, int64_t id):
        """Ends an event of which Kong was told that it has failed, if it is not over.

        :param id: the event's.
        """
        cdef Event event = self.find_event(id)
        if event is not None and (event.state == WAITING or event.state == AWAY):
            self.drop(event)

    def end_late_handlers(self):
        """Fails the events whose handlers are AWAY for more than ``handler_timeout`` seconds.

        Those that wait for Kong are looked at when its step comes, and inline ones by their
        watchdog.

        :returns: how many there were.
        """
        cdef uint64_t place
        cdef Event event
        cdef list late = []
        cdef double before = monotonic() - self.handler_timeout
        for place in range(self.events.capacity):
            if self.events.places[place] != NULL:
                event = <Event><object>self.events.places[place]
                if event.state == AWAY and event.started <= before:
                    late.append(event)
        for event in late:
            if event.state != AWAY:
                continue  # the end of another has ended it
            if event.instance.starting is not None:
                event.overdue("the start() of its instance")
            else:
                event.overdue(event.runner.give_up(event))
                event.runner.abandon(event)
            event.protocol.send()
        return len(late)

    # --- the path of an event ----------------------------------------------------------------

    cdef int handle(self, Call call, Protocol protocol) except -1:
        """Carries out one call. Whatever goes wrong in it becomes its answer."""
        if call.kind == STEP or call.kind == STEP_ERROR:
            return self.handle_step(call, protocol)
        if call.kind == HANDLE_EVENT:
            return self.handle_event(call, protocol)
        if call.kind == COMMAND:
            return self.handle_command(call, protocol)
        return protocol.answer_error(call.sequence, call.value)

    cdef int handle_event(self, Call call, Protocol protocol) except -1:
        cdef object found = self.instances.get(call.target)
        cdef Instance instance
        cdef Event event
        if found is None:
            found = self.missing(call.target)
            if found is None:
                return protocol.answer_error(call.sequence, no_instance(call.target))
        instance = <Instance>found
        event = self.new_event(instance, call.phase)
        instance.last_used = event.last_step
        event.protocol = protocol
        event.sequence = call.sequence
        self.handled += 1
        instance.last_event = self.handled
        if self.events.live > self.max_events:
            report(WARNING, "%s is not run: too many events wait for Kong", event.describe())
            return event.fail("too many events are under way")
        if instance.starting is not None:
            event.hold()
            instance.starting.append(event)
            return 0
        if instance.handlers[call.phase] is not None:
            return self.run(event, True)
        if instance.failure is not None:
            return event.fail(instance.failure)
        return event.fail(self.miss(instance.plugin.name, phase_name(call.phase)))

    cdef str miss(self, str plugin, str phase):
        """Says, once, that Kong runs a phase that a plugin has no handler for."""
        cdef str reason = f"plugin {plugin} has no {phase} handler"
        if (plugin, phase) not in self.missed:
            self.missed.add((plugin, phase))
            report(
                ERROR, "%s, and Kong runs that phase: its requests fail until Kong is restarted, "
                "and so learns of the plugin as it is now", reason,
            )
        return reason

    cdef object missing(self, int64_t id):
        """The instance with an id that none here has, or None."""
        if self.find_missing is None:
            return None
        try:
            return <Instance?>self.find_missing(id)
        except KongpsError:
            return None
        except Exception as error:
            report(ERROR, "instance %d cannot be looked for", id, error=error)
            return None

    cdef int fail_lost_event(self, Call call, Protocol protocol) except -1:
        """Answers a step for an event that is not here: of a server that was here before, or given up.

        To an error, Kong would let the request through.
        """
        cdef int phase = NO_PHASE
        if self.worker_part >= 0:
            phase = event_phase(call.target)
        report(WARNING, "event %d is not here any more: its request fails", call.target)
        return fail_dead_event(
            protocol, call.sequence, call.target, phase, self.lets_lost_pass
        )

    cdef int handle_step(self, Call call, Protocol protocol) except -1:
        cdef Event event = self.find_event(call.target)
        if event is None and call.target > 0:
            return self.fail_lost_event(call, protocol)
        if event is None or event.state != WAITING:
            return protocol.answer_error(call.sequence, f"No event {call.target} waits for a step")
        event.protocol = protocol
        event.sequence = call.sequence
        event.value = call.value
        call.value = None
        event.failed = call.kind == STEP_ERROR
        event.last_step = self.heard
        event.state = RUNNING
        if event.ended:
            return event.returned() if event.failure is None else event.fail(event.failure)
        if event.last_step - event.started > self.handler_timeout:
            event.overdue("a PDK call that has taken its time")
            return event.runner.abandon(event)
        return self.run(event, False)

    cdef int run(self, Event event, bint first) except -1:
        """Has the runner start or resume a handler; what the runner cannot do ends the event."""
        try:
            if first:
                event.runner.start(event)
            else:
                event.runner.resume(event)
        except BaseException as error:
            report(ERROR, "%s could not be run", event.describe(), error=error)
        if event.state == RUNNING:
            event.fail(f"{event.describe()} has left its event without an answer")
        return 0

    cdef int handle_command(self, Call call, Protocol protocol) except -1:
        cdef object handler = self.commands.get(call.method)
        if handler is None or (call.method.startswith("kongps.") and not protocol.is_peer):
            return protocol.answer_error(call.sequence, f"unknown method {call.method}")
        cdef double since = self.heard
        try:
            result = handler(call.value)
            if monotonic() - since > self.event_timeout and not protocol.is_peer:
                report(WARNING, "%s took too long: Kong has given it up", call.method)
                return protocol.give_up(call.sequence)
            if isinstance(result, DeferredResult):
                return (<DeferredResult>result).give(protocol, call.sequence)
            protocol.answer_result(call.sequence, result)
        except Exception as error:
            # What a command raises on purpose is its answer; a result that cannot be packed is not.
            if isinstance(error, KongpsError) and not isinstance(error, PackError):
                protocol.answer_error(call.sequence, str(error))
                return 0
            report(ERROR, "%s failed", call.method, error=error)
            protocol.answer_error(call.sequence, f"{call.method} failed: {type(error).__name__}")
        return 0

    # --- the table of events -----------------------------------------------------------------

    cdef Event new_event(self, Instance instance, int phase):
        cdef Event event = Event.__new__(Event)
        cdef uint64_t mask
        if self.events.live * 2 >= self.events.capacity:
            self.grow_events()
        mask = self.events.capacity - 1
        self.events.last_id += 1
        while self.events.places[<uint64_t>self.events.last_id & mask] != NULL:
            self.events.last_id += 1
        event.id = self.events.last_id
        if self.worker_part >= 0:
            self.events.last_id &= (<int64_t>1 << NUMBER_BITS) - 1
            event.id = self.events.last_id | self.worker_part | <int64_t>phase << PHASE_SHIFT
        event.instance = instance
        event.phase = phase
        event.dispatcher = self
        event.runner = self.runner
        if instance.runners is not None and instance.runners[phase] is not None:
            event.runner = <Runner>instance.runners[phase]
        event.state = RUNNING
        event.started = event.last_step = self.heard
        Py_INCREF(event)  # the table's
        self.events.places[<uint64_t>event.id & mask] = <PyObject*>event
        self.events.live += 1
        return event

    cdef Event find_event(self, int64_t id):
        cdef PyObject* found
        if self.events.capacity == 0:
            return None
        found = self.events.places[<uint64_t>id & (self.events.capacity - 1)]
        if found == NULL or (<Event>found).id != id:
            return None
        return <Event>found

    cdef void forget_event(self, Event event) noexcept:
        """Marks an event as over and takes it out of the table."""
        cdef uint64_t place
        if event.state == OVER:
            return
        event.state = OVER
        place = <uint64_t>event.id & (self.events.capacity - 1)
        self.events.places[place] = NULL
        self.events.live -= 1
        Py_DECREF(event)

    cdef int grow_events(self) except -1:
        cdef uint64_t capacity = self.events.capacity * 2 or FIRST_EVENTS
        cdef PyObject** places = <PyObject**>PyMem_Calloc(capacity, sizeof(PyObject*))
        cdef uint64_t place
        cdef PyObject* event
        if places == NULL:
            raise MemoryError
        for place in range(self.events.capacity):
            event = self.events.places[place]
            if event != NULL:
                # Ids that differ in their low bits differ in more of them: no place is hit twice.
                places[<uint64_t>(<Event>event).id & (capacity - 1)] = event
        PyMem_Free(self.events.places)
        self.events.places = places
        self.events.capacity = capacity
        return 0


def last_use(Instance instance not None):
    """When an instance was last used; the clock ticks, so the number of the event counts too."""
    return instance.last_used, instance.last_event


cdef str no_instance(int64_t id):
    # Kong starts an instance anew when it reads these words; 2.0 - 2.2 want the capital N.
    return f"No plugin instance {id}"


# --- what a handler holds ----------------------------------------------------------------------

cdef extern from *:
    """
    /* An object without __init__: a namespace is made at each access of `kong.request`. */
    static PyObject* kongps_new_object(PyObject* type, PyObject* no_args) {
        return ((PyTypeObject*)type)->tp_new((PyTypeObject*)type, no_args, NULL);
    }
    """
    object kongps_new_object(object kind, tuple no_args)


cdef object bind(object kind, Event event):
    """Makes a namespace for an event. `kind` was checked to be a plain class of namespaces."""
    cdef Namespace made = <Namespace>kongps_new_object(kind, ())
    made.event = event
    return made


def is_plain(kind):
    """Whether a class of namespaces leaves making its objects to :class:`Namespace`."""
    return (
        isinstance(kind, type)
        and issubclass(kind, Namespace)
        and kind.__init__ is Namespace.__init__
        and kind.__new__ is Namespace.__new__
    )


cdef class Namespace:
    """A part of the PDK, bound to one event; ``kong`` itself and ``kong.request`` are such.

    :param event: the event whose request it is about.
    """

    def __init__(self, Event event not None):
        self.event = event

    def _call(self, str function not None, *args):
        """Has Kong call a PDK function and waits for its answer.

        :param function: the full name, such as ``kong.request.get_header``.
        :param args: its arguments; None at the end is left out.
        :returns: what the function returned; nil is None.
        :raises PDKError: when Kong says that it failed, when it cannot be called in this phase
            or from a plugin server, and when the event is over.
        :raises TypeError: for an argument that Kong would not take.
        """
        cdef object value = self.event.runner.call(self.event, find_function(function), args)
        if type(value) is BodyFile:
            return value.read(function)
        return value

    def _as(self, kind):
        """:returns: another namespace for the same event; `kind` is a plain class of one."""
        return bind(kind, self.event)

    @property
    def _phase(self):
        """The name of the phase that the event is in."""
        return phase_name(self.event.phase)


cdef class namespace:
    """Class attribute that gives a :class:`Namespace` bound to the same event.

    :param kind: the class of the namespace.
    """
    cdef object kind

    def __init__(self, kind):
        if not is_plain(kind):
            raise TypeError("a namespace is a class derived from Namespace, without __init__")
        self.kind = kind

    def __get__(self, holder, owner):
        if holder is None:
            return self.kind
        return bind(self.kind, (<Namespace?>holder).event)
