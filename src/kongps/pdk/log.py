"""``kong.log``: Kong's error log, and what logging plugins are given."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from kongps.core.dispatch.namespace import Namespace, namespace

__all__ = ["Inspect", "Log", "log_argument", "log_arguments", "log_table"]

# The functions of kong.log that do not write their arguments to a line.
_OTHER = ("kong.log.set_serialize_value", "kong.log.set_format", "kong.log.new")

_DEEPEST = 32
_LOWEST_INT = -(1 << 63)
_HIGHEST_INT = (1 << 64) - 1


def _text(value: object) -> str:
    """`value` as text that can be sent, whatever its ``__str__`` does."""
    try:
        text = str.__str__(str(value))
    except Exception:
        return f"<{type(value).__name__} that has no text>"
    if text.isascii():
        return text
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def log_argument(value: object) -> object:
    """`value` as it can be written to a log: str, int, float, bool or bytes, else its text."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return value if _LOWEST_INT <= value <= _HIGHEST_INT else str(value)  # type: ignore[operator]
    if kind is bool or kind is float or kind is bytes:
        return value
    return _text(value)


def log_table(value: object, within: tuple[int, ...] = ()) -> object:
    """`value` with its lists and dicts kept, and everything in them as :func:`log_argument`.

    :param within: the ids of the lists and dicts around it; one in itself is written as text.
    """
    if value is None and within:
        return None
    if isinstance(value, (dict, list, tuple)) and (
        len(within) < _DEEPEST and id(value) not in within
    ):
        within = (*within, id(value))
        if isinstance(value, dict):
            return {_log_key(name): log_table(item, within) for name, item in value.items()}
        return [log_table(item, within) for item in value]
    return log_argument(value)


def _log_key(name: object) -> object:
    # A Lua table takes no NaN for a key, and Kong's keys are text and whole numbers.
    return log_argument(name) if type(name) is int else _text(name)


def log_arguments(name: str, args: tuple[object, ...]) -> tuple[object, ...]:
    """The arguments of a PDK call without types, fit to be written if the function is a log's.

    :param name: the function's name, such as ``kong.log.err``.
    """
    if name == "kong.log" or (name.startswith("kong.log.") and name not in _OTHER):
        # Lists and dicts are arguments of inspect and deprecation.
        return tuple(
            log_table(each) if isinstance(each, (dict, list)) else log_argument(each)
            for each in args
        )
    return args


