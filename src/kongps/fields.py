"""What a plugin's author can add to a field of the configuration, beyond its type.

:class:`Field` goes into the annotation::

    @dataclass
    class Plugin:
        key_names: Annotated[list[str], Field(len_min=1)]
        secret: Annotated[str, Field(name="shared-secret", referenceable=True)] = "guest"

The functions below it make the top-level fields that stand beside ``config`` in Kong's schema;
a plugin lists them in its ``plugin_fields`` attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

__all__ = ["UNSET", "Field", "no_consumer", "no_route", "no_service", "protocols"]

Number = Union[int, float]


class _Unset:
    """The type of ``UNSET``, the default of a parameter for which None means something."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Any = _Unset()


class Field:
    """Constraints and attributes of a field, for ``Annotated[type, Field(…)]``.

    Everything is optional. The bounds are put into Kong's schema, so that Kong refuses a bad
    configuration when somebody writes it, and are checked again when an instance starts.

    :param name: the field's name in Kong's datastore, when it is not the Python name.
    :param required: True: Kong refuses a configuration without it. False: it may be missing
        (the value is None then, if the structure has no default). Left out: a field is required
        when it has no default and is not ``Optional``.
    :param default: the default that Kong's schema shows, when it is not the structure's own;
        None shows none.
    :param gt: numbers: greater than this.
    :param between: numbers: lowest and highest value allowed, a pair.
    :param len_min: strings, lists, sets, dicts: shortest length. Kong refuses an empty string
        unless this is 0.
    :param len_max: strings, lists, sets, dicts: greatest length.
    :param match: strings: a Lua pattern (not a regular expression). Only Kong checks it.
    :param one_of: strings and numbers: the values allowed.
    :param referenceable: the value may be a vault reference such as ``{vault://env/secret}``
        (Kong 2.8 on; older ones refuse a schema with this attribute).
    :param encrypted: Kong stores the value encrypted, where its edition can.
    :param extra: further attributes for Kong's schema, as they are, such as
        ``{"starts_with": "/"}``. Only Kong checks them.
    :raises TypeError, ValueError: for values that cannot be meant.
    """

    def __init__(
        self,
        *,
        name: Optional[str] = None,
        required: Optional[bool] = None,
        default: Any = UNSET,
        gt: Optional[Number] = None,
        between: Optional[tuple[Number, Number]] = None,
        len_min: Optional[int] = None,
        len_max: Optional[int] = None,
        match: Optional[str] = None,
        one_of: Optional[Iterable[Union[str, Number]]] = None,
        referenceable: bool = False,
        encrypted: bool = False,
        extra: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name or "." in name):
            raise ValueError("Field(name=…) must be a string without dots, and not empty")
        if isinstance(one_of, str):
            raise TypeError("Field(one_of=…) must be a list of values, not one string")
        if between is not None:
            low, high = between
            if not low <= high:
                raise ValueError("Field(between=…) must give the lower bound first")
            between = (low, high)
        for bound, value in (("len_min", len_min), ("len_max", len_max)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"Field({bound}=…) must be a whole number from 0 on")
        self.name = name
        self.required = required
        self.default = default
        self.gt = gt
        self.between = between
        self.len_min = len_min
        self.len_max = len_max
        self.match = match
        self.one_of = None if one_of is None else tuple(one_of)
        self.referenceable = referenceable
        self.encrypted = encrypted
        self.extra = dict(extra or {})

    def __repr__(self) -> str:
        given = (
            f"{name}={value!r}"
            for name, value in sorted(vars(self).items())
            if not any(value is nothing for nothing in (None, False, UNSET)) and value != {}
        )
        return f"Field({', '.join(given)})"


def protocols(*names: str) -> dict[str, Any]:
    """The field ``protocols``: which of Kong's protocols the plugin may be configured for.

    :param names: such as ``"http", "https", "grpc", "grpcs", "tcp", "tls"``.
    :return: a field for ``plugin_fields``.
    """
    allowed = list(names)
    return {
        "protocols": {
            "type": "set",
            "required": True,
            "default": allowed,
            "elements": {"type": "string", "one_of": allowed},
        }
    }


def _never(entity: str) -> dict[str, Any]:
    return {entity: {"type": "foreign", "reference": f"{entity}s", "eq": None}}


def no_consumer() -> dict[str, Any]:
    """A field for ``plugin_fields``: the plugin cannot be configured for a consumer.

    Effective where Kong reads the plugin's description as JSON (``_query_cmd``, Kong 2.3 on);
    in MessagePack Kong loses the null that it consists of.
    """
    return _never("consumer")


def no_route() -> dict[str, Any]:
    """A field for ``plugin_fields``: the plugin cannot be configured for a route."""
    return _never("route")


def no_service() -> dict[str, Any]:
    """A field for ``plugin_fields``: the plugin cannot be configured for a service."""
    return _never("service")
