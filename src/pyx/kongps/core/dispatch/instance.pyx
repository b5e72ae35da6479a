"""A plugin's object for one configuration."""

from kongps.core.io.clock cimport coarse_monotonic

from kongps.core.wire.phases import PHASE_NAMES


cdef class Instance:
    """A plugin's object for one configuration.

    :param id: the id that Kong knows it by.
    :param plugin: the :class:`kongps.plugins.plugin.Plugin`.
    :param config: the configuration as Kong sent it, decoded.
    :param started: when it was started, seconds since the epoch.
    :param handlers: its handlers by phase name, each of which takes a `kong`; and ``close``, called
        without arguments when the instance is closed, if there is one.
    :param failure: why the instance could not start; its events then fail. None otherwise.
    :param runners: where handlers run, by phase name; those that are not named run where the
        dispatcher's do.
    """

    def __init__(self, int64_t id, plugin, config, double started, dict handlers not None,
                 str failure=None, dict runners=None):
        self.id = id
        self.plugin = plugin
        self.config = config
        self.started = started
        self.failure = failure
        self.kong = plugin.kong
        self.pipelined = plugin.pipelined
        self.on_error = plugin.on_error
        self.handlers = [handlers.get(name) for name in PHASE_NAMES]
        if runners:
            self.runners = [runners.get(name) for name in PHASE_NAMES]
        self.close = handlers.get("close")
        self.last_used = coarse_monotonic()

    def run_in(self, str phase not None, runner):
        """Runs the handler of a phase elsewhere from the next event on.

        :param phase: the phase's name.
        :param runner: where, a :class:`kongps.core.dispatch.event.Runner`.
        """
        if self.runners is None:
            self.runners = [None] * len(PHASE_NAMES)
        self.runners[PHASE_NAMES.index(phase)] = runner

    @property
    def has_started(self):
        """Whether no ``start`` of the plugin's is under way."""
        return self.waiting is None

    def hold_events(self):
        """Makes events wait from now on, until ``Dispatcher.release_events``."""
        if self.waiting is None:
            self.waiting = []

    @property
    def last_use(self):
        """When it was last used, for sorting: the clock ticks, so the event's number counts too."""
        return self.last_used, self.last_event
