"""From a call to a plugin's code, and back; see ``dispatcher.pxd``."""

from logging import ERROR, INFO, WARNING

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from kongps.core.dispatch.deferred cimport DeferredResult
from kongps.core.dispatch.event cimport (
    OFF_LOOP, RUNNING, WAITING, Event, EventRules, Runner, fail_lost_event, move,
)
from kongps.core.dispatch.event_table cimport TAG_BITS, EventTable
from kongps.core.dispatch.instance cimport Instance
from kongps.core.io.clock cimport coarse_monotonic
from kongps.core.wire.phases cimport phase_name
from kongps.core.wire.protocol cimport (
    COMMAND, HANDLE_EVENT, STEP, STEP_ERROR, Call, Protocol, send_answer,
)

from kongps.core.dispatch.namespace import is_plain
from kongps.core.report import report
from kongps.core.wire.phases import PHASE_NAMES
from kongps.errors import KongpsError, NoInstance, PackError


cdef class Dispatcher:
    """Takes calls, finds the instance or the event they are for, and runs handlers.

    :param runner: where handlers run whose instance does not say otherwise.
    :param event_timeout: seconds without a step after which Kong has given an event up. Kong
        itself waits 60 s for an answer.
    :param handler_timeout: seconds after which an event fails whose handler has not ended.
    :param pipelining: whether a PDK call without a result need not be waited for, where the
        protocol allows that.
    :param on_error: what becomes of a request whose handler failed, where its plugin does not say:
        ``closed`` ends it with a 500, ``open`` lets it through.
    :param max_events: limit on events under way; one more fails.
    """

    def __init__(self, Runner runner not None, *, double event_timeout, double handler_timeout,
                 bint pipelining, str on_error not None, uint64_t max_events):
        self.events = EventTable()
        self.rules = EventRules(event_timeout, handler_timeout, pipelining, on_error)
        self.runner = runner
        self.max_events = max_events
        self.instances = {}
        self.commands = {}
        self.missing_handlers = set()
        self.lost_events_pass = on_error == "open"

    # --- what the server sets up and asks ----------------------------------------------------

    def on_command(self, str method not None, handler):
        """Sets what answers a command.

        :param method: such as ``plugin.StartInstance``.
        :param handler: takes the call's argument and returns its result, or a
            :class:`DeferredResult`; what it raises becomes the error that Kong gets.
        """
        self.commands[method] = handler

    def on_missing_instance(self, handler):
        """Sets what looks for an instance that an event is for and that is not here.

        :param handler: takes the id; adds the :class:`Instance` and returns it, or raises
            NoInstance.
        """
        self.find_missing = handler

    def tag_event_ids(self, int tag):
        """Puts a tag into the ids of all events, so that an id shows its process.

        :param tag: 0 to 4095.
        """
        if not 0 <= tag < 1 << TAG_BITS:
            raise ValueError(f"a tag of event ids is a number below {1 << TAG_BITS}, not {tag}")
        self.events.tag = tag

    def add_instance(self, Instance instance not None):
        """Adds an instance; its events are served from now on."""
        if instance.id in self.instances:
            raise ValueError(f"instance {instance.id} exists")
        instance.kong_is_plain = is_plain(instance.kong)
        self.instances[instance.id] = instance

    def remove_instance(self, int64_t id):
        """Removes an instance. Events of it that are under way go on to their end.

        :returns: the :class:`Instance`.
        :raises NoInstance: when there is none with this id.
        """
        cdef Instance instance = self.instance(id)
        del self.instances[id]
        return instance

    def instance(self, int64_t id):
        """:returns: the :class:`Instance` with this id.
        :raises NoInstance: when there is none.
        """
        cdef object found = self.instances.get(id)
        if found is None:
            raise NoInstance(id)
        return found

    def all_instances(self):
        """:returns: a list of every :class:`Instance`."""
        return list(self.instances.values())

    def idle_instances(self, double seconds):
        """The instances without an event under way, of which no event has started for some time.

        :param seconds: how long.
        :returns: a list of :class:`Instance`, the least recently used first.
        """
        cdef double before = coarse_monotonic() - seconds
        cdef Instance instance
        cdef Event event
        cdef set busy
        cdef list idle = []
        for instance in self.instances.values():
            if instance.last_used <= before:
                idle.append(instance)
        if not idle:
            return idle
        busy = {event.instance.id for event in self.events.all()}
        idle = [one for one in idle if one.id not in busy]
        idle.sort(key=lambda one: one.last_use)
        return idle

    def release_events(self, Instance instance not None, str failure=None):
        """Runs the events that have waited for an instance to start. On the loop's thread.

        :param failure: why the instance could not start: they fail, as all later ones.
        """
        cdef list waiting = instance.waiting
        cdef Event event
        instance.waiting = None
        if failure is not None:
            instance.failure = failure
            instance.handlers = [None] * len(PHASE_NAMES)
        for event in waiting or ():
            if event.state != OFF_LOOP:
                continue
            event.return_to_loop()
            if failure is not None:
                event.fail(failure)
            else:
                event.run(True)
            send_answer(event.protocol)

    @property
    def live_instances(self):
        """How many instances are here."""
        return len(self.instances)

    @property
    def live_events(self):
        """How many events are under way."""
        return self.events.live

    # --- events that do not end by themselves ------------------------------------------------

    def abandon_idle_events(self):
        """Ends the events that Kong has not stepped for ``event_timeout`` seconds.

        Kong never says that it has given up an event, as after a PDK call that it refused.

        :returns: how many there were.
        """
        return self._abandon(
            coarse_monotonic() - self.rules.event_timeout, "Kong has abandoned it"
        )

    def abandon_all_events(self):
        """Ends every event that waits for Kong or runs elsewhere.

        :returns: how many there were.
        """
        return self._abandon(float("inf"), "the server ends")

    def _abandon(self, double before, str reason):
        cdef Event event
        cdef list idle = [
            event for event in self.events.all() if event.last_step <= before and event.is_pending()
        ]
        for event in idle:
            report(INFO, "%s is ended: %s", event.describe(), reason)
            if event.state == OFF_LOOP or event.protocol.event == event.id:
                event.protocol.give_up(event.sequence)  # out of step with Kong from now on
            self.drop(event)
            send_answer(event.protocol)
        return len(idle)

    def abandon_event(self, int64_t id):
        """Ends an event if it is not over; Kong has got an answer for it that says it failed.

        :param id: the event's.
        """
        cdef Event event = self.find_event(id)
        if event is not None and event.is_pending():
            self.drop(event)

    def end_late_handlers(self):
        """Fails the events whose handlers are OFF_LOOP for more than ``handler_timeout`` seconds.

        Those that wait for Kong are checked when its step comes, and inline ones by their watchdog.

        :returns: how many there were.
        """
        cdef Event event
        cdef double before = coarse_monotonic() - self.rules.handler_timeout
        cdef list late = [
            event for event in self.events.all()
            if event.state == OFF_LOOP and event.started <= before
        ]
        for event in late:
            if event.state != OFF_LOOP:
                continue  # the end of another one has ended it
            if event.instance.waiting is not None:
                event.overdue("the start() of its instance")
            else:
                event.overdue(event.runner.give_up(event))
                event.runner.abandon(event)
            send_answer(event.protocol)
        return len(late)

    cdef int connection_lost(self, Protocol protocol) except -1:
        """Ends the event that a connection belonged to; most belong to none."""
        cdef Event event
        if protocol.event:
            event = self.find_event(protocol.event)
            if event is not None and event.is_pending():
                self.drop(event)
        return 0

    cdef int drop(self, Event event) except -1:
        """Ends an event that is pending, and its handler."""
        event.end()
        return 0 if event.ended else event.runner.abandon(event)

    # --- the path of an event ----------------------------------------------------------------

    cdef int handle(self, Call call, Protocol protocol, double now) except -1:
        """Carries out one call that came at `now`. Whatever goes wrong in it becomes its answer."""
        if call.kind == STEP or call.kind == STEP_ERROR:
            return self.handle_step(call, protocol, now)
        if call.kind == HANDLE_EVENT:
            return self.handle_event(call, protocol, now)
        if call.kind == COMMAND:
            return self.handle_command(call, protocol, now)
        return protocol.answer_error(call.sequence, call.value)

    cdef int handle_event(self, Call call, Protocol protocol, double now) except -1:
        cdef object found = self.instances.get(call.target)
        cdef Instance instance = self.look_for_instance(call.target) if found is None else <Instance>found
        cdef Event event
        if instance is None:
            return protocol.answer_no_instance(call.sequence, str(NoInstance(call.target)))
        event = self.new_event(instance, call.phase, now)
        instance.last_used = now
        event.protocol = protocol
        event.sequence = call.sequence
        self.handled += 1
        instance.last_event = self.handled
        if self.events.live > self.max_events:
            report(
                WARNING, "%s is not run: too many events are under way (--max-events)",
                event.describe(),
            )
            return event.fail("too many events are under way")
        if instance.waiting is not None:
            event.leave_loop()
            instance.waiting.append(event)
            return 0
        if instance.handlers[call.phase] is not None:
            return event.run(True)
        if instance.failure is not None:
            return event.fail(instance.failure)
        return event.fail(self._no_handler(instance.plugin.name, phase_name(call.phase)))

    cdef int handle_step(self, Call call, Protocol protocol, double now) except -1:
        cdef Event event = self.find_event(call.target)
        if event is None and call.target > 0:
            # Of a server that ran here before, or given up. To an error, Kong would let the
            # request through.
            report(WARNING, "event %d does not exist any more: its request fails", call.target)
            return fail_lost_event(
                protocol, call.sequence, call.target, self.events.phase_of(call.target),
                self.lost_events_pass,
            )
        if event is None or event.state != WAITING:
            return protocol.answer_error(call.sequence, f"No event {call.target} waits for a step")
        protocol.read_step(call)
        event.protocol = protocol
        event.sequence = call.sequence
        event.value = call.value
        call.value = None
        event.failed = call.kind == STEP_ERROR
        event.last_step = now
        move(event, RUNNING)
        if event.ended:
            return event.returned() if event.failure is None else event.fail(event.failure)
        if event.last_step - event.started > self.rules.handler_timeout:
            event.overdue("a PDK call that has taken its time")
            return event.runner.abandon(event)
        return event.run(False)

    cdef int handle_command(self, Call call, Protocol protocol, double now) except -1:
        cdef object handler = self.commands.get(call.method)
        if handler is None:
            return protocol.answer_error(call.sequence, f"unknown method {call.method}")
        try:
            result = handler(call.value)
            if coarse_monotonic() - now > self.rules.event_timeout:
                report(WARNING, "%s took too long: Kong has abandoned it", call.method)
                return protocol.give_up(call.sequence)
            if isinstance(result, DeferredResult):
                return (<DeferredResult>result).answer_to(protocol, call.sequence)
            protocol.answer_result(call.sequence, result)
        except NoInstance as error:
            protocol.answer_no_instance(call.sequence, str(error))
        except Exception as error:
            # What a command raises on purpose is its answer; a result that cannot be packed is not.
            if isinstance(error, KongpsError) and not isinstance(error, PackError):
                return protocol.answer_error(call.sequence, str(error))
            report(ERROR, "%s failed", call.method, error=error)
            protocol.answer_error(call.sequence, f"{call.method} failed: {type(error).__name__}")
        return 0

    cdef Event new_event(self, Instance instance, int phase, double now):
        cdef Event event = Event.__new__(Event)
        event.instance = instance
        event.phase = phase
        event.rules = self.rules
        event.table = self.events
        event.runner = self.runner
        if instance.runners is not None and instance.runners[phase] is not None:
            event.runner = <Runner?>instance.runners[phase]
        event.started = event.last_step = now
        event.id = self.events.add(event, phase)
        return event

    cdef Event find_event(self, int64_t id):
        cdef PyObject* found = self.events.find(id)
        return None if found == NULL else <Event>found

    cdef Instance look_for_instance(self, int64_t id):
        """An instance that is not in memory, from wherever it is kept; None if there is none."""
        if self.find_missing is None:
            return None
        try:
            return <Instance?>self.find_missing(id)
        except KongpsError:
            return None
        except Exception as error:
            report(ERROR, "instance %d could not be looked up", id, error=error)
            return None

    def _no_handler(self, str plugin, str phase):
        """Why an event fails whose phase the plugin does not handle; logged once for each phase."""
        cdef str reason = f"plugin {plugin} has no {phase} handler"
        if (plugin, phase) not in self.missing_handlers:
            self.missing_handlers.add((plugin, phase))
            report(
                ERROR, "%s, and Kong runs that phase: its requests fail until Kong is restarted, "
                "and so learns of the plugin as it is now", reason,
            )
        return reason
