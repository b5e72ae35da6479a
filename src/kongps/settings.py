"""The settings of a server, each of them once.

From a setting's field in :class:`Settings` come its flag, its environment variable, its line in
``--help`` and its row in the README's table (``make docs``). To add one, add a field.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, NamedTuple

from kongps.errors import UsageError

# Prefix of the environment variables; the rest is the setting's name in capitals.
ENVIRONMENT_PREFIX = "KONGPS_"

# Kong's prefix where nothing else is given: Kong's own default, and that of both older servers.
DEFAULT_PREFIX = "/usr/local/kong"

# Bytes of the longest path of a unix socket on Linux: sun_path has 108, with the one that ends it.
LONGEST_SOCKET_PATH = 107

# The smallest and the largest `max_message`: every message fits into the first, and ProtoBuf:1
# cannot announce more than the second.
LEAST_MAX_MESSAGE = 4096
MOST_MAX_MESSAGE = 4294967295

# Most worker processes. Each has links with all others, and its number in the ids of events.
MAX_WORKERS = 64

# Where handlers run: where each plugin's fit, or all of them in one way.
HANDLERS = ("auto", "inline", "thread")

# What becomes of a request whose handler failed: it ends with a 500, or goes on.
ON_ERROR = ("closed", "open")

# The levels of log records, lowest first, and how a record is written.
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")


def number(read: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    """What reads a number from a range, by `read`; it raises ValueError for any other."""

    def parse(text: str) -> Any:
        value = read(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return parse


def read_workers(text: str) -> int:
    """Reads a number of worker processes; ``auto`` is the number of cores that may be used."""
    return len(os.sched_getaffinity(0)) if text == "auto" else int(text)


def parse_switch(text: str) -> bool:
    """Reads 1, true, yes, on; 0, false, no, off."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(text)


class Unit(NamedTuple):
    """How the values of a setting are written.

    :ivar metavar: what stands for a value in ``--help``; empty for a switch, whose flag has none.
    :ivar expected: what a value must be, as a message says it.
    :ivar parse: reads a value; raises ValueError when it is none.
    :ivar show: writes a value.
    :ivar negatable: whether a switch has a flag ``--no-…`` too.
    """

    metavar: str
    expected: str = ""
    parse: Callable[[str], Any] = str
    show: Callable[[Any], str] = str
    negatable: bool = False


def choice(*values: str, metavar: str = "") -> Unit:
    """The unit of a setting that has one of some values.

    :param metavar: what stands for them in ``--help``; the values themselves by default.
    """

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(text)
        return text

    return Unit(metavar or "|".join(values), f"one of {', '.join(values)}", parse)


DIRECTORY = Unit("DIR")
PATH = Unit("PATH")
MODE = Unit(
    "MODE",
    "a set of permissions in octal, such as 0660",
    number(partial(int, base=8), 0, 0o777),
    "{:04o}".format,
)
COUNT = Unit("N", "a whole number, 1 or more", number(int, 1, float("inf")))
BYTES = COUNT._replace(metavar="BYTES")
MESSAGE_BYTES = Unit(
    "BYTES",
    f"a whole number, {LEAST_MAX_MESSAGE} to {MOST_MAX_MESSAGE}",
    number(int, LEAST_MAX_MESSAGE, MOST_MAX_MESSAGE),
)
SECONDS = Unit(
    "SECONDS",
    "a number of seconds, 0 or more",
    number(float, 0, sys.float_info.max),
    "{:g}".format,
)
WORKERS = Unit(
    "N|auto",
    f"a number of workers, 1 to {MAX_WORKERS}, or auto",
    number(read_workers, 1, MAX_WORKERS),
)
SWITCH = Unit("", "one of 1, true, yes, on, 0, false, no, off", parse_switch)
ON_OFF = SWITCH._replace(negatable=True)


