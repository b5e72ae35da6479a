"""Kong's schema, derived from a structure or written by the plugin."""

from __future__ import annotations

import enum
import json
import sys
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kongps.errors import PluginError
from kongps.fields import Field, no_consumer, no_route, no_service, protocols
from kongps.plugins.loader import from_object
from kongps.plugins.plugin import Plugin
from kongps.plugins.schema import TYPES


def access(self: Any, kong: Any) -> Any:
    return self


def load(namespace: dict[str, Any]) -> Plugin:
    return from_object(type("It", (), {"access": access, **namespace}), name="sample")


def fields_of(plugin: Plugin) -> list[dict[str, Any]]:
    assert json.loads(json.dumps(plugin.schema)) == plugin.schema
    assert msgpack.unpackb(msgpack.packb(plugin.schema)) == plugin.schema
    (config,) = (each["config"] for each in plugin.schema["fields"] if "config" in each)
    assert config["type"] == "record"
    found: list[dict[str, Any]] = config["fields"]
    return found


def described(hint: Any, **namespace: Any) -> dict[str, Any]:
    """What the schema says of a field of type `hint`."""
    plugin = load({"__annotations__": {"field": hint}, **namespace})
    (only,) = fields_of(plugin)
    found: dict[str, Any] = only["field"]
    return found


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Limit(NamedTuple):
    minute: int
    hour: int = 60


class Server(TypedDict, total=False):
    host: str


@dataclass
class Nested:
    size: int = 1
    name: Annotated[Optional[str], Field(name="the-name")] = None


STRING = {"type": "string"}
INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (str, STRING),
        (int, INTEGER),
        (float, {"type": "number"}),
        (Union[int, float], {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Colour, {"type": "string", "one_of": ["red", "blue"]}),
        (Level, {"type": "integer", "one_of": [1, 2]}),
        (Literal["a", "b"], {"type": "string", "one_of": ["a", "b"]}),
        (list[str], {"type": "array", "elements": STRING}),
        (list[Optional[str]], {"type": "array", "elements": STRING}),
        (tuple[int, ...], {"type": "array", "elements": INTEGER}),
        (tuple[int, int], {"type": "array", "elements": INTEGER, "len_eq": 2}),
        (set[str], {"type": "set", "elements": STRING}),
        (frozenset[int], {"type": "set", "elements": INTEGER}),
        (dict[str, int], {"type": "map", "keys": STRING, "values": INTEGER}),
        (
            dict[Literal["a"], list[bool]],
            {
                "type": "map",
                "keys": {"type": "string", "one_of": ["a"]},
                "values": {"type": "array", "elements": {"type": "boolean"}},
            },
        ),
        (
            Nested,
            {
                "type": "record",
                "fields": [{"size": {"type": "integer", "default": 1}}, {"the-name": STRING}],
            },
        ),
        (
            Limit,
            {
                "type": "record",
                "fields": [
                    {"minute": {"type": "integer", "required": True}},
                    {"hour": {"type": "integer", "default": 60}},
                ],
            },
        ),
        (Server, {"type": "record", "fields": [{"host": STRING}]}),
        (Annotated[int, Field(gt=5)], {"type": "integer", "gt": 5}),
        (Annotated[int, msgspec.Meta(gt=5)], {"type": "integer", "gt": 5}),
        (Annotated[int, msgspec.Meta(ge=5)], {"type": "integer", "gt": 4}),
        (Annotated[int, msgspec.Meta(gt=5, lt=9)], {"type": "integer", "between": [6, 8]}),
        (Annotated[int, msgspec.Meta(le=9)], {"type": "integer", "between": [-(2**53), 9]}),
        (Annotated[int, Field(between=(1, 5))], {"type": "integer", "between": [1, 5]}),
        (Annotated[float, Field(gt=0)], {"type": "number", "gt": 0}),
        (Annotated[float, Field(between=(1.0, 1.5))], {"type": "number", "between": [1, 1.5]}),
        (
            Annotated[float, msgspec.Meta(gt=0, le=9)],
            {"type": "number", "gt": 0, "between": [0, 9]},
        ),
        (
            Annotated[float, msgspec.Meta(ge=0)],
            {"type": "number", "between": [0, sys.float_info.max]},
        ),
        (Annotated[int, msgspec.Meta(multiple_of=2)], INTEGER),
        (
            Annotated[str, msgspec.Meta(min_length=2, max_length=5, pattern="^a+")],
            {"type": "string", "len_min": 2, "len_max": 5},
        ),
        (
            Annotated[str, Field(match="^%a+$", one_of=["a", "b"], len_min=0)],
            {"type": "string", "match": "^%a+$", "one_of": ["a", "b"], "len_min": 0},
        ),
        (
            Annotated[str, Field(referenceable=True, encrypted=True)],
            {"type": "string", "referenceable": True, "encrypted": True},
        ),
        (
            Annotated[str, Field(extra={"starts_with": "/"})],
            {"type": "string", "starts_with": "/"},
        ),
        (
            Annotated[list[Annotated[str, Field(len_max=3)]], Field(len_min=1)],
            {"type": "array", "len_min": 1, "elements": {"type": "string", "len_max": 3}},
        ),
        (
            Annotated[Annotated[str, Field(len_min=1)], msgspec.Meta(max_length=5)],
            {"type": "string", "len_min": 1, "len_max": 5},
        ),
    ],
)
def test_a_field_without_a_default_is_required(hint: Any, expected: dict[str, Any]) -> None:
    assert described(hint) == {**expected, "required": True}


