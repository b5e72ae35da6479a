"""A plugin's schema as Kong reads it: assembled from its fields, and checked before Kong gets it.

``{"name": NAME, "fields": [{"config": {"type": "record", "fields": [{FIELD: {…}}, …]}}]}``

A schema that a plugin wrote itself is copied into plain lists, dicts, strings and numbers, which
go into JSON as well as into MessagePack, and checked for what Kong would refuse or misread.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Optional

from kongps.errors import SchemaError

__all__ = ["assemble", "check_fields", "own_schema", "plain"]

# What each of Kong's types needs beside its name.
TYPES: dict[str, tuple[str, ...]] = {
    "array": ("elements",),
    "boolean": (),
    "foreign": ("reference",),
    "integer": (),
    "json": (),
    "map": ("keys", "values"),
    "number": (),
    "record": ("fields",),
    "set": ("elements",),
    "string": (),
}


def assemble(
    name: str,
    config: dict[str, Any],
    plugin_fields: Iterable[Any] = (),
    entity_checks: Optional[Iterable[Any]] = None,
) -> dict[str, Any]:
    """The whole schema of a plugin.

    :param config: the record that describes ``config``.
    :param plugin_fields: further top-level fields, such as ``{"protocols": {…}}``.
    :param entity_checks: checks over several fields, such as
        ``{"at_least_one_of": ["config.a", "config.b"]}``; they name fields from the top.
    :raises SchemaError: when one of them is not what Kong takes.
    """
    own = check_fields(plugin_fields, "plugin_fields")
    if any("config" in each for each in own):
        raise SchemaError("plugin_fields: config is derived from the structure; use Schema instead")
    whole = {"name": name, "fields": [*own, {"config": config}]}
    if entity_checks is not None:
        whole["entity_checks"] = _single_keys(entity_checks, "entity_checks", "a check")
    return whole


def own_schema(name: str, written: Any) -> dict[str, Any]:
    """The schema that a plugin wrote itself.

    :param written: the fields of its ``config``, a list or tuple of single-key dicts; or a dict,
        the whole schema, whose ``name`` may be left out.
    :raises SchemaError: when Kong could not use it.
    """
    if not isinstance(written, dict):
        return assemble(name, {"type": "record", "fields": check_fields(written, "Schema")})
    whole = plain(written, "Schema")
    if whole.setdefault("name", name) != name:
        raise SchemaError(f"Schema: its name is {whole['name']!r}; it must be the plugin's")
    fields = check_fields(whole.get("fields"), "Schema.fields")
    if not any("config" in each for each in fields):
        raise SchemaError("Schema.fields: the field config is missing")
    if "entity_checks" in whole:
        _single_keys(whole["entity_checks"], "Schema.entity_checks", "a check")
    return {**whole, "fields": fields}


def check_fields(fields: Any, path: str) -> list[dict[str, Any]]:
    """`fields` as a list of ``{name: {"type": …}}``.

    :param path: what it is called in messages.
    :raises SchemaError: when it is something else.
    """
    checked = _single_keys(fields, path, "a field")
    for each in checked:
        for name, described in each.items():
            _check_type(described, f"{path}.{name}")
    return checked


def _single_keys(rows: Any, path: str, what: str) -> list[dict[str, Any]]:
    if not isinstance(rows, (list, tuple)):
        raise SchemaError(
            f"{path}: expected a list with a dict for each of its rows, not {type(rows).__name__}"
        )
    checked: list[dict[str, Any]] = plain(rows, path)
    for index, row in enumerate(checked):
        if not isinstance(row, dict) or len(row) != 1:
            raise SchemaError(f'{path}[{index}]: expected {what}, {{"name": {{…}}}}, with one key')
    return checked


def _check_type(described: Any, path: str) -> None:
    if not isinstance(described, dict):
        raise SchemaError(f'{path}: expected a dict such as {{"type": "string"}}')
    name = described.get("type")
    if name not in TYPES:
        raise SchemaError(
            f"{path}: the type is {name!r}; Kong's types are {', '.join(sorted(TYPES))}"
        )
    for needed in TYPES[name]:
        if needed not in described:
            raise SchemaError(f"{path}: the type {name} needs {needed!r}")
    for part in ("elements", "keys", "values"):
        if part in described:
            _check_type(described[part], f"{path}.{part}")
    if "fields" in described:
        check_fields(described["fields"], path)


def plain(value: Any, path: str) -> Any:
    """A copy of `value` in lists, dicts, strings, numbers, booleans and None.

    :raises SchemaError: for anything else, such as a function, which only Lua could call.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, path)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise SchemaError(f"{path}: the key {key!r} is not a string")
        return {key: plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        items = [plain(item, f"{path}[]") for item in value]
        return sorted(items, key=lambda item: (type(item).__name__, item))
    raise SchemaError(f"{path}: {type(value).__name__} cannot be sent to Kong")
