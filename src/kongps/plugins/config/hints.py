"""A plugin's configuration: the annotations of its class, evaluated one by one.

``typing.get_type_hints`` evaluates all of a class or none: one private attribute annotated with a
name that exists only for type checkers would spoil it. Here each public one is evaluated alone,
and an error names it.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Container
from typing import Any, Union

from kongps.errors import UnsupportedType

__all__ = ["annotated_names", "field_hints", "is_not_required", "is_union", "unwrap_alias"]

# Wrappers that say nothing about the value. NotRequired and Required of typing (3.11 on) and of
# typing_extensions are different objects, so they are known by name.
_TRANSPARENT = {"Final", "NotRequired", "ReadOnly", "Required"}


def _own_annotations(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return dict(annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF))
    own = cls.__dict__.get("__annotations__")  # noqa: RUF063
    return dict(own) if isinstance(own, dict) else {}  # `type` itself has a descriptor there


def _is_class_variable(hint: Any) -> bool:
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] == "ClassVar"
    return hint is typing.ClassVar or typing.get_origin(hint) is typing.ClassVar


def annotated_names(cls: type) -> dict[str, type]:
    """The public annotated names of `cls` and its bases, in order, with the class that has them.

    Class variables are no fields; names with a leading underscore are the plugin's own.
    """
    names: dict[str, type] = {}
    for base in reversed(cls.__mro__):
        for name, hint in _own_annotations(base).items():
            if not name.startswith("_") and not _is_class_variable(hint):
                names[name] = base
    return names


def field_hints(cls: type, names: Container[str], path: str) -> dict[str, Any]:
    """The evaluated annotations of `cls`, with their ``Annotated`` extras.

    :param names: the fields to evaluate, out of :func:`annotated_names`.
    :param path: where the class stands in the configuration, for errors.
    :raises UnsupportedType: naming the field whose annotation cannot be evaluated.
    """
    hints: dict[str, Any] = {}
    for name, base in annotated_names(cls).items():
        if name not in names:
            continue
        written = _own_annotations(base)[name]
        try:
            hints[name] = _evaluated(written, base)
        except Exception as error:
            raise UnsupportedType(
                path,
                f"the annotation {written!r} of {cls.__name__}.{name} cannot be evaluated: "
                f"{type(error).__name__}: {error}{_advice(error)}",
            ) from error
    return hints


def _evaluated(written: Any, cls: type) -> Any:
    return typing.get_type_hints(
        types.SimpleNamespace(__annotations__={"it": written}),
        globalns=dict(vars(cls)),  # a class's names give way to its module's
        localns=dict(vars(sys.modules.get(cls.__module__, object))),
        include_extras=True,
    )["it"]


def _advice(error: Exception) -> str:
    if sys.version_info < (3, 10) and isinstance(error, TypeError) and "|" in str(error):
        return " (Python 3.9 does not know X | Y: write Optional[X] or Union[X, Y])"
    return ""


def unwrap_alias(hint: Any) -> Any:
    """`hint` without NewType, ``type`` aliases, Final, Required and NotRequired."""
    while True:
        if hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif getattr(typing.get_origin(hint), "_name", None) in _TRANSPARENT:
            (hint,) = typing.get_args(hint)
        else:
            return hint


def is_union(hint: Any) -> bool:
    """Whether `hint` is ``Union[…]``, ``Optional[…]`` or ``X | Y``."""
    origin = typing.get_origin(hint)
    return origin is Union or origin is getattr(types, "UnionType", Union)


def is_not_required(hint: Any) -> bool:
    """Whether `hint` is ``NotRequired[…]``.

    ``__required_keys__`` does not know of it where annotations are strings.
    """
    return getattr(typing.get_origin(hint), "_name", None) == "NotRequired"