@pytest.mark.parametrize(
    ("hint", "default", "expected"),
    [
        (str, "x", {"type": "string", "default": "x"}),
        (str, "", {"type": "string", "default": "", "len_min": 0}),
        (str, None, STRING),
        (bool, False, {"type": "boolean", "default": False}),
        (float, 5, {"type": "number", "default": 5}),
        (Optional[str], None, STRING),
        (Optional[str], "x", {"type": "string", "default": "x"}),
        (Colour, Colour.RED, {"type": "string", "one_of": ["red", "blue"], "default": "red"}),
        (list[Level], [Level.HIGH], {"default": [2]}),
        (tuple[int, int], (1, 2), {"default": [1, 2]}),
        (set[str], {"b", "a"}, {"default": ["a", "b"]}),
        (dict[str, set[int]], {"a": {2, 1}}, {"default": {"a": [1, 2]}}),
        (list[Nested], [Nested(5, "n")], {"default": [{"size": 5, "the-name": "n"}]}),
        (Annotated[str, Field(default="shown")], "x", {"type": "string", "default": "shown"}),
        (Annotated[str, Field(default=None)], "x", STRING),
        (Annotated[str, Field(required=True)], "x", {"required": True, "default": "x"}),
    ],
)
def test_a_field_with_a_default_shows_it(hint: Any, default: Any, expected: Any) -> None:
    found = described(hint, field=default)
    assert {key: found[key] for key in expected} == expected
    assert ("required" in found) == ("required" in expected)
    assert ("default" in found) == ("default" in expected)


def test_required_can_be_said() -> None:
    assert described(Annotated[str, Field(required=False)]) == {"type": "string", "required": False}
    assert described(Annotated[Optional[str], Field(required=True)])["required"] is True


def test_a_nested_record_shows_its_defaults_as_those_of_its_fields() -> None:
    shown = described(Nested, field=Nested(7, "n"))
    assert shown == {
        "type": "record",
        "required": True,
        "fields": [
            {"size": {"type": "integer", "default": 7}},
            {"the-name": {"type": "string", "default": "n"}},
        ],
    }


def test_an_optional_record_is_not_required_since_kong_requires_records_unless_told() -> None:
    assert described(Optional[Nested], field=None)["required"] is False
    assert described(Optional[Nested])["required"] is False


def test_names_in_the_datastore() -> None:
    class It(msgspec.Struct, rename="kebab"):
        user_name: str
        other_name: Annotated[str, Field(name="other")]

        def access(self, kong: Any) -> None: ...

    names = [name for each in fields_of(from_object(It)) for name in each]
    assert names == ["user-name", "other"]


def test_private_and_class_variables_are_no_fields() -> None:
    @dataclass
    class It:
        _a: int = 0
        b: typing.ClassVar[int] = 0
        c: int = field(init=False, default=0)

        def access(self, kong: Any) -> None: ...

    assert fields_of(from_object(It)) == []


def test_fields_of_base_classes_come_first() -> None:
    class Base:
        a: int = 1

    class It(Base):
        b: int = 2
        a: int = 3

        def access(self, kong: Any) -> None: ...

    assert fields_of(from_object(It)) == [
        {"a": {"type": "integer", "default": 3}},
        {"b": {"type": "integer", "default": 2}},
    ]


