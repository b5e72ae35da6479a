"""A configuration as Kong sends it becomes the plugin's structure, or is refused with the path."""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import enum
import json
import typing
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    Union,
)

import msgpack
import msgspec
import pytest
from paths import DATA

from kongps.errors import ConfigError, PluginError
from kongps.fields import Field
from kongps.plugins.loader import from_object

SECRET = "s3cr3t-value"


class Handler:
    """Gives a structure a handler that returns it."""

    def access(self, kong: Any) -> Any:
        return self


def make(cls: Any, config: dict[str, Any]) -> Any:
    return from_object(cls, name="sample").new(config)["access"](None)


def one(hint: Any, value: Any, **config: Any) -> Any:
    """The value of a field of type `hint` after a configuration with `value`."""
    # With a Schema of its own, since some of the types have none in Kong.
    cls = type("One", (Handler,), {"__annotations__": {"field": hint}, "Schema": []})
    return make(cls, {"field": value, **config}).field


def refused(hint: Any, value: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        one(hint, value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # which would carry msgspec's message
    return caught.value


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Text(str, enum.Enum):
    A = "a"


class Limit(NamedTuple):
    minute: int
    hour: int = 60


class Server(TypedDict):
    host: str
    port: typing.NotRequired[int] if hasattr(typing, "NotRequired") else int  # type: ignore[valid-type]


@dataclass
class Nested:
    size: int = 1
    names: list[str] = field(default_factory=list)


class Plain:
    host: str = "localhost"
    ports: ClassVar[int] = 5
    tags: list[str] = []  # noqa: RUF012


UserId = NewType("UserId", str)


# Single values


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (str, "é", "é"),
        (str, "\udc80", "\udc80"),
        (int, 5, 5),
        (int, 5.0, 5),
        (int, -(2**53), -(2**53)),
        (float, 5, 5.0),
        (float, 5.5, 5.5),
        (Union[int, float], 5, 5),
        (Union[int, float], 5.5, 5.5),
        (bool, True, True),
        (Optional[int], 5, 5),
        (Optional[int], None, None),
        (Annotated[Optional[int], Field(gt=1)], 5, 5),
        (UserId, "u", "u"),
        (Colour, "red", Colour.RED),
        (Text, "a", Text.A),
        (Level, 2, Level.HIGH),
        (Level, 2.0, Level.HIGH),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], 2.0, 2),
        (list[int], [1, 2.0], [1, 2]),
        (list[int], {}, []),
        (list, [1, "a", None], [1, "a", None]),
        (collections.abc.Sequence[int], [1], [1]),
        (list[list[int]], [[1], {}], [[1], []]),
        (list[Optional[int]], [1, None], [1, None]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, ...], {}, ()),
        (tuple[int, str], [1, "a"], (1, "a")),
        (set[str], ["a", "b", "a"], {"a", "b"}),
        (set[str], {}, set()),
        (frozenset[Colour], ["red"], frozenset({Colour.RED})),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[str, int], [], {}),
        (dict[str, int], {"a": 1, "b": None}, {"a": 1}),
        (dict[str, Optional[int]], {"b": None}, {"b": None}),
        (dict[Literal["a", "b"], int], {"a": 1}, {"a": 1}),
        (dict[str, list[int]], {"a": {}}, {"a": []}),
        (collections.abc.Mapping[str, bool], {"a": True}, {"a": True}),
        (Any, {"x": [1]}, {"x": [1]}),
        (Union[int, str], "a", "a"),
        (Union[int, str, None], 5, 5),
        (Limit, {"minute": 5}, Limit(5, 60)),
        (Nested, {"size": 3}, Nested(3, [])),
        (Nested, [], Nested()),
        (list[Nested], [{"size": 3}, {}, []], [Nested(3), Nested(), Nested()]),
        (dict[str, Nested], {"a": {"names": ["x"]}}, {"a": Nested(1, ["x"])}),
        (Annotated[int, msgspec.Meta(ge=5, le=5)], 5, 5),
        (Annotated[str, msgspec.Meta(pattern="^a+$")], "aa", "aa"),
        (Annotated[list[Annotated[str, Field(len_min=2)]], Field(len_max=1)], ["ab"], ["ab"]),
    ],
)
def test_values_are_converted(hint: Any, value: Any, expected: Any) -> None:
    found = one(hint, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (str, 5, "config.field: expected a string, got an integer"),
        (str, [SECRET], "config.field: expected a string, got an array"),
        (int, SECRET, "config.field: expected an integer, got a string"),
        (int, 5.5, "config.field: expected an integer, got a number"),
        (int, True, "config.field: expected an integer, got a boolean"),
        (int, float("inf"), "config.field: expected an integer, got a number"),
        (float, SECRET, "config.field: expected a number, got a string"),
        (bool, 1, "config.field: expected a boolean, got an integer"),
        (Colour, SECRET, "config.field: expected one of 'red', 'blue'"),
        (Level, 3, "config.field: expected one of 1, 2"),
        (Literal["a"], SECRET, "config.field: expected one of 'a'"),
        (list[int], [1, SECRET], "config.field[1]: expected an integer, got a string"),
        (list[int], SECRET, "config.field: expected an array, got a string"),
        (list[int], {"a": SECRET}, "config.field: expected an array, got a map"),
        (list[int], [None], "config.field[0]: expected an integer, got null"),
        (list[list[int]], [[1], [2, SECRET]], "config.field[1][1]: expected an integer"),
        (set[str], [5], "config.field[0]: expected a string, got an integer"),
        (tuple[int, str], [1], "config.field: expected an array of 2"),
        (tuple[int, str], [1, 2], "config.field[1]: expected a string"),
        (dict[str, int], {SECRET: SECRET}, "config.field.*: expected an integer, got a string"),
        (dict[Literal["a"], int], {SECRET: 1}, "config.field (a key): expected one of 'a'"),
        (dict[str, int], [SECRET], "config.field: expected a map, got an array"),
        (Nested, SECRET, "config.field: expected a map, got a string"),
        (Nested, {"names": [SECRET, 5]}, "config.field.names[1]: expected a string"),
        (Limit, {}, "config.field.minute: is required: expected an integer"),
        (list[Limit], [{"minute": 1}, {"minute": SECRET}], "config.field[1].minute: expected"),
        (Annotated[int, Field(gt=5)], 5, "config.field: expected an integer greater than 5"),
        (Annotated[int, Field(between=(1, 5))], 6, "expected an integer between 1 and 5"),
        (Annotated[float, Field(between=(1, 5))], 0.5, "expected a number between 1 and 5"),
        (Annotated[float, msgspec.Meta(ge=5), Field(gt=3.5)], 4.5, "expected a number"),
        (Annotated[int, msgspec.Meta(ge=5)], 4, "expected an integer of at least 5"),
        (Annotated[int, msgspec.Meta(le=5)], 6, "expected an integer of at most 5"),
        (Annotated[int, msgspec.Meta(lt=5)], 5, "expected an integer less than 5"),
        (Annotated[int, msgspec.Meta(multiple_of=5)], 6, "that is a multiple of 5"),
        (Annotated[str, Field(len_min=50)], SECRET, "expected a string no shorter than 50"),
        (Annotated[str, Field(len_max=2)], SECRET, "expected a string no longer than 2"),
        (Annotated[str, Field(one_of=["a", "b"])], SECRET, "expected a string out of 'a', 'b'"),
        (Annotated[Colour, Field(one_of=["red"])], "blue", "expected one of 'red'"),
        (Annotated[str, msgspec.Meta(pattern="^a+$")], SECRET, "the regular expression '^a+$'"),
        (Annotated[list[str], Field(len_min=1)], {}, "expected an array no shorter than 1"),
        (Annotated[set[str], Field(len_min=2)], ["a", "a"], "expected an array no shorter than 2"),
        (Annotated[dict[str, str], Field(len_max=0)], {SECRET: "a"}, "a map no longer than 0"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_path_and_without_the_value(
    hint: Any, value: Any, message: str
) -> None:
    assert message in str(refused(hint, value))


def test_a_union_says_what_it_takes() -> None:
    error = refused(Union[int, str], True)
    assert error.reason == "expected an integer or a string, got a boolean"


def test_the_path_is_in_the_datastores_names() -> None:
    @dataclass
    class Inner:
        per_minute: Annotated[int, Field(name="per-minute")] = 1

    cls = type(
        "One",
        (Handler,),
        {"__annotations__": {"limits": Annotated[list[Inner], Field(name="rate-limits")]}},
    )
    with pytest.raises(ConfigError) as caught:
        make(cls, {"rate-limits": [{"per-minute": 1}, {"per-minute": "x"}]})
    assert caught.value.path == "config.rate-limits[1].per-minute"


# Structures

STYLES = ["dataclass", "frozen", "slots", "struct", "frozen struct", "plain", "init", "New"]


def structure(style: str) -> Any:
    """A plugin with one public field with a default, one required one, and a private one."""
    names = {
        "__annotations__": {"required": "int", "message": "str", "_hidden": "dict[str, int]"},
        "message": "hello",
        "__module__": __name__,
    }
    if style in ("dataclass", "frozen"):
        names["_hidden"] = field(default_factory=dict)
        return dataclass(frozen=style == "frozen")(type("It", (Handler,), names))
    if style == "slots":
        made = dataclasses.make_dataclass(
            "It",
            [
                ("required", int),
                ("message", str, "hello"),
                ("_hidden", dict[str, int], field(default_factory=dict)),
            ],
            bases=(Handler,),
        )
        made.__module__ = __name__
        return made
    if style.endswith("struct"):
        base: Any = type(msgspec.Struct)
        names.update(_hidden=msgspec.field(default_factory=dict), access=Handler.access)
        return base("It", (msgspec.Struct,), names, frozen=style.startswith("frozen"))
    if style == "init":
        del names["message"]

        def init(self: Any) -> None:
            self.message = "hello"
            self._hidden = {}

        return type("It", (Handler,), {**names, "__init__": init})
    names["_hidden"] = {}
    return type("It", (Handler,), names)


@pytest.mark.parametrize("style", STYLES)
def test_fields_are_filled_and_the_rest_keeps_its_defaults(style: str) -> None:
    cls = structure(style)
    plugin = from_object(cls, name="sample")
    made = plugin.new({"required": 5, "_hidden": {"a": 1}, "__seq__": 3, "service_id": "x"})
    it = made["access"](None)
    assert (it.required, it.message, it._hidden) == (5, "hello", {})
    assert not hasattr(it, "service_id")
    it = plugin.new({"required": 5.0, "message": "bye"})["access"](None)
    assert (it.required, it.message) == (5, "bye")
    it = plugin.new({"required": 5, "message": None})["access"](None)
    assert it.message == "hello"
    for config in ({}, {"required": None}):
        with pytest.raises(ConfigError) as caught:
            plugin.new(config)
        assert str(caught.value) == "config.required: is required: expected an integer"


def module_with_new(new: Any) -> Any:
    import types

    module = types.ModuleType("with_new")
    module.New = new  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("style", [style for style in STYLES if style != "New"])
def test_defaults_that_new_sets_are_kept(style: str) -> None:
    cls = structure(style)

    def new() -> Any:
        if style in ("plain", "init"):
            it = cls()
            it.required, it.message = 7, "from New"
            return it
        return cls(required=7, message="from New")

    plugin = from_object(module_with_new(new))
    (config,) = (each["config"] for each in plugin.schema["fields"])
    assert config["fields"] == [
        {"required": {"type": "integer", "default": 7}},
        {"message": {"type": "string", "default": "from New"}},
    ]
    it = plugin.new({})["access"](None)
    assert (it.required, it.message) == (7, "from New")
    it = plugin.new({"required": 8, "message": None})["access"](None)
    assert (it.required, it.message) == (8, "from New")
    assert plugin.new({})["access"](None) is not plugin.new({})["access"](None)


def test_what_new_keeps_to_itself_stays() -> None:
    @dataclass(frozen=True)
    class It(Handler):
        message: str = "hello"

    def new() -> It:
        it = It()
        object.__setattr__(it, "cache", {})
        return it

    it = from_object(module_with_new(new)).new({"message": "bye"})["access"](None)
    assert (it.message, it.cache) == ("bye", {})


def test_post_init_sees_the_configuration() -> None:
    @dataclass
    class It(Handler):
        size: int = 1
        _twice: int = 0
        half: float = field(init=False, default=0.0)

        def __post_init__(self) -> None:
            self._twice = 2 * self.size
            self.half = self.size / 2

    it = make(It, {"size": 4, "half": 9})
    assert (it._twice, it.half) == (8, 2.0)


def test_what_the_constructor_raises_is_raised() -> None:
    @dataclass
    class It(Handler):
        size: int = 1

        def __post_init__(self) -> None:
            if self.size > 4:
                raise RuntimeError("too large")

    with pytest.raises(RuntimeError, match="too large"):
        make(It, {"size": 5})


def test_nested_defaults_are_merged_and_never_shared() -> None:
    def defaults() -> Nested:
        return Nested(9, ["a"])

    @dataclass
    class It(Handler):
        nested: Nested = field(default_factory=defaults)
        maybe: Optional[Nested] = None

    it = make(It, {"nested": {"size": 3}})
    assert it.nested == Nested(3, ["a"])
    assert make(It, {"nested": {"names": {}}}).nested == Nested(9, [])
    assert make(It, {"nested": None}).nested == Nested(9, ["a"])
    assert it.maybe is None
    assert make(It, {"maybe": {}}).maybe == Nested()
    assert make(It, {}).nested is not make(It, {}).nested


def test_plain_classes_do_not_share_their_mutable_defaults() -> None:
    class It(Handler):
        plain: Plain = Plain()
        tags: list[str] = []  # noqa: RUF012

    first, second = make(It, {}), make(It, {})
    first.tags.append("x")
    assert second.tags == []
    it = make(It, {"plain": {"host": "h", "tags": ["t"], "ports": 9}})
    assert (it.plain.host, it.plain.tags, it.plain.ports) == ("h", ["t"], 5)
    assert It.plain.host == "localhost"


def test_nested_structures_of_every_style() -> None:
    class Inner(msgspec.Struct, rename="camel", frozen=True):
        first_name: str = "x"
        last_name: str = "y"

    cls = type(
        "It",
        (Handler,),
        {
            "__annotations__": {"inner": Inner, "limit": Limit, "server": Server},
            "inner": Inner("a", "b"),
            "limit": Limit(1, 2),
            "server": {"host": "h"},
        },
    )
    it = make(cls, {"inner": {"firstName": "c"}, "limit": {"hour": 9}, "server": {"port": 80}})
    assert it.inner == Inner("c", "b")
    assert it.limit == Limit(1, 9)
    assert it.server == {"host": "h", "port": 80}


def test_a_typed_dict_may_lack_what_is_not_required() -> None:
    if not hasattr(typing, "NotRequired"):
        pytest.skip("no NotRequired before Python 3.11")
    assert one(Server, {"host": "h"}) == {"host": "h"}
    with pytest.raises(ConfigError, match=r"config\.field\.host: is required"):
        one(Server, {"port": 5})


def test_defaults_of_field_fill_what_has_none() -> None:
    cls = type(
        "It",
        (Handler,),
        {
            "__annotations__": {
                "size": Annotated[int, Field(default=5)],
                "maybe": Annotated[str, Field(required=False)],
            }
        },
    )
    it = make(cls, {})
    assert (it.size, it.maybe) == (5, None)


def test_private_annotations_need_not_exist_at_run_time() -> None:
    class It(Handler):
        _client: NoSuchModule.Client  # type: ignore[name-defined]  # noqa: F821
        name: str = "x"

    assert make(It, {"name": "y"}).name == "y"


# What is found when a plugin is loaded


class Recursive:
    children: list[Recursive] = []  # noqa: RUF012


class Mixed(enum.Enum):
    A = 1
    B = "b"


class NeedsArguments:
    size: int

    def __init__(self, a: int, b: int) -> None: ...


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (bytes, "config.field: bytes is not a type that a configuration can hold"),
        (object(), "is not a type"),
        (complex, "complex is not a type"),
        (type, "type is not a type"),
        (Handler, "Handler is not a type"),
        (list[bytes], "config.field[]: bytes is not a type"),
        (dict[str, bytes], "config.field.*: bytes is not a type"),
        (dict[int, str], "config.field: the keys of a map are strings"),
        (set[tuple[int, ...]], "config.field: a set holds strings, numbers or booleans"),
        (Any, "config.field: Kong has no type for Any"),
        (list, "config.field[]: Kong has no type for Any"),
        (dict, "config.field.*: Kong has no type for Any"),
        (Union[int, str], "config.field: Kong has no type for a union"),
        (Union[Nested, Limit], "a union of structures is not possible"),
        (tuple[int, str], "an array of Kong's has elements of one type"),
        (Literal[1, "a"], "a Literal must list strings only, or integers only"),
        (Literal[True], "a Literal must list strings only, or integers only"),
        (Mixed, "an Enum must have strings only, or integers only"),
        (enum.IntFlag("F", "A B"), "an Enum must have"),
        (Recursive, "config.field.children[]: Recursive contains itself"),
        (NeedsArguments, "NeedsArguments cannot be made without arguments"),
        ("NoSuchName", "the annotation 'NoSuchName' of One.field cannot be evaluated: NameError"),
        (Annotated[str, Field(gt=5)], "a bound on the size of a number needs int or float"),
        (Annotated[bool, Field(len_min=5)], "a bound on the length needs"),
        (Annotated[int, Field(match="x")], "a pattern needs str"),
        (Annotated[list[str], Field(one_of=["a"])], "put it on the elements"),
        (list[Annotated[str, Field(name="x")]], "are for fields, not elements"),
        (Annotated[str, Field], "needs its parentheses"),
        (Annotated[int, Field(default="x")], "config.field: its default does not fit: expected an"),
    ],
)
def test_types_that_kong_cannot_hold_are_found_at_load(hint: Any, message: str) -> None:
    cls = type("One", (Handler,), {"__annotations__": {"field": hint}, "__module__": __name__})
    with pytest.raises(PluginError) as caught:
        from_object(cls, name="sample")
    assert message in caught.value.reason


