"""The settings of a server: one object from flags, environment and defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Callable

from kongps.data import Data
from kongps.errors import UsageError

# Prefix of the environment variables; the rest is the setting's name in capitals.
ENVIRONMENT_PREFIX = "KONGPS_"

# Seconds without an event after which an instance is closed, to come back from the store.
INSTANCE_TTL = 600.0

# Most connections, and most events under way. Kong has one of each for every request in its hands;
# its nginx workers take 16384 each by default. An event holds about 7 KB.
MAX_CONNECTIONS = 65536
MAX_EVENTS = 65536

# Most instances. Each nginx worker starts one for each configuration, and leaves it when it ends.
MAX_INSTANCES = 65536

# Bytes of the longest message taken from Kong, which has a body in it; nginx itself buffers request
# bodies of up to 1 MiB by default. Least and most that it may be set to: what every message needs,
# and what ProtoBuf:1 can say.
MAX_MESSAGE = 67108864
LEAST_MAX_MESSAGE = 4096
MOST_MAX_MESSAGE = 4294967295

# Bytes of messages that have not come whole, of all connections together: four of the largest.
MAX_UNFINISHED = 268435456

# Where handlers run: as each plugin says or turns out to need, or all of them in one way.
HANDLERS = ("auto", "inline", "thread")

# Most threads that may run handlers at a time. One costs about 100 KB once it has run.
HANDLER_THREADS = 64

# Seconds for which a handler may hold the loop's thread before it runs in threads.
BLOCK_THRESHOLD = 0.02

# Seconds after which an event fails whose handler has not ended: Kong waits 60 for an answer.
HANDLER_TIMEOUT = 50.0

# Most worker processes. Each has links with all others, and its number in the ids of events.
MAX_WORKERS = 64

# What may become of a request whose handler failed: it ends with a 500, or goes on.
ON_ERROR = ("closed", "open")

# From what level on records are logged, and how a record is written.
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")


class Settings(Data, frozen=False):
    """What a server is told.

    :ivar plugins_directory: where the plugins are.
    :ivar socket: path of the unix socket that Kong connects to.
    :ivar second_socket: path of another one, for a Kong that was told of it; none when empty.
    :ivar socket_mode: permissions of the socket.
    :ivar listen_queue_size: connections that may wait to be accepted.
    :ivar shutdown_timeout: seconds that running events get to finish after SIGTERM.
    :ivar event_timeout: seconds without a step after which an event counts as given up by Kong;
        Kong itself waits 60 s for an answer.
    :ivar parent_watch: whether the server ends when the process that started it is gone.
    :ivar no_lua_style: whether PDK calls return the value and raise errors in plugins of
        kong-python-pdk's layout; otherwise they return ``(value, err)``.
    :ivar no_pipelining: whether every PDK call waits for Kong's answer, also one without a result
        over ProtoBuf:1.
    :ivar on_error: what becomes of a request whose handler failed, one of ``ON_ERROR``; a plugin
        may say otherwise for itself.
    :ivar no_instance_store: whether instances are forgotten with the server's end.
    :ivar instance_ttl: seconds without an event after which an instance is closed and comes back
        from the store; 0 for never.
    :ivar handlers: where handlers run, one of ``HANDLERS``; a plugin may say otherwise for itself.
    :ivar handler_threads: most threads that may run handlers at a time.
    :ivar block_threshold: seconds for which an inline handler may hold the server before its
        plugin's handlers run in threads; 0 for any time.
    :ivar handler_timeout: seconds after which an event fails whose handler has not ended; 0 for
        never.
    :ivar max_connections: most connections; others wait.
    :ivar max_events: most events under way; one more fails.
    :ivar max_instances: most instances without an event under way; for one more, the one that was
        used least recently is closed.
    :ivar max_message: bytes of the longest message taken; with a longer one, its connection is
        closed.
    :ivar max_unfinished: bytes of messages that have not come whole, of all connections together;
        with more, the connection that holds most of them is closed.
    :ivar workers: processes that run handlers; with more than one, or with `reload`, a supervisor
        starts them.
    :ivar reload: whether plugins are loaded anew when a file in their directory changes.
    :ivar allow_unsafe_plugins: whether plugins are loaded that others than root and the server's
        user may write.
    :ivar log_level: least level logged, one of ``LOG_LEVELS``.
    :ivar log_format: one of ``LOG_FORMATS``.
    """

    plugins_directory: str = ""
    socket: str = ""
    second_socket: str = ""
    socket_mode: int = 0o600
    listen_queue_size: int = 4096
    shutdown_timeout: float = 10.0
    event_timeout: float = 60.0
    parent_watch: bool = False
    no_lua_style: bool = False
    no_pipelining: bool = False
    on_error: str = "closed"
    no_instance_store: bool = False
    instance_ttl: float = INSTANCE_TTL
    handlers: str = "auto"
    handler_threads: int = HANDLER_THREADS
    block_threshold: float = BLOCK_THRESHOLD
    handler_timeout: float = HANDLER_TIMEOUT
    max_connections: int = MAX_CONNECTIONS
    max_events: int = MAX_EVENTS
    max_instances: int = MAX_INSTANCES
    max_message: int = MAX_MESSAGE
    max_unfinished: int = MAX_UNFINISHED
    workers: int = 1
    reload: bool = False
    allow_unsafe_plugins: bool = False
    log_level: str = "info"
    log_format: str = "text"


def parse_mode(text: str) -> int:
    """Reads file permissions as `chmod` takes them.

    :param text: octal digits, such as ``0660``.
    :raises ValueError: when they are no permissions.
    """
    mode = int(text, 8)
    if not 0 <= mode <= 0o777:
        raise ValueError(text)
    return mode


def parse_seconds(text: str) -> float:
    """Reads a number of seconds, 0 or more.

    :raises ValueError: when it is none.
    """
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def parse_count(text: str) -> int:
    """Reads a whole number, 1 or more.

    :raises ValueError: when it is none.
    """
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def parse_message_size(text: str) -> int:
    """Reads the bytes that a message may have.

    :raises ValueError: when it is no whole number, or none that `max_message` may be.
    """
    size = int(text)
    if not LEAST_MAX_MESSAGE <= size <= MOST_MAX_MESSAGE:
        raise ValueError(text)
    return size


def parse_workers(text: str) -> int:
    """Reads a number of worker processes; ``auto`` is the number of cores that may be used.

    :raises ValueError: when it is none.
    """
    count = len(os.sched_getaffinity(0)) if text == "auto" else parse_count(text)
    if count > MAX_WORKERS:
        raise ValueError(text)
    return count


def parse_switch(text: str) -> bool:
    """Reads a switch: 1, true, yes, on; 0, false, no, off.

    :raises ValueError: when it is none.
    """
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "socket_mode": parse_mode,
    "listen_queue_size": parse_count,
    "shutdown_timeout": parse_seconds,
    "event_timeout": parse_seconds,
    "parent_watch": parse_switch,
    "no_lua_style": parse_switch,
    "no_pipelining": parse_switch,
    "no_instance_store": parse_switch,
    "instance_ttl": parse_seconds,
    "handler_threads": parse_count,
    "block_threshold": parse_seconds,
    "handler_timeout": parse_seconds,
    "max_connections": parse_count,
    "max_events": parse_count,
    "max_instances": parse_count,
    "max_message": parse_message_size,
    "max_unfinished": parse_count,
    "workers": parse_workers,
    "reload": parse_switch,
    "allow_unsafe_plugins": parse_switch,
}


def from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The settings that environment variables give, by name.

    :param environment: the variables; ``KONGPS_SOCKET_MODE`` is ``socket_mode``, and so on.
    :raises UsageError: for a value that the setting cannot have.
    """
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in Settings._fields}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable not in names:
            continue  # Kubernetes makes such names of a service that is called kongps
        name = names[variable]
        try:
            found[name] = _PARSERS.get(name, str)(text)
        except ValueError:
            raise UsageError(
                f"{variable}={text!r} is no value for {name}; "
                f"an example is {_example(getattr(Settings, name), name)}"
            ) from None
    return found


def _example(default: Any, name: str) -> str:
    return format(default, "04o") if name == "socket_mode" else str(default).lower()
