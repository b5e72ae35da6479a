"""A plugin's schema from the gateway's side: check a configuration, fill in what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kongps.errors import ConfigError

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "set": (list, tuple, set, frozenset),
    "map": (Mapping,),
    "record": (Mapping,),
}


def fill(schema: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as Kong stores it: defaults filled in, unset fields null.

    :param schema: a plugin's whole schema.
    :raises ConfigError: Kong would refuse this configuration (unknown fields, wrong types, what is
        required and missing, ``one_of`` and ``between``; finer checks are left to the plugin).
    """
    for name, field in _fields(schema):
        if name == "config":
            filled: dict[str, Any] = _record(field, config, "config")
            return filled
    return dict(config)


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    fields = schema.get("fields") or []
    for entry in fields if isinstance(fields, list) else [fields]:
        if isinstance(entry, Mapping):
            for name, field in entry.items():
                if isinstance(field, Mapping):
                    yield name, field


def _record(schema: Mapping[str, Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    fields = dict(_fields(schema))
    for name in given:
        if name not in fields:
            raise ConfigError(f"{path}.{name}", "unknown field")
    return {name: _value(fields[name], given.get(name), f"{path}.{name}") for name in fields}


def _value(field: Mapping[str, Any], given: Any, path: str) -> Any:
    kind = field.get("type", "")
    if given is None:
        given = field.get("default")
    if given is None:
        if kind == "record" and field.get("required") is not False:
            given = {}  # in Kong a record is required unless the schema has required = false
        elif field.get("required"):
            raise ConfigError(path, "required field missing")
        else:
            return None
    expected = _TYPES.get(kind)
    if expected and (
        not isinstance(given, expected) or (isinstance(given, bool) and kind != "boolean")
    ):
        raise ConfigError(path, f"expected {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
    if kind == "integer" and given != int(given):
        raise ConfigError(path, "expected an integer")
    one_of = field.get("one_of")
    if one_of and given not in one_of:
        raise ConfigError(path, f"expected one of: {', '.join(str(item) for item in one_of)}")
    between = field.get("between")
    if between and not between[0] <= given <= between[1]:
        raise ConfigError(path, f"value should be between {between[0]} and {between[1]}")
    if kind == "record":
        return _record(field, given, path)
    if kind in ("array", "set"):
        elements = field.get("elements") or {}
        items = sorted(given) if isinstance(given, (set, frozenset)) else given
        return [_value(elements, item, f"{path}[{i}]") for i, item in enumerate(items, 1)]
    if kind == "map":
        values = field.get("values") or {}
        return {key: _value(values, item, f"{path}.{key}") for key, item in given.items()}
    return given
