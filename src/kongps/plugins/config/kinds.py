"""A plugin's configuration: the kinds of value in it, how each is converted and described for Kong.

A kind is made once, when a plugin is loaded, from an annotation (``structures.py`` does that).
``decode`` turns a JSON value into the Python value, ``encode`` a default into what Kong's
schema shows, ``schema`` describes the kind for Kong.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Union, get_args

from kongps.errors import ConfigError, UnsupportedType
from kongps.fields import UNSET
from kongps.plugins.config.rules import NO_RULES, Rules

__all__ = ["Array", "Choice", "FixedArray", "Kind", "Map", "Nullable", "Scalar", "Variant"]

_WORDS = {
    bool: "a boolean",
    dict: "a map",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
    type(None): "null",
}


def a_kind_of(value: object) -> str:
    """What `value` is, in Kong's words; never the value itself."""
    return _WORDS.get(type(value), f"an object of type {type(value).__name__}")


# A dump makes all of these classes, so they have no methods of dataclasses that nothing calls.


@dataclass(eq=False, repr=False)
class Kind:
    """Base of the kinds; by itself ``Any``: the value as JSON gave it."""

    rules: Rules = NO_RULES

    type_name: str = ""  # Kong's name of the type
    takes_sizes: bool = False  # whether len_min and len_max fit it

    def decode(self, value: Any, path: str) -> Any:
        """`value`, as JSON gave it, as this kind of Python value.

        :param path: where it stands, for errors.
        :raises ConfigError: when it does not fit.
        """
        return value

    def encode(self, value: Any) -> Any:
        """A default `value` of the structure as JSON; unchanged when it is of another kind."""
        return value

    def schema(self, path: str) -> dict[str, Any]:
        """Kong's description of the kind: ``{"type": …, …}``.

        :raises UnsupportedType: when Kong has none for it.
        """
        if not self.type_name:
            raise UnsupportedType(
                path,
                "Kong has no type for Any (nor for a list or dict without its element types); say "
                "what it holds, or give the plugin a Schema",
            )
        return {"type": self.type_name, **self.rules.attributes(self.type_name)}

    def expected(self) -> str:
        """What is expected, as a message says it: ``an array no shorter than 1``."""
        article = "an" if self.type_name[:1] in "aeiou" else "a"
        return f"{article} {self.type_name}{self.rules.words()}"

    def with_rules(self, rules: Rules, path: str) -> Kind:
        """This kind with further rules.

        :raises UnsupportedType: when a rule has no meaning for the kind.
        """
        if rules.numeric and self.type_name not in ("integer", "number"):
            raise UnsupportedType(path, "a bound on the size of a number needs int or float")
        if rules.textual and self.type_name != "string":
            raise UnsupportedType(path, "a pattern needs str")
        if rules.sized and not self.takes_sizes:
            raise UnsupportedType(path, "a bound on the length needs str, list, set or dict")
        if rules.one_of is not None and self.type_name not in ("string", "integer", "number"):
            raise UnsupportedType(path, "one_of needs str, int or float; put it on the elements")
        return replace(self, rules=rules)

    def _refuse(self, value: object, path: str) -> ConfigError:
        # A value of the right type breaks a rule; its type is no news then.
        same = a_kind_of(value).split()[-1] == self.type_name
        got = "" if same else f", got {a_kind_of(value)}"
        return ConfigError(path, f"expected {self.expected()}{got}")

    def _table(self, value: object, kind: type, path: str) -> Any:
        """`value`, when it is a list or a dict as `kind` says; Lua's empty table may be either."""
        if value in ([], {}):
            return kind()
        if type(value) is not kind:
            raise self._refuse(value, path)
        return value

    def _checked(self, value: Any, path: str) -> Any:
        if not self.rules.allow(value):
            raise ConfigError(path, f"expected {self.expected()}")
        return value


ANY_VALUE = Kind()


def _convert(value: Any, python_type: Any) -> Any:
    """`value`, which is not quite of that type, as `python_type`; or UNSET.

    msgspec's message is dropped, since it quotes values that are not in an enum.
    """
    import msgspec  # not needed for defaults that are of their type: a dump goes without

    try:
        return msgspec.convert(value, python_type)
    except msgspec.ValidationError:
        return UNSET


_TYPE_NAMES: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    Union[int, float]: "number",
}


@dataclass(eq=False, repr=False)
class Scalar(Kind):
    """A string, boolean, integer or number."""

    python_type: Any = str
    type_name: str = "string"

    @classmethod
    def of(cls, python_type: Any) -> Scalar:
        """The kind of ``str``, ``bool``, ``int``, ``float`` or ``Union[int, float]``."""
        return cls(
            python_type=python_type,
            type_name=_TYPE_NAMES[python_type],
            takes_sizes=python_type is str,
        )

    def decode(self, value: Any, path: str) -> Any:
        if self.python_type is int and type(value) is float and value.is_integer():
            value = int(value)  # Lua has one type of number: an integer may arrive as 3.0
        if type(value) not in (get_args(self.python_type) or (self.python_type,)):
            converted = _convert(value, self.python_type)
            if converted is UNSET:
                raise self._refuse(value, path)
            value = converted
        return self._checked(value, path)