def _setting(default: Any, unit: Unit, help: str, *, flag: bool = True) -> Any:
    """The field of a setting.

    :param help: what the setting is, for ``--help`` and the README; each speaks of the default.
    :param flag: whether it has a flag, beside the environment variable.
    """
    return dataclasses.field(default=default, metadata={"unit": unit, "help": help, "flag": flag})


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of one server; ``Settings()`` has the defaults."""

    plugins_directory: str = _setting("", DIRECTORY, "where the plugins are")
    socket: str = _setting("", PATH, "the unix socket that Kong connects to")
    # For a Kong that connects to the socket of kong-python-pluginserver: see cli/legacy.py.
    second_socket: str = _setting("", PATH, "a second unix socket; none when empty", flag=False)
    socket_mode: int = _setting(0o600, MODE, "the socket's permissions, in octal")
    listen_queue_size: int = _setting(4096, COUNT, "how many connections may wait to be accepted")
    shutdown_timeout: float = _setting(
        10.0, SECONDS, "time for running events to finish after SIGTERM or SIGINT"
    )
    # Kong itself waits 60 s for an answer.
    event_timeout: float = _setting(
        60.0, SECONDS, "time without a step from Kong after which an event is ended"
    )
    parent_watch: bool = _setting(
        False,
        ON_OFF,
        "end when the process that started the server is gone; the flags of the older servers "
        "switch it on",
    )
    handlers: str = _setting(
        "auto",
        choice(*HANDLERS),
        "where handlers that are not async run: on the server's own thread, the fastest "
        "(inline), in a pool of threads (thread), or where each plugin's fit (auto); a plugin can "
        "choose for itself",
    )
    # A thread costs about 100 KB once it has run.
    handler_threads: int = _setting(64, COUNT, "how many threads may run handlers at a time")
    block_threshold: float = _setting(
        0.02,
        SECONDS,
        "time for which a handler may hold the server's thread before its plugin's handlers run "
        "in threads; 0: no limit",
    )
    handler_timeout: float = _setting(
        50.0,
        SECONDS,
        "time after which an event fails if its handler has not ended, below the 60 s that Kong "
        "waits; 0: no limit",
    )
    on_error: str = _setting(
        "closed",
        choice(*ON_ERROR),
        "what becomes of a request whose handler fails: it ends with a 500, or goes on; a plugin "
        "can choose for itself",
    )
    no_instance_store: bool = _setting(
        False,
        SWITCH,
        "do not keep instances in a database beside the socket; after a restart, Kong has to "
        "start them again",
    )
    instance_ttl: float = _setting(
        600.0,
        SECONDS,
        "time without an event after which an instance is closed, to be started again when it is "
        "used; 0: no limit",
    )
    # Kong has one connection and one event for each request under way; its nginx workers take
    # 16384 each by default. An event holds about 7 KB.
    max_connections: int = _setting(65536, COUNT, "how many connections may be open; others wait")
    max_events: int = _setting(65536, COUNT, "how many events may be under way; one more fails")
    # nginx itself buffers request bodies of up to 1 MiB by default.
    max_message: int = _setting(
        67108864,
        MESSAGE_BYTES,
        "the longest message taken from Kong; a longer one closes its connection",
    )
    # Each nginx worker starts an instance for each configuration, and leaves it when it ends.
    max_instances: int = _setting(
        65536,
        COUNT,
        "how many instances are kept; for one more, the one used least recently is closed",
    )
    # Four of the largest messages.
    max_unfinished: int = _setting(
        268435456,
        BYTES,
        "how much of half-received messages is held, of all connections together; with more, the "
        "connection that holds most is closed",
    )
    no_pipelining: bool = _setting(
        False, SWITCH, "wait for Kong's answer to every PDK call, also to one without a result"
    )
    workers: int = _setting(
        1, WORKERS, "processes that run handlers; auto: one for each core that may be used"
    )
    reload: bool = _setting(
        False,
        SWITCH,
        "reload the plugins when a file in their directory changes (needs watchfiles)",
    )
    allow_unsafe_plugins: bool = _setting(
        False,
        SWITCH,
        "load plugins that anyone but root and the server's user can write",
    )
    no_lua_style: bool = _setting(
        False,
        SWITCH,
        "PDK calls of plugins in kong-python-pdk's layout return the value and raise errors, "
        "instead of returning (value, err)",
    )
    log_level: str = _setting(
        "info",
        choice(*LOG_LEVELS, metavar="LEVEL"),
        f"the lowest level that is logged: {', '.join(LOG_LEVELS)}",
    )
    log_format: str = _setting("text", choice(*LOG_FORMATS), "how log records are written")


class Setting(NamedTuple):
    """One of :class:`Settings`, as its flag, its environment variable and its help have it."""

    name: str
    default: Any
    unit: Unit
    help: str
    flag: bool

    @property
    def flag_name(self) -> str:
        """``--socket-mode``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """``KONGPS_SOCKET_MODE``."""
        return f"{ENVIRONMENT_PREFIX}{self.name.upper()}"

    @property
    def default_text(self) -> str:
        """The default as a flag's value would be written; empty for a switch and for "none"."""
        return "" if self.default in ("", False) else self.unit.show(self.default)


SETTINGS = {
    each.name: Setting(each.name, each.default, **each.metadata)
    for each in dataclasses.fields(Settings)
}


def from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The settings that environment variables give, by name.

    Variables that only look like one are passed over: Kubernetes makes such names of a service
    that is called kongps.

    :param environment: the variables.
    :raises UsageError: for a value that the setting cannot have.
    """
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        text = environment.get(setting.variable)
        if text is None:
            continue
        try:
            found[name] = setting.unit.parse(text)
        except ValueError:
            raise UsageError(
                f"{setting.variable}={text!r} is not {setting.unit.expected}"
            ) from None
    return found
