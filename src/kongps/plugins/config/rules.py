"""A plugin's configuration: bounds and attributes of a value, for Kong's schema and for checks."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Optional, Union

if TYPE_CHECKING:
    from msgspec import Meta

    from kongps.fields import Field

__all__ = ["NO_RULES", "Rules"]

Number = Union[int, float]

# Kong has an attribute for "between", and for "greater than", but none for "at most". These stand
# for the open end: the greatest integer that a Lua number holds exactly, the greatest number.
MAX_INTEGER = 2**53
MAX_NUMBER = sys.float_info.max


# The rules in words; `ge` and `le` together are "between".
_WORDS = {
    "ge": "of at least {}",
    "le": "of at most {}",
    "gt": "greater than {}",
    "lt": "less than {}",
    "multiple_of": "that is a multiple of {}",
    "len_min": "no shorter than {}",
    "len_max": "no longer than {}",
}


@dataclass(eq=False, repr=False)
class Rules:
    """What holds for a value beyond its type; everything may be unset."""

    ge: Optional[Number] = None
    gt: Optional[Number] = None
    le: Optional[Number] = None
    lt: Optional[Number] = None
    multiple_of: Optional[Number] = None
    len_min: Optional[int] = None
    len_max: Optional[int] = None
    pattern: Optional[str] = None
    match: Optional[str] = None
    one_of: Optional[tuple[Any, ...]] = None
    referenceable: bool = False
    encrypted: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def with_meta(self, meta: Meta) -> Rules:
        """These rules and those of a ``msgspec.Meta``."""
        names = ("ge", "gt", "le", "lt", "multiple_of", "pattern")
        same = {name: getattr(meta, name) for name in names}
        return self._with(len_min=meta.min_length, len_max=meta.max_length, **same)

    def with_field(self, given: Field) -> Rules:
        """These rules and those of a ``kongps.Field``."""
        low, high = given.between or (None, None)
        names = ("gt", "len_min", "len_max", "match", "one_of", "referenceable", "encrypted")
        same = {name: getattr(given, name) for name in names}
        return self._with(ge=low, le=high, extra=given.extra or None, **same)

    def _with(self, **changes: Any) -> Rules:
        given = {name: v for name, v in changes.items() if v is not None and v is not False}
        return replace(self, **given)

    @property
    def numeric(self) -> bool:
        """Whether a rule is about a number's size."""
        return any(v is not None for v in (self.ge, self.gt, self.le, self.lt, self.multiple_of))

    @property
    def sized(self) -> bool:
        """Whether a rule is about a length."""
        return self.len_min is not None or self.len_max is not None

    @property
    def textual(self) -> bool:
        """Whether a rule is about a string's characters."""
        return self.pattern is not None or self.match is not None

    def allow(self, value: Any) -> bool:
        """Whether `value`, which is of the right type already, keeps the rules.

        ``match`` and ``extra`` are Kong's to check.
        """
        if self.one_of is not None and value not in self.one_of:
            return False
        for name in ("ge", "gt", "le", "lt"):
            bound = getattr(self, name)
            if bound is not None and not getattr(operator, name)(value, bound):
                return False
        if self.multiple_of is not None and value % self.multiple_of:
            return False
        if self.len_min is not None and len(value) < self.len_min:
            return False
        if self.len_max is not None and len(value) > self.len_max:
            return False
        return self.pattern is None or re.search(self.pattern, value) is not None

    def attributes(self, type_name: str) -> dict[str, Any]:
        """The rules as attributes of Kong's schema.

        What Kong has no attribute for (``multiple_of``, a regular expression) is left out, and
        checked when an instance starts.

        :param type_name: Kong's name of the type.
        """
        out = self._bounds(integer=type_name == "integer")
        for name in ("len_min", "len_max", "match"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        if self.one_of is not None:
            out["one_of"] = list(self.one_of)
        for name in ("referenceable", "encrypted"):
            if getattr(self, name):
                out[name] = True
        out.update(self.extra)
        return out

    def _bounds(self, *, integer: bool) -> dict[str, Any]:
        step = int(integer)  # an integer greater than 3 is at least 4
        lows = [v for v in (self.ge, None if self.gt is None else self.gt + step) if v is not None]
        highs = [v for v in (self.le, None if self.lt is None else self.lt - step) if v is not None]
        greatest = MAX_INTEGER if integer else MAX_NUMBER
        out: dict[str, Any] = {}
        if integer and lows and not highs:
            out["gt"] = _plain(max(lows) - 1)
        elif self.gt is not None and not integer:
            out["gt"] = _plain(self.gt)
        if highs or (self.ge is not None and not integer):
            # For a number with lt the schema allows lt itself; the instance still refuses it.
            low, high = max(lows, default=-greatest), min(highs, default=greatest)
            out["between"] = [_plain(low), _plain(high)]
        return out

    def words(self) -> str:
        """The rules as the end of a sentence that starts with the type: " of at least 1"."""
        parts = [
            text.format(_plain(getattr(self, name)))
            for name, text in _WORDS.items()
            if getattr(self, name) is not None
        ]
        if self.ge is not None and self.le is not None:
            parts[:2] = [f"between {_plain(self.ge)} and {_plain(self.le)}"]
        if self.pattern is not None:
            parts.append(f"that matches the regular expression {self.pattern!r}")
        if self.one_of is not None:
            parts.append("out of " + ", ".join(map(repr, self.one_of)))
        return "".join(f" {part}" for part in parts)


# Of a kind whose values may be any of their type.
NO_RULES = Rules()


def _plain(number: Number) -> Number:
    """`number`, as an int where it is whole: Kong before 3.0 takes only integers as bounds."""
    return int(number) if number == int(number) and abs(number) <= MAX_INTEGER else number