@pytest.mark.parametrize(
    ("default", "hint", "message"),
    [
        ("5", int, "config.field: its default does not fit: expected an integer, got a string"),
        (5, "list[str]", "its default does not fit: expected an array, got an integer"),
        (["a", 5], "list[str]", "config.field[1]: its default does not fit"),
        (5, "Nested", "config.field: its default is int, not Nested"),
        (9, Annotated[int, Field(between=(1, 5))], "between 1 and 5"),
        (Field(len_min=1), str, "kongps.Field goes into the annotation"),
    ],
)
def test_defaults_that_do_not_fit_are_found_at_load(default: Any, hint: Any, message: str) -> None:
    cls = type(
        "One",
        (Handler,),
        {"__annotations__": {"field": hint}, "field": default, "__module__": __name__},
    )
    with pytest.raises(PluginError) as caught:
        from_object(cls, name="sample")
    assert message in caught.value.reason


def test_two_fields_with_one_name_are_found_at_load() -> None:
    class It(Handler):
        a: Annotated[int, Field(name="x")] = 1
        x: int = 2

    with pytest.raises(PluginError, match=r"config\.x: a and x of It both have this name"):
        from_object(It)


@pytest.mark.parametrize("style", ["dataclass", "struct"])
def test_a_private_field_needs_a_default(style: str) -> None:
    names: dict[str, Any] = {
        "__annotations__": {"_hidden": int},
        "__module__": __name__,
        "access": Handler.access,
    }
    cls: Any
    if style == "struct":
        cls = type(msgspec.Struct)("It", (msgspec.Struct,), names)
    else:
        cls = dataclass(type("It", (), names))
    with pytest.raises(PluginError, match=r"It\._hidden needs a default"):
        from_object(cls)