@dataclass(eq=False, repr=False)
class Choice(Kind):
    """One of some strings or numbers: a ``Literal`` or an enum."""

    python_type: Any = None
    values: tuple[Any, ...] = ()
    type_name: str = "string"

    def decode(self, value: Any, path: str) -> Any:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) in (str, int) and value in self.values:
            converted = self.python_type(value) if isinstance(self.python_type, type) else value
        else:
            converted = _convert(value, self.python_type)
        if converted is UNSET or not self.rules.allow(value):
            raise ConfigError(path, f"expected {self.expected()}")
        return converted

    def encode(self, value: Any) -> Any:
        return value.value if isinstance(value, enum.Enum) else value

    def schema(self, path: str) -> dict[str, Any]:
        described = super().schema(path)
        described.setdefault("one_of", list(self.values))
        return described

    def expected(self) -> str:
        values = self.values if self.rules.one_of is None else self.rules.one_of
        return "one of " + ", ".join(map(repr, values))


@dataclass(eq=False, repr=False)
class Array(Kind):
    """A list, a tuple of any length, a set or a frozenset."""

    element: Kind = ANY_VALUE
    build: Callable[[list[Any]], Any] = list
    type_name: str = "array"
    takes_sizes: bool = True

    def decode(self, value: Any, path: str) -> Any:
        items = enumerate(self._table(value, list, path))
        decoded = [self.element.decode(item, f"{path}[{index}]") for index, item in items]
        return self._checked(self.build(decoded), path)

    def encode(self, value: Any) -> Any:
        is_set = self.type_name == "set"
        if not isinstance(value, (set, frozenset) if is_set else (list, tuple)):
            return value
        encoded = [self.element.encode(item) for item in value]
        # The dump of a schema must not change from run to run.
        return sorted(encoded, key=lambda item: (type(item).__name__, item)) if is_set else encoded

    def schema(self, path: str) -> dict[str, Any]:
        return {**super().schema(path), "elements": self.element.schema(f"{path}[]")}

    def expected(self) -> str:
        return f"an array{self.rules.words()}"


@dataclass(eq=False, repr=False)
class FixedArray(Kind):
    """A tuple of a fixed length, each element of its own kind."""

    elements: tuple[Kind, ...] = ()
    type_name: str = "array"
    takes_sizes: bool = True

    def decode(self, value: Any, path: str) -> Any:
        items = self._table(value, list, path)
        if len(items) != len(self.elements):
            raise ConfigError(path, f"expected {self.expected()}")
        return tuple(
            kind.decode(item, f"{path}[{index}]")
            for index, (kind, item) in enumerate(zip(self.elements, items))
        )

    def encode(self, value: Any) -> Any:
        if not isinstance(value, tuple) or len(value) != len(self.elements):
            return value
        return [kind.encode(item) for kind, item in zip(self.elements, value)]

    def schema(self, path: str) -> dict[str, Any]:
        described = [kind.schema(f"{path}[]") for kind in self.elements]
        if any(other != described[0] for other in described):
            raise UnsupportedType(
                path,
                "an array of Kong's has elements of one type; use a NamedTuple or a dataclass, "
                "or give the plugin a Schema",
            )
        return {**super().schema(path), "elements": described[0], "len_eq": len(described)}

    def expected(self) -> str:
        return f"an array of {len(self.elements)}"


@dataclass(eq=False, repr=False)
class Map(Kind):
    """A dict with string keys."""

    key: Kind = ANY_VALUE
    value: Kind = ANY_VALUE
    type_name: str = "map"
    takes_sizes: bool = True

    def decode(self, value: Any, path: str) -> Any:
        # A key is a part of the configuration, as good a secret as a value: not in the path.
        converted = {
            self.key.decode(key, f"{path} (a key)"): self.value.decode(item, f"{path}.*")
            for key, item in self._table(value, dict, path).items()
            if item is not None or isinstance(self.value, Nullable)
        }
        return self._checked(converted, path)

    def encode(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {self.key.encode(key): self.value.encode(item) for key, item in value.items()}

    def schema(self, path: str) -> dict[str, Any]:
        return {
            **super().schema(path),
            "keys": self.key.schema(f"{path} (a key)"),
            "values": self.value.schema(f"{path}.*"),
        }


@dataclass(eq=False, repr=False)
class Nullable(Kind):
    """An element of an array or a value of a map that may be null."""

    kind: Kind = ANY_VALUE

    def decode(self, value: Any, path: str) -> Any:
        return None if value is None else self.kind.decode(value, path)

    def encode(self, value: Any) -> Any:
        return None if value is None else self.kind.encode(value)

    def schema(self, path: str) -> dict[str, Any]:
        return self.kind.schema(path)

    def expected(self) -> str:
        return self.kind.expected()


@dataclass(eq=False, repr=False)
class Variant(Kind):
    """A union of simple types. Kong has no such type: the plugin needs a Schema."""

    kinds: tuple[Kind, ...] = ()

    def decode(self, value: Any, path: str) -> Any:
        for kind in self.kinds:
            try:
                return kind.decode(value, path)
            except ConfigError:
                continue
        raise ConfigError(path, f"expected {self.expected()}, got {a_kind_of(value)}")

    def schema(self, path: str) -> dict[str, Any]:
        raise UnsupportedType(
            path, "Kong has no type for a union; use one type, or give the plugin a Schema"
        )

    def expected(self) -> str:
        return " or ".join(kind.expected() for kind in self.kinds)
