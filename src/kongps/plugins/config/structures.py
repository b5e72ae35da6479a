"""A plugin's configuration: reads a class with annotated fields into a :class:`Record`."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

from kongps.errors import UnsupportedType
from kongps.fields import UNSET, Field
from kongps.plugins.config import hints, kinds
from kongps.plugins.config.kinds import Array, Choice, Kind, Scalar
from kongps.plugins.config.record import Record, StructureField, Style

if TYPE_CHECKING:
    import msgspec
    from typing_extensions import TypeGuard

__all__ = ["Record", "has_fields", "is_dataclass", "is_struct", "read_structure"]

_LISTS = {list, abc.Sequence, abc.MutableSequence, abc.Collection}
_SETS = {set: set, abc.Set: set, abc.MutableSet: set, frozenset: frozenset}
_DICTS = {dict, abc.Mapping, abc.MutableMapping}
_SUPPORTED = (
    "str, int, float, bool, Enum, Literal, list, set, frozenset, tuple, dict with str keys, "
    "Optional of these, dataclass, msgspec.Struct, NamedTuple, TypedDict or a class with "
    "annotated fields"
)


def has_fields(cls: type) -> bool:
    """Whether `cls` has public annotated fields."""
    return bool(hints.annotated_names(cls))


# Whoever made a class or an annotation has imported what it is made with. These functions must not
# import msgspec: it would double the time of `kongps dump` for a plugin that does not use it.


def is_dataclass(cls: type) -> bool:
    """Whether `cls` is a dataclass."""
    return hasattr(cls, "__dataclass_fields__")


def is_struct(cls: type) -> bool:
    """Whether `cls` is a ``msgspec.Struct``."""
    return "msgspec" in sys.modules and issubclass(cls, sys.modules["msgspec"].Struct)


def _is_meta(extra: object) -> TypeGuard[msgspec.Meta]:
    return "msgspec" in sys.modules and isinstance(extra, sys.modules["msgspec"].Meta)


def read_structure(cls: type, path: str = "config") -> Record:
    """Reads the class of a plugin's configuration.

    :param cls: a dataclass, a msgspec.Struct, or a class with annotated fields that can be made
        without arguments.
    :param path: what the configuration is called in messages.
    :raises UnsupportedType: for a field that a configuration cannot fill, with its path.
    """
    return _Reader().structure(cls, path)


class _Reader:
    """Reads annotations; knows the structures that it is inside of."""

    def __init__(self) -> None:
        self._inside: list[type] = []

    def structure(self, cls: type, path: str) -> Record:
        if cls in self._inside:
            raise UnsupportedType(
                path, f"{cls.__name__} contains itself; a schema of Kong's cannot"
            )
        style = _style(cls)
        self._inside.append(cls)
        try:
            rows = _raw_fields(cls, style, path)
            names = {row.attribute for row in rows}
            found = hints.field_hints(cls, names, path)
            for name in names - set(found):
                raise UnsupportedType(f"{path}.{name}", f"{cls.__name__}.{name} has no annotation")
            fields = tuple(self._field(row, found[row.attribute], path) for row in rows)
        finally:
            self._inside.pop()
        seen: dict[str, str] = {}
        for each in fields:
            if each.name in seen:
                raise UnsupportedType(
                    f"{path}.{each.name}",
                    f"{seen[each.name]} and {each.attribute} of {cls.__name__} both have this name",
                )
            seen[each.name] = each.attribute
        return Record(cls=cls, style=style, fields=fields)

    def _field(self, row: StructureField, hint: Any, path: str) -> StructureField:
        found = self.read(hint, f"{path}.{row.name}")
        return replace(
            found,
            attribute=row.attribute,
            name=found.name or row.name,
            default=row.default,
            omissible=row.omissible or hints.is_not_required(hint),
        )

    def read(self, hint: Any, path: str) -> StructureField:
        """What an annotation means: a kind, and properties of the field that has it."""
        hint = hints.unwrap_alias(hint)
        if typing.get_origin(hint) is Annotated:
            return self._annotated(hint, path)
        if hints.is_union(hint):
            return self._union(typing.get_args(hint), path)
        return StructureField(kind=self._kind(hint, path))

    def element(self, hint: Any, path: str) -> Kind:
        """The kind of an element, which has no properties of a field."""
        found = self.read(hint, path)
        if found.name or found.required is not None or found.shown_default is not UNSET:
            raise UnsupportedType(
                path, "name, required and default of kongps.Field are for fields, not elements"
            )
        return kinds.Nullable(kind=found.kind) if found.nullable else found.kind

    def _annotated(self, hint: Any, path: str) -> StructureField:
        found = self.read(hint.__origin__, path)
        rules = found.kind.rules
        changes: dict[str, Any] = {}
        for extra in hint.__metadata__:
            if _is_meta(extra):
                rules = rules.with_meta(extra)
            elif isinstance(extra, Field):
                rules = rules.with_field(extra)
                for name in ("name", "required"):
                    if getattr(extra, name) is not None:
                        changes[name] = getattr(extra, name)
                if extra.default is not UNSET:
                    changes["shown_default"] = extra.default
            elif isinstance(extra, type) and issubclass(extra, Field):
                raise UnsupportedType(path, "kongps.Field in an annotation needs its parentheses")
        if rules != found.kind.rules:
            changes["kind"] = found.kind.with_rules(rules, path)
        return replace(found, **changes)

    def _union(self, members: tuple[Any, ...], path: str) -> StructureField:
        some = [member for member in members if member is not type(None)]
        nullable = len(some) < len(members)
        if len(some) == 1:
            return replace(self.read(some[0], path), nullable=nullable)
        if set(some) == {int, float}:
            return StructureField(kind=Scalar.of(Union[int, float]), nullable=nullable)
        variants = tuple(self.element(member, path) for member in some)
        if any(isinstance(kind, Record) for kind in variants):
            raise UnsupportedType(path, "a union of structures is not possible; use one of them")
        return StructureField(kind=kinds.Variant(kinds=variants), nullable=nullable)

    def _kind(self, hint: Any, path: str) -> Kind:
        if hint is Any or hint is object:
            return kinds.ANY_VALUE
        if hint in (str, int, float, bool):
            return Scalar.of(hint)
        origin = typing.get_origin(hint) or hint
        if origin is Literal:
            return self._literal(hint, path)
        args = typing.get_args(hint)
        if origin is tuple:
            return self._tuple(args, path)
        if origin in _LISTS:
            return Array(element=self._element_of(args, path))
        if origin in _SETS:
            return self._set(origin, args, path)
        if origin in _DICTS:
            return self._map(args, path)
        if isinstance(hint, type):
            return self._class(hint, path)
        raise _unsupported(hint, path)

    def _element_of(self, args: tuple[Any, ...], path: str) -> Kind:
        return self.element(args[0], f"{path}[]") if args else kinds.ANY_VALUE

    def _literal(self, hint: Any, path: str) -> Kind:
        values = typing.get_args(hint)
        type_name = _scalar_type_name(values)
        if type_name is None:
            raise UnsupportedType(path, "a Literal must list strings only, or integers only")
        return Choice(python_type=hint, values=values, type_name=type_name)

    def _tuple(self, args: tuple[Any, ...], path: str) -> Kind:
        if not args or (len(args) == 2 and args[1] is ...):
            return Array(element=self._element_of(args, path), build=tuple)
        return kinds.FixedArray(elements=tuple(self.element(arg, f"{path}[]") for arg in args))

    def _set(self, origin: Any, args: tuple[Any, ...], path: str) -> Kind:
        element = self._element_of(args, path)
        if args and not isinstance(element, (Scalar, Choice)):
            raise UnsupportedType(path, "a set holds strings, numbers or booleans")
        return Array(element=element, build=_SETS[origin], type_name="set")

    def _map(self, args: tuple[Any, ...], path: str) -> Kind:
        if not args:
            return kinds.Map(key=Scalar.of(str), value=kinds.ANY_VALUE)
        key = self.element(args[0], f"{path} (a key)")
        if not isinstance(key, (Scalar, Choice)) or key.type_name != "string":
            raise UnsupportedType(path, "the keys of a map are strings")
        return kinds.Map(key=key, value=self.element(args[1], f"{path}.*"))

    def _class(self, cls: type, path: str) -> Kind:
        if issubclass(cls, enum.Enum):
            values = tuple(member.value for member in cls)
            type_name = _scalar_type_name(values)
            if type_name is None or issubclass(cls, enum.Flag):
                raise UnsupportedType(path, "an Enum must have strings only, or integers only")
            return Choice(python_type=cls, values=values, type_name=type_name)
        if _style(cls) != "plain" or (has_fields(cls) and cls.__module__ != "builtins"):
            return self.structure(cls, path)
        raise _unsupported(cls, path)


def _unsupported(hint: Any, path: str) -> UnsupportedType:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return UnsupportedType(
        path,
        f"{name} is not a type that a configuration can hold. Give the attribute a leading "
        f"underscore if it is the plugin's own; else use {_SUPPORTED}",
    )


def _style(cls: type) -> Style:
    if is_struct(cls):
        return "struct"
    if is_dataclass(cls):
        return "dataclass"
    if issubclass(cls, tuple) and hasattr(cls, "_field_defaults"):
        return "namedtuple"
    if issubclass(cls, dict) and hasattr(cls, "__total__"):
        return "typeddict"
    return "plain"


def _scalar_type_name(values: Iterable[Any]) -> Optional[str]:
    """Kong's type for all of `values`, strings or integers; None for a mixture or other types."""
    types = {type(value) for value in values}
    if types == {str}:
        return "string"
    return "integer" if types == {int} else None


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _default_of(each: Any, missing: object) -> Optional[Callable[[], Any]]:
    """What makes the default of a dataclass's or Struct's field; None without."""
    if each.default_factory is not missing:
        return each.default_factory  # type: ignore[no-any-return]
    return None if each.default is missing else _always(each.default)