def test_an_init_var_needs_a_default() -> None:
    names = {
        "__annotations__": {"seed": dataclasses.InitVar[int]},
        "access": Handler.access,
        "__module__": __name__,
    }
    with pytest.raises(PluginError, match="InitVar, needs a default"):
        from_object(dataclass(type("It", (), names)))


# As recorded

CAPTURE = DATA / "captures" / "kong-2.0.5-msgpack"


def test_a_recorded_configuration() -> None:
    found = sorted(CAPTURE.glob("*config-types.jsonl"))
    if not found:
        pytest.skip("the recording is not there")
    line = next(
        json.loads(line)
        for line in found[0].read_text().splitlines()
        if '"k2p"' in line and "b64" in line
    )
    ((argument,),) = (msgpack.unpackb(base64.b64decode(line["b64"]))[3],)
    config = json.loads(argument["Config"])

    class Record(TypedDict):
        p: str
        q: int

    cls = type(
        "It",
        (Handler,),
        {
            "__annotations__": {
                "s": str,
                "m": dict[str, int],
                "rec": Record,
                "arr": list[str],
                "b": bool,
                "n": float,
                "i": int,
                "st": set[str],
            }
        },
    )
    it = make(cls, config)
    assert it.__dict__ == {
        "s": "é str",
        "m": {"k": 1},
        "rec": {"p": "pp", "q": 3},
        "arr": [],
        "b": True,
        "n": 3.0,
        "i": 4,
        "st": {"q"},
    }
