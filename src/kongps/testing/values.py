"""Values on their way to and from Kong: text, headers, queries, Lua tables, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union
from urllib.parse import quote, unquote_to_bytes

import msgpack

HeaderValue = Union[str, bytes, int, float, bool, Iterable[Union[str, bytes]]]

_EXACT_INTEGER = 1 << 53


class LuaError(Exception):
    """Kong's Lua code raised: the event is not stepped again.

    :ivar drops_connection: it was raised while the answer was being packed, when a connection had
        been taken out of the pool, which is closed then.
    """

    def __init__(self, message: str, *, drops_connection: bool = False) -> None:
        super().__init__(message)
        self.drops_connection = drops_connection


@dataclass
class Failure:
    """What a PDK function returns for Lua's ``nil, "reason"``."""

    reason: str


class BodyPath(str):
    """The file that nginx wrote a body to."""

    __slots__ = ()


class MultiMap(dict[str, Any]):
    """A map that stays a map when empty (an empty Lua table otherwise packs as an array)."""


def text(value: str | bytes) -> str:
    """Bytes as str; bytes that are not UTF-8 become surrogate escapes."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def to_bytes(value: str | bytes) -> bytes:
    """str as bytes, the reverse of :func:`text`."""
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def _header_values(value: HeaderValue) -> list[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, (str, bytes)):
        return [text(value)]
    if isinstance(value, (int, float)):
        return [lua_tostring(value)]
    return [item for entry in value for item in _header_values(entry)]


class Headers(Mapping[str, str]):
    """HTTP headers in the order sent: names without regard to case, several values per name.

    ``headers["x-a"]`` is the first value, ``headers.all("x-a")`` the list of them,
    ``headers.items()`` the first of each name. Names keep the spelling that they were set with.

    :param source: a mapping of names to a value or a list of values, or pairs of name and value.
    """

    def __init__(
        self,
        source: Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]] | None = None,
    ) -> None:
        self._lines: list[tuple[str, str]] = []
        if isinstance(source, Headers):
            self._lines = list(source._lines)
        elif source is not None:
            for name, value in source.items() if isinstance(source, Mapping) else source:
                self.add(name, value)

    def all(self, name: str) -> list[str]:
        """Every value of ``name``, in order; an empty list when there is none."""
        wanted = name.lower()
        return [value for key, value in self._lines if key.lower() == wanted]

    def add(self, name: str, value: HeaderValue) -> None:
        """Append a value, or each value of a list."""
        self._lines.extend((text(name), item) for item in _header_values(value))

    def set(self, name: str, value: HeaderValue) -> None:
        """Replace every value of ``name``; the place of the first one is kept."""
        wanted = name.lower()
        at = next((i for i, (key, _) in enumerate(self._lines) if key.lower() == wanted), None)
        lines = [(text(name), item) for item in _header_values(value)]
        if at is None:
            self._lines.extend(lines)
        else:
            kept = [line for line in self._lines[at:] if line[0].lower() != wanted]
            self._lines[at:] = lines + kept

    def remove(self, name: str) -> None:
        """Drop every value of ``name``, if there is one."""
        wanted = name.lower()
        self._lines = [line for line in self._lines if line[0].lower() != wanted]

    def lines(self) -> list[tuple[str, str]]:
        """Every header line as name and value, in order."""
        return list(self._lines)

    def multi(self, limit: int = 0) -> dict[str, list[str]]:
        """Lower-case names to lists of values, of the first ``limit`` lines (0: of all)."""
        found: dict[str, list[str]] = {}
        for name, value in self._lines[: limit or None]:
            found.setdefault(name.lower(), []).append(value)
        return found

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return values[0]

    def __iter__(self) -> Iterator[str]:
        seen: set[str] = set()
        for name, _ in self._lines:
            if name.lower() not in seen:
                seen.add(name.lower())
                yield name

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._lines})

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.all(name))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            return self.multi() == Headers(other).multi()
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Headers({single_or_list({name: self.all(name) for name in self})!r})"


# --- Lua --------------------------------------------------------------------------------------


def lua_value(value: Any) -> Any:
    """``value`` as it comes out of Kong: nil left out of maps, an empty table as an array,
    whole numbers as integers. Raises LuaError for what Kong cannot pack."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, int):
        return value if abs(value) < _EXACT_INTEGER else float(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT_INTEGER else value
    if isinstance(value, Mapping):
        found = {key: lua_value(item) for key, item in value.items() if item is not None}
        return found if found or isinstance(value, MultiMap) else []
    if isinstance(value, (list, tuple)):
        return [lua_value(item) for item in value]
    raise LuaError(f"pack: cannot pack a {type(value).__name__}", drops_connection=True)


def lua_type(value: Any) -> str:
    """``value``'s type as Lua names it."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, (str, bytes)) else "table"


def lua_tostring(value: Any) -> str:
    """``value`` as Lua's ``tostring`` writes it."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, bytes)):
        return text(value)
    if isinstance(value, (int, float)):
        return f"{value:.14g}"
    return f"table: 0x{id(value):012x}"


def pack(message: Any) -> bytes:
    """MessagePack as Kong writes it: text as ``str`` whatever its bytes, bytes as ``bin``."""
    packed: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogateescape")
    return packed


def unpacker() -> msgpack.Unpacker:
    """An incremental reader for what a plugin server sends."""
    return msgpack.Unpacker(
        raw=False,
        unicode_errors="surrogateescape",
        strict_map_key=False,
        max_buffer_size=1 << 30,
    )


def json_text(value: Any, *, empty_as_object: bool = False) -> str:
    """JSON as Kong's encoder writes it: no spaces, slashes escaped.

    :param empty_as_object: an empty list becomes ``{}``, as in Kong 2.0, which knows no difference.
    """
    if empty_as_object:
        value = _empty_to_object(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("/", "\\/")


def _empty_to_object(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _empty_to_object(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_empty_to_object(item) for item in value] or {}
    return value


# --- URLs -------------------------------------------------------------------------------------


def _unescape(part: str) -> str:
    return unquote_to_bytes(part.replace("+", " ").encode("utf-8", "surrogateescape")).decode(
        "utf-8", "surrogateescape"
    )


def decode_query(query: str, limit: int = 0) -> list[tuple[str, str | bool]]:
    """Names and values of a query or form, in order; a name without ``=`` has the value True.

    :param limit: at most so many arguments (0: all).
    """
    found: list[tuple[str, str | bool]] = []
    for part in query.split("&"):
        if not part:
            continue
        if limit and len(found) == limit:
            break
        name, equals, value = part.partition("=")
        if name or equals:
            found.append((_unescape(name), _unescape(value) if equals else True))
    return found


def query_table(query: str, limit: int = 0) -> dict[str, Any]:
    """A query or form as a table: a name that comes several times has a list of its values."""
    found: dict[str, list[Any]] = {}
    for name, value in decode_query(query, limit):
        found.setdefault(name, []).append(value)
    return single_or_list(found)


def single_or_list(found: Mapping[str, list[Any]]) -> dict[str, Any]:
    """One value as itself, several as a list."""
    return {name: items[0] if len(items) == 1 else list(items) for name, items in found.items()}


def _escape(part: str) -> str:
    return quote(part.encode("utf-8", "surrogateescape"), safe="-_.~!*'()")


def encode_query(args: Mapping[str, Any]) -> str:
    """A table of arguments as a query: lists repeat the name, True is a bare name, False is left
    out. Names come in alphabetical order, so that tests can compare (Kong's order is any)."""
    parts: list[str] = []
    for name in sorted(args):
        value = args[name]
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is True:
                parts.append(_escape(name))
            elif item is not False and item is not None:
                parts.append(f"{_escape(name)}={_escape(lua_tostring(item))}")
    return "&".join(parts)


_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalize_path(path: str) -> str:
    """A path as Kong 3 normalises it: unreserved escapes decoded, other escapes in capitals,
    double slashes and dot segments resolved."""

    def one(match: re.Match[str]) -> str:
        char = chr(int(match.group(1), 16))
        return char if char in _UNRESERVED else match.group(0).upper()

    decoded = re.sub(r"%([0-9A-Fa-f]{2})", one, path)
    segments: list[str] = []
    parts = re.split(r"/+", decoded)
    for part in parts[1:]:
        if part == "..":
            if segments:
                segments.pop()
        elif part != ".":
            segments.append(part)
    if parts[-1] in (".", "..") and segments:
        segments.append("")
    return "/" + "/".join(segments)
