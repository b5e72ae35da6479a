"""Reading a class with annotated fields, and making objects of it from a configuration."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

from kongps.errors import ConfigError, UnsupportedType
from kongps.fields import UNSET, Field
from kongps.plugins.config.hints import (
    annotated_names,
    field_hints,
    is_not_required,
    is_union,
    unwrap_alias,
)
from kongps.plugins.config.kinds import (
    MISSING,
    Anything,
    Array,
    Choice,
    FixedArray,
    Kind,
    Map,
    Scalar,
    SetOf,
    Variant,
    optional_kind,
    scalar_type_name,
)

if TYPE_CHECKING:
    import msgspec
    from typing_extensions import TypeGuard

__all__ = [
    "Record",
    "StructureField",
    "has_fields",
    "is_dataclass",
    "is_struct",
    "read_structure",
]

Style = Literal["dataclass", "struct", "namedtuple", "typeddict", "plain"]

_LISTS = {list, abc.Sequence, abc.MutableSequence, abc.Collection}
_SETS = {set: set, abc.Set: set, abc.MutableSet: set, frozenset: frozenset}
_DICTS = {dict, abc.Mapping, abc.MutableMapping}
_MUTABLE = (list, dict, set)

_SUPPORTED = (
    "str, int, float, bool, Enum, Literal, list, set, frozenset, tuple, dict with str keys, "
    "Optional of these, dataclass, msgspec.Struct, NamedTuple, TypedDict or a class with "
    "annotated fields"
)


@dataclass(frozen=True)
class StructureField:
    """One field of a structure.

    :ivar attribute: its name in Python.
    :ivar name: its name in Kong's datastore.
    :ivar nullable: it is ``Optional``.
    :ivar default: makes its default, or None when it has none.
    :ivar omissible: it is a key of a TypedDict that may be missing.
    :ivar required: what ``kongps.Field`` says of it, or None.
    :ivar shown_default: the default that ``kongps.Field`` gives, or UNSET.
    """

    attribute: str
    name: str
    kind: Kind
    nullable: bool
    default: Optional[Callable[[], Any]]
    omissible: bool = False
    required: Optional[bool] = None
    shown_default: Any = UNSET

    def fallback(self, path: str) -> Any:
        """The value when neither the configuration nor the structure gives one.

        :return: MISSING when the structure's own default is to be used.
        :raises ConfigError: when the field is required.
        """
        if self.default is not None or self.omissible:
            return MISSING
        if self.shown_default is not UNSET and self.shown_default is not None:
            return self.kind.decode(self.kind.encode(self.shown_default), path)
        if self.nullable or self.required is False:
            return None
        raise ConfigError(path, f"is required: expected {self.kind.expected()}")

    def schema(self, path: str, default: Any) -> dict[str, Any]:
        """Kong's description of the field.

        :param default: the structure's default, or MISSING.
        """
        if isinstance(self.kind, Record):
            return self._record_schema(self.kind, path, default)
        described = self.kind.schema(path)
        shown = default if self.shown_default is UNSET else self.shown_default
        if self.required is not None:
            described["required"] = self.required
        elif shown is MISSING and self.default is None and not (self.nullable or self.omissible):
            described["required"] = True
        if shown is not MISSING and shown is not None:
            described["default"] = self._checked_default(shown, path)
            if described["default"] == "" and described["type"] == "string":
                described.setdefault("len_min", 0)  # or Kong would refuse the default
        return described

    def _record_schema(self, record: Record, path: str, default: Any) -> dict[str, Any]:
        # Kong requires a record where nothing else is said, and fills it with its fields'
        # defaults. So the defaults of the nested object are shown as those of its fields.
        absent = default is MISSING or default is None
        described = record.schema(path, None if absent else default)
        required = self.required
        if required is None:
            required = not (self.nullable or self.omissible)
        return {**described, "required": required}

    def _checked_default(self, default: Any, path: str) -> Any:
        if isinstance(default, Field):
            raise UnsupportedType(
                path, "kongps.Field goes into the annotation: Annotated[type, Field(…)]"
            )
        encoded = self.kind.encode(default)
        try:
            self.kind.decode(encoded, path)
        except ConfigError as error:
            raise UnsupportedType(error.path, f"its default does not fit: {error.reason}") from None
        return encoded


@dataclass(frozen=True)
class Record(Kind):
    """A structure: a class with annotated fields."""

    cls: Any = None
    style: Style = "plain"
    fields: tuple[StructureField, ...] = ()
    type_name: str = "record"
    frozen: bool = False

    def decode(self, value: Any, path: str) -> Any:
        return self.merge(value, path, None)

    def merge(self, value: Any, path: str, base: Any) -> Any:
        """A new object from `value`.

        :param base: the object whose values stand for those that `value` does not give; it is
            left as it is. None: the class's defaults.
        """
        if base is None and self.style == "plain":
            return self.fill(self.new_plain(), value, path)
        values = self.values(value, path, base)
        if base is None:
            return self.cls(**values)
        if self.style == "dataclass":
            return replace(base, **values)
        if self.style == "struct":
            import msgspec

            return msgspec.structs.replace(base, **values)
        if self.style == "namedtuple":
            return base._replace(**values)
        if self.style == "typeddict":
            return {**base, **values}
        import copy

        return self.fill(copy.copy(base), value, path)

    def fill(self, target: Any, value: Any, path: str) -> Any:
        """Sets the fields of `target` that `value` gives, and returns it."""
        for attribute, item in self.values(value, path, target).items():
            if self.frozen and self.style == "struct":
                import msgspec

                msgspec.structs.force_setattr(target, attribute, item)
            elif self.frozen:
                object.__setattr__(target, attribute, item)
            else:
                setattr(target, attribute, item)
        return target

    def new_plain(self) -> Any:
        """An object of a plain class, with mutable defaults of its own."""
        made = self.cls()
        for each in self.fields:
            default = getattr(self.cls, each.attribute, None)
            if isinstance(default, _MUTABLE) and getattr(made, each.attribute) is default:
                import copy

                setattr(made, each.attribute, copy.deepcopy(default))
        return made

    def values(self, value: Any, path: str, base: Any) -> dict[str, Any]:
        """The values of the fields that `value` gives, by attribute.

        :param base: an object with values for the others, or None.
        :raises ConfigError: when a value does not fit, or a required one is missing.
        """
        if type(value) is list and not value:
            value = {}  # an empty table of Lua's
        if type(value) is not dict:
            raise self._refuse(value, path)
        values = {}
        for each in self.fields:
            where = f"{path}.{each.name}"
            given = value.get(each.name)
            if given is None:  # null: unset
                if self.value_of(base, each) is MISSING:
                    item = each.fallback(where)
                else:
                    continue
            elif isinstance(each.kind, Record):
                nested = self.value_of(base, each)
                if nested is MISSING and each.default is not None:
                    nested = each.default()
                if not each.kind.fits(nested):
                    nested = None
                item = each.kind.merge(given, where, nested)
            else:
                item = each.kind.decode(given, where)
            if item is not MISSING:
                values[each.attribute] = item
        return values

    def fits(self, value: Any) -> bool:
        """Whether `value` is an object of the structure."""
        return isinstance(value, dict if self.style == "typeddict" else self.cls)

    def value_of(self, base: Any, each: StructureField) -> Any:
        """The value that `base` has for a field, or MISSING."""
        if base is None:
            return MISSING
        if self.style == "typeddict":
            return base.get(each.attribute, MISSING)
        return getattr(base, each.attribute, MISSING)

    def encode(self, value: Any) -> Any:
        if not self.fits(value):
            return value
        encoded = {}
        for each in self.fields:
            item = self.value_of(value, each)
            if item is not MISSING and item is not None:
                encoded[each.name] = each.kind.encode(item)
        return encoded

    def schema(self, path: str, base: Any = None) -> dict[str, Any]:
        """Kong's description of the structure.

        :param base: an object whose values are the fields' defaults; None: the class's own.
        """
        if base is not None and not self.fits(base):
            raise UnsupportedType(
                path, f"its default is {type(base).__name__}, not {self.cls.__name__}"
            )
        if base is None and self.style == "plain":
            base = self.new_plain()
        described = []
        for each in self.fields:
            default = self.value_of(base, each)
            if base is None and each.default is not None:
                default = each.default()
            described.append({each.name: each.schema(f"{path}.{each.name}", default)})
        return {"type": "record", "fields": described, **self.rules.attributes(integer=False)}

    def expected(self) -> str:
        return "a map"


def has_fields(cls: type) -> bool:
    """Whether `cls` has public annotated fields."""
    return bool(annotated_names(cls))


# What a class or an annotation is made with, has been imported by whoever made it. Looking at it
# here must not import it: a dump of a plugin without would take twice as long.


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


@dataclass(frozen=True)
class _Said:
    """What an annotation says: a kind, and what belongs to the field that has it."""

    kind: Kind
    nullable: bool = False
    name: Optional[str] = None
    required: Optional[bool] = None
    default: Any = UNSET


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
            hints = _hints(cls, {row.attribute for row in rows}, path)
            fields = tuple(self._field(row, hints[row.attribute], path) for row in rows)
        finally:
            self._inside.pop()
        seen: dict[str, str] = {}
        for each in fields:
            if each.name in seen:
                raise UnsupportedType(
                    f"{path}.{each.name}",
                    f"{seen[each.name]} and {each.attribute} of {cls.__name__} have this name both",
                )
            seen[each.name] = each.attribute
        return Record(cls=cls, style=style, fields=fields, frozen=_is_frozen(cls, style))

    def _field(self, row: _Row, hint: Any, path: str) -> StructureField:
        said = self.read(hint, f"{path}.{row.name}")
        return StructureField(
            attribute=row.attribute,
            name=said.name or row.name,
            kind=said.kind,
            nullable=said.nullable,
            default=row.default,
            omissible=row.omissible or is_not_required(hint),
            required=said.required,
            shown_default=said.default,
        )

    def read(self, hint: Any, path: str) -> _Said:
        """The kind that an annotation means, and what it says of the field."""
        hint = unwrap_alias(hint)
        if typing.get_origin(hint) is Annotated:
            return self._annotated(hint, path)
        if is_union(hint):
            return self._union(typing.get_args(hint), path)
        return _Said(self._kind(hint, path))

    def element(self, hint: Any, path: str) -> Kind:
        """The kind of an element, where nothing can be said of a field."""
        said = self.read(hint, path)
        if said.name is not None or said.required is not None or said.default is not UNSET:
            raise UnsupportedType(
                path, "name, required and default of kongps.Field are for fields, not elements"
            )
        return optional_kind(said.kind, said.nullable)

    def _annotated(self, hint: Any, path: str) -> _Said:
        said = self.read(hint.__origin__, path)
        rules = said.kind.rules
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
                    changes["default"] = extra.default
            elif isinstance(extra, type) and issubclass(extra, Field):
                raise UnsupportedType(path, "kongps.Field in an annotation needs its parentheses")
        if rules != said.kind.rules:
            changes["kind"] = said.kind.with_rules(rules, path)
        return replace(said, **changes)

    def _union(self, members: tuple[Any, ...], path: str) -> _Said:
        some = [member for member in members if member is not type(None)]
        nullable = len(some) < len(members)
        if len(some) == 1:
            return replace(self.read(some[0], path), nullable=nullable)
        if set(some) == {int, float}:
            return _Said(Scalar.of(Union[int, float]), nullable)
        kinds = tuple(self.element(member, path) for member in some)
        if any(isinstance(kind, Record) for kind in kinds):
            raise UnsupportedType(path, "a union of structures is not possible; use one of them")
        return _Said(Variant(kinds=kinds), nullable)

    def _kind(self, hint: Any, path: str) -> Kind:
        if hint is Any or hint is object:
            return Anything()
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
        return self.element(args[0], f"{path}[]") if args else Anything()

    def _literal(self, hint: Any, path: str) -> Kind:
        values = typing.get_args(hint)
        type_name = scalar_type_name(values)
        if type_name is None:
            raise UnsupportedType(path, "a Literal must list strings only, or integers only")
        return Choice(python_type=hint, values=values, type_name=type_name)

    def _tuple(self, args: tuple[Any, ...], path: str) -> Kind:
        if not args or (len(args) == 2 and args[1] is ...):
            return Array(element=self._element_of(args, path), build=tuple)
        return FixedArray(elements=tuple(self.element(arg, f"{path}[]") for arg in args))

    def _set(self, origin: Any, args: tuple[Any, ...], path: str) -> Kind:
        element = self._element_of(args, path)
        if args and not isinstance(element, (Scalar, Choice)):
            raise UnsupportedType(path, "a set holds strings, numbers or booleans")
        return SetOf(element=element, build=_SETS[origin])

    def _map(self, args: tuple[Any, ...], path: str) -> Kind:
        if not args:
            return Map(key=Scalar.of(str), value=Anything())
        key = self.element(args[0], f"{path} (a key)")
        if not isinstance(key, (Scalar, Choice)) or key.type_name != "string":
            raise UnsupportedType(path, "the keys of a map are strings")
        return Map(key=key, value=self.element(args[1], f"{path}.*"))

    def _class(self, cls: type, path: str) -> Kind:
        if issubclass(cls, enum.Enum):
            values = tuple(member.value for member in cls)
            type_name = scalar_type_name(values)
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


@dataclass(frozen=True)
class _Row:
    """A field as its class declares it, its annotation aside."""

    attribute: str
    name: str
    default: Optional[Callable[[], Any]] = None
    omissible: bool = False


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


def _is_frozen(cls: Any, style: Style) -> bool:
    if style == "dataclass":
        return bool(cls.__dataclass_params__.frozen)
    return style == "struct" and bool(cls.__struct_config__.frozen)


def _hints(cls: type, names: set[str], path: str) -> dict[str, Any]:
    try:
        hints = field_hints(cls, names)
    except TypeError as error:
        raise UnsupportedType(path, str(error)) from error
    for name in names - set(hints):
        raise UnsupportedType(f"{path}.{name}", f"{cls.__name__}.{name} has no annotation")
    return hints


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _raw_fields(cls: Any, style: Style, path: str) -> list[_Row]:
    if style == "dataclass":
        return _dataclass_rows(cls, path)
    if style == "struct":
        return _struct_rows(cls, path)
    if style == "namedtuple":
        defaults = cls._field_defaults
        return [
            _Row(name, name, _always(defaults[name]) if name in defaults else None)
            for name in cls._fields
        ]
    if style == "typeddict":
        return [
            _Row(name, name, omissible=name not in cls.__required_keys__)
            for name in annotated_names(cls)
        ]
    return _plain_rows(cls, path)


def _private_without_default(cls: type, name: str, path: str) -> UnsupportedType:
    return UnsupportedType(
        path,
        f"{cls.__name__}.{name} needs a default: fields with a leading underscore are not "
        "filled from the configuration",
    )


def _is_init_var(each: Any) -> bool:
    return getattr(getattr(each, "_field_type", None), "name", "") == "_FIELD_INITVAR"


def _dataclass_rows(cls: Any, path: str) -> list[_Row]:
    rows = []
    for each in cls.__dataclass_fields__.values():
        if _is_init_var(each) and each.default is dataclasses.MISSING:
            raise UnsupportedType(path, f"{cls.__name__}.{each.name}, an InitVar, needs a default")
    for each in dataclasses.fields(cls):
        default: Optional[Callable[[], Any]] = None
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory
        elif each.default is not dataclasses.MISSING:
            default = _always(each.default)
        if each.name.startswith("_"):
            if default is None and each.init:
                raise _private_without_default(cls, each.name, path)
        elif each.init:  # what the class computes itself is not for the configuration
            rows.append(_Row(each.name, each.name, default))
    return rows


def _struct_rows(cls: Any, path: str) -> list[_Row]:
    import msgspec

    rows = []
    try:
        fields = msgspec.structs.fields(cls)
    except Exception as error:
        raise UnsupportedType(
            path, f"the annotations of {cls.__name__} cannot be evaluated: {error}"
        ) from error
    for each in fields:
        default: Optional[Callable[[], Any]] = None
        if each.default_factory is not msgspec.NODEFAULT:
            default = each.default_factory
        elif each.default is not msgspec.NODEFAULT:
            default = _always(each.default)
        if not each.name.startswith("_"):
            rows.append(_Row(each.name, each.encode_name, default))
        elif default is None:
            raise _private_without_default(cls, each.name, path)
    return rows


def _plain_rows(cls: Any, path: str) -> list[_Row]:
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
        _Row(name, name, _always(getattr(made, name)) if hasattr(made, name) else None)
        for name in annotated_names(cls)
    ]
