"""A plugin's configuration: makes objects of a structure from it, and describes it for Kong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Optional

from kongps.errors import ConfigError, UnsupportedType
from kongps.fields import UNSET, Field
from kongps.plugins.config.kinds import ANY_VALUE, Kind

__all__ = ["Record", "StructureField", "Style"]

Style = Literal["dataclass", "struct", "namedtuple", "typeddict", "plain"]

_MUTABLE = (list, dict, set)


@dataclass(eq=False, repr=False)
class StructureField:
    """One field of a structure.

    :ivar attribute: its name in Python.
    :ivar name: its name in Kong's datastore.
    :ivar default: makes its default, or None when it has none.
    :ivar omissible: it is a key of a TypedDict that may be missing.
    :ivar kind: what its annotation means.
    :ivar nullable: it is ``Optional``.
    :ivar required: what ``kongps.Field`` says of it, or None.
    :ivar shown_default: the default that ``kongps.Field`` gives, or UNSET.
    """

    attribute: str = ""
    name: str = ""
    default: Optional[Callable[[], Any]] = None
    omissible: bool = False
    kind: Kind = ANY_VALUE
    nullable: bool = False
    required: Optional[bool] = None
    shown_default: Any = UNSET

    def fallback(self, path: str) -> Any:
        """The value when neither the configuration nor the structure gives one.

        :return: UNSET when the structure's own default is to be used.
        :raises ConfigError: when the field is required.
        """
        if self.default is not None or self.omissible:
            return UNSET
        if self.shown_default is not UNSET and self.shown_default is not None:
            return self.kind.decode(self.kind.encode(self.shown_default), path)
        if self.nullable or self.required is False:
            return None
        raise ConfigError(path, f"is required: expected {self.kind.expected()}")

    def schema(self, path: str, default: Any) -> dict[str, Any]:
        """Kong's description of the field.

        :param default: the structure's default, or UNSET.
        """
        may_be_absent = self.nullable or self.omissible
        if isinstance(self.kind, Record):
            # By default, Kong requires a record, and fills it with its fields'
            # defaults. So the defaults of the nested object are shown as those of its fields.
            described = self.kind.schema(path, None if default is UNSET else default)
            described["required"] = not may_be_absent if self.required is None else self.required
            return described
        described = self.kind.schema(path)
        shown = default if self.shown_default is UNSET else self.shown_default
        if self.required is not None:
            described["required"] = self.required
        elif shown is UNSET and self.default is None and not may_be_absent:
            described["required"] = True
        if shown is not UNSET and shown is not None:
            described["default"] = self._checked_default(shown, path)
            if described["default"] == "" and described["type"] == "string":
                described.setdefault("len_min", 0)  # or Kong would refuse the default
        return described

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


@dataclass(eq=False, repr=False)
class Record(Kind):
    """A structure: a class with annotated fields."""

    cls: Any = None
    style: Style = "plain"
    fields: tuple[StructureField, ...] = ()
    type_name: str = "record"

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
        return self.fill(copy.copy(base), value, path)

    def fill(self, target: Any, value: Any, path: str) -> Any:
        """Sets the fields of `target` that `value` gives, and returns it."""
        write: Callable[[Any, str, Any], None] = setattr
        if self.style == "struct":
            import msgspec

            write = msgspec.structs.force_setattr
        elif self.style == "dataclass" and self.cls.__dataclass_params__.frozen:
            write = object.__setattr__
        for attribute, item in self.values(value, path, target).items():
            write(target, attribute, item)
        return target

    def new_plain(self) -> Any:
        """An object of a plain class, with mutable defaults of its own."""
        made = self.cls()
        for each in self.fields:
            default = getattr(self.cls, each.attribute, None)
            if isinstance(default, _MUTABLE) and getattr(made, each.attribute) is default:
                setattr(made, each.attribute, copy.deepcopy(default))
        return made

    def values(self, value: Any, path: str, base: Any) -> dict[str, Any]:
        """The values of the fields that `value` gives, by attribute.

        :param base: an object with values for the others, or None.
        :raises ConfigError: when a value does not fit, or a required one is missing.
        """
        value = self._table(value, dict, path)
        values = {}
        for each in self.fields:
            where = f"{path}.{each.name}"
            given = value.get(each.name)
            if given is None:  # null: unset
                if self.value_of(base, each) is not UNSET:
                    continue
                item = each.fallback(where)
            elif isinstance(each.kind, Record):
                nested = self.value_of(base, each)
                if nested is UNSET and each.default is not None:
                    nested = each.default()
                item = each.kind.merge(given, where, nested if each.kind.fits(nested) else None)
            else:
                item = each.kind.decode(given, where)
            if item is not UNSET:
                values[each.attribute] = item
        return values

    def fits(self, value: Any) -> bool:
        """Whether `value` is an object of the structure."""
        return isinstance(value, dict if self.style == "typeddict" else self.cls)

    def value_of(self, base: Any, each: StructureField) -> Any:
        """The value that `base` has for a field, or UNSET."""
        if base is None:
            return UNSET
        if self.style == "typeddict":
            return base.get(each.attribute, UNSET)
        return getattr(base, each.attribute, UNSET)

    def encode(self, value: Any) -> Any:
        if not self.fits(value):
            return value
        encoded = {}
        for each in self.fields:
            item = self.value_of(value, each)
            if item is not UNSET and item is not None:
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
        return {**super().schema(path), "fields": described}

    def expected(self) -> str:
        return "a map"
