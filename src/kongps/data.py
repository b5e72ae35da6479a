"""Classes that are their fields, as dataclasses are, where Kong waits for them to be made.

``kongps dump`` runs at each start of Kong, and what it does is next to nothing beside what it
imports. :mod:`dataclasses` imports ``inspect`` and compiles the methods of each class; that is
longer than Python itself takes to start. :class:`Data` compiles and imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        return lambda cls: cls


__all__ = ["Data"]


@dataclass_transform(frozen_default=True)
class Data:
    """Base of classes whose annotated names are the fields of their objects.

    A field is given by position or by name; what the class has for it is its default, which
    objects share. Objects of one class are equal when their fields are. That they are not to be
    changed (unless the class says ``frozen=False``) is left to mypy.
    """

    _fields = tuple[str, ...]()

    def __init_subclass__(cls, *, frozen: bool = True) -> None:
        own = getattr(cls, "__annotations__", {})
        cls._fields = tuple(dict.fromkeys((*cls._fields, *own)))

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        given = dict(zip(cls._fields, values))
        wrong = [name for name in named if name in given or name not in cls._fields]
        missing = [
            name
            for name in cls._fields
            if name not in given and name not in named and not hasattr(cls, name)
        ]
        if wrong or missing or len(values) > len(cls._fields):
            raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
        given.update(named)
        self.__dict__.update(
            {name: given[name] if name in given else getattr(cls, name) for name in cls._fields}
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def replace(self, **changes: Any) -> Self:
        """A copy with other values for some fields."""
        return type(self)(**{**vars(self), **changes})