def _decoded(text: str | bytes) -> Any:
    """Decodes JSON; the json module takes texts that are not UTF-8, and twice the time."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return json.loads(text)


class Inspect(Namespace):
    """``kong.log.inspect``: values written in full, for debugging."""

    __slots__ = ()

    def __call__(self, *args: object) -> None:
        """Writes values to Kong's log, tables with their content, several lines each.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: anything; what cannot be sent is written as its text. Kong 3.x writes at
            level debug or notice, by version.
        """
        self._call("kong.log.inspect", *map(log_table, args))

    def on(self) -> None:
        """Switches :meth:`__call__` on for this plugin, in the worker that handles the event.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.
        """
        self._call("kong.log.inspect.on")

    def off(self) -> None:
        """Switches :meth:`__call__` off for this plugin, in the worker that handles the event.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.
        """
        self._call("kong.log.inspect.off")


class Log(Namespace):
    """``kong.log``: Kong's error log.

    Each call is a round trip to Kong, also when Kong's ``log_level`` drops the line. What is no
    str, int, float, bool or bytes is written as its ``str()``, and no argument can make a call
    fail. Arguments are put one after the other, without a space between them.
    """

    __slots__ = ()

    inspect = namespace(Inspect)

    def __call__(self, *args: object) -> None:
        """Writes a line at level notice.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log", *map(log_argument, args))

    def emerg(self, *args: object) -> None:
        """Writes a line at level emerg, the highest.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.emerg", *map(log_argument, args))

    def alert(self, *args: object) -> None:
        """Writes a line at level alert.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.alert", *map(log_argument, args))

    def crit(self, *args: object) -> None:
        """Writes a line at level crit.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.crit", *map(log_argument, args))

    def err(self, *args: object) -> None:
        """Writes a line at level error.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.err", *map(log_argument, args))

    def warn(self, *args: object) -> None:
        """Writes a line at level warn.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.warn", *map(log_argument, args))

    def notice(self, *args: object) -> None:
        """Writes a line at level notice, Kong's default ``log_level``.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.notice", *map(log_argument, args))

    def info(self, *args: object) -> None:
        """Writes a line at level info.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.info", *map(log_argument, args))

    def debug(self, *args: object) -> None:
        """Writes a line at level debug.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param args: the parts of the line.
        """
        self._call("kong.log.debug", *map(log_argument, args))

    def deprecation(
        self,
        *args: object,
        after: str | None = None,
        removal: str | None = None,
        trace: bool = False,
    ) -> None:
        """Writes that something is deprecated, at level warn.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.6.

        :param args: the parts of the line.
        :param after: the version after which it is deprecated, such as ``"2.5.0"``.
        :param removal: the version in which it will be gone.
        :param trace: add Kong's stack, which shows the plugin server's call, not the plugin.
        """
        parts = [log_argument(part) for part in args]
        if after is not None or removal is not None or trace:
            about = {"after": after, "removal": removal, "trace": trace or None}
            self._call(
                "kong.log.deprecation",
                *parts,
                {name: log_argument(value) for name, value in about.items() if value is not None},
            )
        else:
            self._call("kong.log.deprecation", *parts)

    def set_format(self, format: str | None = None) -> None:
        """Sets how lines of this plugin look, in the nginx worker that handles the event.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        It stays so for later requests, until the worker ends.

        :param format: text with ``%message``, ``%namespace`` (the plugin's name), ``%file_src``,
            ``%line_src`` and ``%func_name`` (of Kong's Lua code); None brings the default back.
        """
        self._call("kong.log.set_format", format)

    def set_serialize_value(
        self, key: str, value: Any, options: dict[str, str] | None = None
    ) -> None:
        """Sets a value in what :meth:`serialize` gives to this and other logging plugins.

        Phases: rewrite, access, response, log. Since Kong 2.3.

        In the log phase it comes too late for this plugin's own :meth:`serialize`.

        :param key: the field; dots reach into nested dicts (``"my.field"``).
        :param value: str, number, bool or a dict or list of these; None removes the field.
        :param options: ``{"mode": "set"}`` (the default), ``{"mode": "add"}`` (only a field that is
            not there yet) or ``{"mode": "replace"}`` (only one that is).
        :raises ValueError: for another mode.
        """
        if isinstance(options, dict) and options.get("mode", "set") not in (
            "set",
            "add",
            "replace",
        ):
            raise ValueError(
                "kong.log.set_serialize_value: the argument 'options' must have the mode set, add "
                f"or replace, not {options['mode']!r}"
            )
        self._call("kong.log.set_serialize_value", key, value, options)

    def serialize(self) -> dict[str, Any]:
        """What Kong's logging plugins log: request, response, latencies, route, service, ….

        Phases: log. Since Kong 2.1.

        Kong sends it as JSON, which is decoded here. Times are milliseconds, sizes bytes; a
        header or query argument that occurs once is a str, several are a list, a flag is True.

        :returns: the dict; Kong puts ``REDACTED`` for the authorization headers.
        """
        value = self._call("kong.log.serialize")
        return _decoded(value) if isinstance(value, (str, bytes)) else value or {}

    def new(self, namespace: str, format: str | None = None) -> None:
        """Cannot be called from a plugin server: it returns a Lua object.

        Phases: none. Since Kong 2.0.

        :raises PDKError: always.
        """
        self._call("kong.log.new", namespace, format)