def _raw_fields(cls: Any, style: Style, path: str) -> list[StructureField]:
    if style == "dataclass":
        return _dataclass_rows(cls, path)
    if style == "struct":
        return _struct_rows(cls, path)
    if style == "namedtuple":
        defaults = cls._field_defaults
        return [
            StructureField(name, name, _always(defaults[name]) if name in defaults else None)
            for name in cls._fields
        ]
    if style == "typeddict":
        return [
            StructureField(name, name, omissible=name not in cls.__required_keys__)
            for name in hints.annotated_names(cls)
        ]
    return _plain_rows(cls, path)


def _private_without_default(cls: type, name: str, path: str) -> UnsupportedType:
    return UnsupportedType(
        path,
        f"{cls.__name__}.{name} needs a default: fields with a leading underscore are not "
        "filled from the configuration",
    )


def _dataclass_rows(cls: Any, path: str) -> list[StructureField]:
    rows = []
    for each in cls.__dataclass_fields__.values():
        is_init_var = getattr(each._field_type, "name", "") == "_FIELD_INITVAR"
        if is_init_var and each.default is dataclasses.MISSING:
            raise UnsupportedType(path, f"{cls.__name__}.{each.name}, an InitVar, needs a default")
    for each in dataclasses.fields(cls):
        default = _default_of(each, dataclasses.MISSING)
        if each.name.startswith("_"):
            if default is None and each.init:
                raise _private_without_default(cls, each.name, path)
        elif each.init:  # what the class computes itself is not for the configuration
            rows.append(StructureField(each.name, each.name, default))
    return rows


def _struct_rows(cls: Any, path: str) -> list[StructureField]:
    import msgspec

    rows = []
    try:
        fields = msgspec.structs.fields(cls)
    except Exception as error:
        raise UnsupportedType(
            path, f"the annotations of {cls.__name__} cannot be evaluated: {error}"
        ) from error
    for each in fields:
        default = _default_of(each, msgspec.NODEFAULT)
        if not each.name.startswith("_"):
            rows.append(StructureField(each.name, each.encode_name, default))
        elif default is None:
            raise _private_without_default(cls, each.name, path)
    return rows


def _plain_rows(cls: Any, path: str) -> list[StructureField]:
    try:
        made = cls()
    except TypeError as error:
        raise UnsupportedType(
            path,
            f"{cls.__name__} cannot be made without arguments ({error}); give its arguments "
            "defaults, or make it a dataclass",
        ) from error
    # The default is what an object has that was made without a configuration; `new_plain` sees
    # to it, and `value_of` finds it there.
    return [
        StructureField(name, name, _always(getattr(made, name)) if hasattr(made, name) else None)
        for name in hints.annotated_names(cls)
    ]
