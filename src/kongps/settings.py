"""The settings of a server: one object from flags, environment and defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Callable

from kongps.errors import UsageError

# Prefix of the environment variables; the rest is the setting's name in capitals.
ENVIRONMENT_PREFIX = "KONGPS_"

# What may become of a request whose handler failed: it ends with a 500, or goes on.
ON_ERROR = ("closed", "open")


@dataclass
class Settings:
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
    :ivar log_level: least level logged.
    :ivar log_format: ``text`` or ``json``.
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
}


def from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The settings that environment variables give, by name.

    :param environment: the variables; ``KONGPS_SOCKET_MODE`` is ``socket_mode``, and so on.
    :raises UsageError: for a value that the setting cannot have.
    """
    names = {ENVIRONMENT_PREFIX + field.name.upper(): field.name for field in fields(Settings)}
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
