"""A plugin's configuration: bounds and attributes of a value, for Kong's schema and for checks."""

from __future__ import annotations

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
        return self._with(
            ge=meta.ge,
            gt=meta.gt,
            le=meta.le,
            lt=meta.lt,
            multiple_of=meta.multiple_of,
            len_min=meta.min_length,
            len_max=meta.max_length,
            pattern=meta.pattern,
        )

    def with_field(self, given: Field) -> Rules:
        """These rules and those of a ``kongps.Field``."""
        low, high = given.between or (None, None)
        return self._with(
            ge=low,
            le=high,
            gt=given.gt,
            len_min=given.len_min,
            len_max=given.len_max,
            match=given.match,
            one_of=given.one_of,
            referenceable=given.referenceable or None,
            encrypted=given.encrypted or None,
            extra=given.extra or None,
        )

    def _with(self, **changes: Any) -> Rules:
        given = {name: value for name, value in changes.items() if value is not None}
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
        if self.numeric and not self._allow_number(value):
            return False
        if self.len_min is not None and len(value) < self.len_min:
            return False
        if self.len_max is not None and len(value) > self.len_max:
            return False
        return self.pattern is None or re.search(self.pattern, value) is not None

    def _allow_number(self, value: Number) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    def attributes(self, *, integer: bool) -> dict[str, Any]:
        """The rules as attributes of Kong's schema.

        What Kong has no attribute for (``multiple_of``, a regular expression) is left out, and
        checked when an instance starts.

        :param integer: the type is ``integer``.
        """
        out = self._bounds(integer=integer)
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
        if integer:
            lows = [v for v in (self.ge, None if self.gt is None else self.gt + 1) if v is not None]
            highs = [
                v for v in (self.le, None if self.lt is None else self.lt - 1) if v is not None
            ]
            if lows and not highs:
                return {"gt": _plain(max(lows) - 1)}
            if highs:
                return {"between": [_plain(max(lows, default=-MAX_INTEGER)), _plain(min(highs))]}
            return {}
        out: dict[str, Any] = {}
        if self.gt is not None:
            out["gt"] = _plain(self.gt)
        lows = [v for v in (self.ge, self.gt) if v is not None]
        highs = [v for v in (self.le, self.lt) if v is not None]
        if self.ge is not None or highs:
            # With lt the schema allows lt itself; the instance still refuses it.
            low, high = max(lows, default=-MAX_NUMBER), min(highs, default=MAX_NUMBER)
            out["between"] = [_plain(low), _plain(high)]
        return out

    def words(self) -> str:
        """The rules as the end of a sentence that starts with the type: " of at least 1"."""
        parts = []
        if self.ge is not None and self.le is not None:
            parts.append(f"between {_plain(self.ge)} and {_plain(self.le)}")
        elif self.ge is not None:
            parts.append(f"of at least {_plain(self.ge)}")
        elif self.le is not None:
            parts.append(f"of at most {_plain(self.le)}")
        if self.gt is not None:
            parts.append(f"greater than {_plain(self.gt)}")
        if self.lt is not None:
            parts.append(f"less than {_plain(self.lt)}")
        if self.multiple_of is not None:
            parts.append(f"that is a multiple of {_plain(self.multiple_of)}")
        if self.len_min is not None:
            parts.append(f"no shorter than {self.len_min}")
        if self.len_max is not None:
            parts.append(f"no longer than {self.len_max}")
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