# Schemas of the plugin's own


@pytest.mark.parametrize("name", ["Schema", "schema"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_plugins_own_fields_replace_the_derived_ones(name: str, kind: Any) -> None:
    own = kind([{"a": {"type": "set", "elements": {"type": "string"}, "default": {"y", "x"}}}])
    plugin = load({"__annotations__": {"a": list[str]}, name: own})
    assert plugin.schema["name"] == "sample"
    assert fields_of(plugin)[0]["a"]["default"] == ["x", "y"]
    assert plugin.new({"a": ["q"]})["access"](None).a == ["q"]


def test_a_plugins_own_whole_schema() -> None:
    whole = {
        "fields": ({"config": {"type": "record", "fields": ()}}, protocols("http")),
        "entity_checks": [{"at_least_one_of": ["config.a"]}],
    }
    plugin = load({"Schema": whole})
    assert plugin.schema == {
        "name": "sample",
        "fields": [{"config": {"type": "record", "fields": []}}, protocols("http")],
        "entity_checks": [{"at_least_one_of": ["config.a"]}],
    }
    assert "name" not in whole


def test_further_fields_and_checks_are_added() -> None:
    plugin = load(
        {
            "__annotations__": {"a": Optional[str], "b": Optional[str]},
            "a": None,
            "b": None,
            "plugin_fields": (no_consumer(), no_route(), no_service(), protocols("tcp", "tls")),
            "entity_checks": [{"only_one_of": ("config.a", "config.b")}],
        }
    )
    assert [*map(next, map(iter, plugin.schema["fields"]))] == [
        "consumer",
        "route",
        "service",
        "protocols",
        "config",
    ]
    assert plugin.schema["entity_checks"] == [{"only_one_of": ["config.a", "config.b"]}]
    assert fields_of(plugin) == [{"a": STRING}, {"b": STRING}]
    assert no_route() == {"route": {"type": "foreign", "reference": "routes", "eq": None}}


def test_further_fields_go_with_own_fields_too() -> None:
    plugin = load({"Schema": [{"a": STRING}], "plugin_fields": [protocols("http")]})
    assert fields_of(plugin) == [{"a": STRING}]
    assert plugin.schema["fields"][0] == protocols("http")


@pytest.mark.parametrize(
    ("namespace", "reason"),
    [
        ({"Schema": "x"}, "Schema: expected a list"),
        ({"Schema": [{"a": "string"}]}, "Schema.a: expected a dict such as"),
        ({"Schema": [{"a": {"type": "text"}}]}, "Schema.a: the type is 'text'; Kong's types are"),
        ({"Schema": [{"a": {"type": "map", "keys": STRING}}]}, "the type map needs 'values'"),
        (
            {"Schema": [{"a": {"type": "array", "elements": {"type": "x"}}}]},
            "Schema.a.elements: the type is 'x'",
        ),
        (
            {"Schema": [{"a": {"type": "record", "fields": [{"b": {}}]}}]},
            "Schema.a.b: the type is None",
        ),
        ({"Schema": [{5: STRING}]}, "the key 5 is not a string"),
        ({"Schema": [{}]}, "with one key"),
        ({"Schema": [{"a": {"type": "string", "one_of": object()}}]}, "cannot be sent to Kong"),
        ({"Schema": {"fields": [{"a": STRING}]}}, "the field config is missing"),
        ({"Schema": {"name": "x", "fields": []}}, "it must be the plugin's"),
        ({"Schema": {}}, "Schema.fields: expected a list"),
        ({"plugin_fields": [{"a": {}}]}, "plugin_fields.a: the type is None"),
        ({"plugin_fields": {"protocols": {}}}, "plugin_fields: expected a list"),
        ({"plugin_fields": [{"config": {"type": "record", "fields": []}}]}, "use Schema instead"),
        ({"entity_checks": {"x": []}}, "entity_checks: expected a list"),
        ({"entity_checks": [{"a": 1, "b": 2}]}, "entity_checks[0]: expected a check"),
    ],
)
def test_a_schema_with_an_obvious_error_is_refused(namespace: Any, reason: str) -> None:
    with pytest.raises(PluginError) as caught:
        load(namespace)
    assert caught.value.plugin == "sample"
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": "a.b"}, ValueError),
        ({"between": (5, 1)}, ValueError),
        ({"between": 5}, TypeError),
        ({"len_min": -1}, ValueError),
        ({"len_max": 1.5}, ValueError),
        ({"one_of": "abc"}, TypeError),
    ],
)
def test_field_refuses_what_cannot_be_meant(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Field(**arguments)


def test_field_shows_what_was_said() -> None:
    assert repr(Field(len_min=0, name="x")) == "Field(len_min=0, name='x')"


# Random structures

names = st.text("abcdgh", min_size=1, max_size=3)
texts = st.text(max_size=5)
integers = st.integers(-(2**53), 2**53)
numbers = st.floats(allow_nan=False, allow_infinity=False)

# A type, with a strategy for the JSON of its values.
Typed = tuple[Any, st.SearchStrategy[Any]]

scalars: st.SearchStrategy[Typed] = st.sampled_from(
    [
        (str, texts),
        (int, integers),
        (int, integers.map(float).filter(lambda number: abs(number) < 2**53)),
        (float, numbers),
        (float, integers),
        (bool, st.booleans()),
        (Colour, st.sampled_from(["red", "blue"])),
        (Level, st.sampled_from([1, 2, 2.0])),
        (Literal["a", "b"], st.sampled_from(["a", "b"])),
        (Annotated[int, Field(between=(0, 9))], st.integers(0, 9)),
        (Annotated[str, Field(len_min=1)], st.text(min_size=1, max_size=3)),
    ]
)


def lua_empty(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An empty array or map may come as the other."""
    return strategy.flatmap(lambda value: st.just(value) if value else st.sampled_from([[], {}]))


def record(rows: list[tuple[str, Typed, bool]]) -> Typed:
    unique = {name: (hint, values, given_default) for name, (hint, values), given_default in rows}
    made = make_dataclass(
        "Made",
        [
            (name, Optional[hint], field(default=None)) if optional else (name, hint)
            for name, (hint, _, optional) in sorted(unique.items(), key=lambda row: row[1][2])
        ],
    )
    made.__module__ = __name__
    required = {name: values for name, (_, values, optional) in unique.items() if not optional}
    optional = {
        name: values | st.none() for name, (_, values, optional) in unique.items() if optional
    }
    return made, lua_empty(st.fixed_dictionaries(required, optional=optional))


def containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return st.one_of(
        inner.map(lambda t: (list[t[0]], lua_empty(st.lists(t[1], max_size=3)))),  # type: ignore[name-defined]
        inner.map(lambda t: (tuple[t[0], ...], lua_empty(st.lists(t[1], max_size=3)))),  # type: ignore[name-defined]
        scalars.map(lambda t: (set[t[0]], lua_empty(st.lists(t[1], max_size=3)))),  # type: ignore[name-defined]
        inner.map(lambda t: (dict[str, t[0]], lua_empty(st.dictionaries(texts, t[1], max_size=3)))),  # type: ignore[name-defined]
        st.lists(st.tuples(names, inner, st.booleans()), max_size=3).map(record),
    )


structures = st.lists(
    st.tuples(names, st.recursive(scalars, containers, max_leaves=6), st.booleans()), max_size=4
).map(record)


def check_well_formed(described: dict[str, Any]) -> None:
    assert described["type"] in TYPES
    for needed in TYPES[described["type"]]:
        assert needed in described
    for part in ("elements", "keys", "values"):
        if part in described:
            assert "required" not in described[part]
            check_well_formed(described[part])
    for each in described.get("fields", ()):
        ((_, inner),) = each.items()
        check_well_formed(inner)


@settings(max_examples=150, deadline=None)
@given(structures, st.data())
def test_any_structure_has_a_schema_and_takes_what_the_schema_allows(
    structure: Typed, data: st.DataObject
) -> None:
    cls, values = structure
    cls.access = access
    plugin = from_object(cls, name="sample")
    for each in fields_of(plugin):
        for described in each.values():
            check_well_formed(described)
    config = data.draw(values)
    own = {"__seq__": 1, "service_id": "x"}
    sent = {**own, **config} if isinstance(config, dict) else own
    sent = json.loads(json.dumps(sent))
    made = plugin.new(sent)["access"](None)
    assert plugin.new(sent)["access"](None) == made
    for name, value in sent.items():
        if name not in own and isinstance(value, (str, bool)) and value is not None:
            found = getattr(made, name)
            assert value == (found.value if isinstance(found, enum.Enum) else found)
