"""Which class of a file is the plugin, what its handlers are, its version and priority."""

from __future__ import annotations

import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from kongps.errors import PluginError
from kongps.plugins.loader import from_object, load_plugin
from kongps.plugins.plugin import Plugin


def load(text: str, name: str = "sample") -> Plugin:
    module = types.ModuleType(name)
    exec(textwrap.dedent(text), vars(module))
    return from_object(module, name=name)


def refused(text: str) -> str:
    with pytest.raises(PluginError) as caught:
        load(text)
    assert caught.value.plugin == "sample"
    return caught.value.reason


# Which class


@pytest.mark.parametrize(
    "text",
    [
        "class Plugin:\n def access(self, kong): return 'it'",
        "class Config:\n def access(self, kong): return 'it'",
        "class Anything:\n def access(self, kong): return 'it'",
        "class Anything:\n def Access(self, kong): return 'it'",
        "class _Private:\n def access(self, kong): pass\n"
        "class Only:\n def access(self, kong): return 'it'",
        "class Base:\n def access(self, kong): pass\n"
        "class Derived(Base):\n def access(self, kong): return 'it'",
        "class Plugin:\n def access(self, kong): return 'it'\n"
        "class Other:\n def access(self, kong): pass",
        "class Config:\n pass\nclass Other:\n def access(self, kong): return 'it'",
        "class Other:\n def access(self, kong): return 'it'\ndef New(): return Other()",
        "class New:\n def access(self, kong): return 'it'",
    ],
)
def test_the_plugin_is_found(text: str) -> None:
    plugin = load(text)
    assert plugin.phases == ("access",)
    assert plugin.new({})["access"](None) == "it"


def test_two_classes_with_handlers_are_ambiguous() -> None:
    reason = refused(
        """
        class One:
            def access(self, kong): pass
        class Two:
            def log(self, kong): pass
        """
    )
    assert "One, Two have handlers" in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "there is no plugin in it: expected New()"),
        ("def access(kong): pass", "make them methods of a class Plugin"),
        ("class Plugin:\n def acces(self, kong): pass", "Plugin has no handler"),
        ("class Plugin:\n access = 5", "Plugin has no handler"),
        ("Plugin = 5", "Plugin is 5, not a class"),
        ("New = 5", "New is 5; it must be a function"),
        ("def New(): return 5", "New() returns 5"),
        ("def New(): raise KeyError('x')", "New() failed: KeyError: 'x'"),
        ("def New(): raise SystemExit(1)", "New() failed: SystemExit: 1"),
        ("class Plugin:\n def __init__(self, a, b): pass\n def access(self, kong): pass", "config"),
    ],
)
def test_a_file_without_a_plugin_says_what_is_expected(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_a_handler_that_comes_from_elsewhere_is_not_mistaken_for_the_plugin() -> None:
    reason = refused("from logging import Logger, getLogger\nlog = getLogger('x')")
    assert "there is no plugin" in reason


# Handlers


def test_phases_come_in_kongs_order() -> None:
    class Every:
        def log(self, kong: Any) -> None: ...
        def Preread(self, kong: Any) -> None: ...
        def response(self, kong: Any) -> None: ...
        def Access(self, kong: Any) -> None: ...
        def rewrite(self, kong: Any) -> None: ...
        def certificate(self, kong: Any) -> None: ...

    plugin = from_object(Every)
    assert plugin.phases == ("certificate", "rewrite", "access", "response", "preread", "log")
    assert set(plugin.new({})) == set(plugin.phases)


def test_static_and_class_methods_can_be_handlers() -> None:
    class Static:
        @staticmethod
        def access(kong: Any) -> Any:
            return kong

        @classmethod
        def log(cls, kong: Any) -> Any:
            return cls, kong

    handlers = from_object(Static).new({})
    assert handlers["access"](1) == 1
    assert handlers["log"](2) == (Static, 2)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("async def access(self, kong): yield", "is a generator"),
        (
            "async def access(self, kong): pass\n def __init__(self, config): pass",
            "handlers of kong-python-pdk's layout cannot be async",
        ),
        ("def access(self, kong): yield", "is a generator"),
        ("def access(self): pass", "a handler takes kong, and nothing else"),
        ("def access(self, kong, other): pass", "a handler takes kong, and nothing else"),
        ("def access(self, kong, *, other): pass", "a handler takes kong, and nothing else"),
        ("def access(*, kong): pass", "a handler takes kong, and nothing else"),
        ("access = lambda self, kong: 1\n def Access(self, kong): pass", "keep one"),
    ],
)
def test_handlers_that_could_not_be_called_are_refused(handler: str, expected: str) -> None:
    assert expected in refused(f"class Plugin:\n {handler}")


WRAPPING = """\
import functools, typing
def wrapping(function):
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args)
    return wrapped
"""


@pytest.mark.parametrize(
    "handler",
    [
        "def access(self, kong, other=1, *more, only=2, **named): return kong",
        "def access(*both): return both[1]",
        "def access(self, kong=None): return kong",
        "access = lambda self, kong: kong",
        "@functools.lru_cache()\n def access(self, kong): return kong",
        "@wrapping\n def access(self, kong): return kong",
        "@typing.no_type_check\n def access(self, kong): return kong",
        "access = functools.partialmethod(lambda self, a, kong: kong, 1)",
    ],
)
def test_whatever_can_be_called_with_kong_is_a_handler(handler: str) -> None:
    plugin = load(f"{WRAPPING}class Plugin:\n {handler}")
    assert plugin.new({})["access"]("it") == "it"


@pytest.mark.parametrize(
    ("init", "fields", "given"),
    [
        ("def __init__(self, config): self.it = config", "", {"a": 1}),
        ("def __init__(self, config, more=2): self.it = config", "", {"a": 1}),
        ("def __init__(self, config=None): self.it = config", "", {"a": 1}),
        ("def __init__(self, *configs): self.it = configs[0]", "", {"a": 1}),
        ("def __init__(self, config, **more): self.it = config", "", {"a": 1}),
        ("def __init__(self, config, *, more=2): self.it = config", "a: int = 5", {"a": 1}),
        ("def __init__(self, config=7): self.it = config", "a: int = 5", 7),
        ("def __init__(self): self.it = 7", "", 7),
        ("def __init__(self, *, config=7): self.it = config", "", 7),
    ],
)
def test_a_class_whose_init_takes_the_configuration_is_given_it(
    init: str, fields: str, given: Any
) -> None:
    plugin = load(
        f"""
        import functools
        class Plugin:
            {fields}
            {init}
            def access(self, kong): return self.it
        """
    )
    assert plugin.new({"a": 1})["access"](None) == given


def test_attributes_that_are_no_methods_are_no_handlers() -> None:
    class Plain:
        log: bool = True
        response = None

        class Rewrite:
            pass

        def access(self, kong: Any) -> Any:
            return self

    plugin = from_object(Plain)
    assert plugin.phases == ("access",)
    assert plugin.schema["fields"][0]["config"]["fields"] == [
        {"log": {"type": "boolean", "default": True}}
    ]


@pytest.mark.parametrize("name", ["close", "Close"])
def test_close_is_handed_over(name: str) -> None:
    def access(self: Any, kong: Any) -> None: ...

    closed: list[Any] = []
    cls = type("Closing", (), {"access": access, name: lambda self: closed.append(self)})
    from_object(cls).new({})["close"]()
    assert isinstance(closed[0], cls)


def test_one_object_serves_all_events_of_an_instance() -> None:
    class Counting:
        _count = 0

        def access(self, kong: Any) -> int:
            self._count += 1
            return self._count

    plugin = from_object(Counting)
    first, second = plugin.new({"_count": 7}), plugin.new({})
    assert [first["access"](None) for _ in range(3)] == [1, 2, 3]
    assert second["access"](None) == 1


# Version and priority

CLASS = "class Plugin:\n def access(self, kong): pass\n"


@pytest.mark.parametrize(
    ("text", "version", "priority"),
    [
        (CLASS, "0.0.0", 0),
        ("version = '1.2.3'\npriority = 5\n" + CLASS, "1.2.3", 5),
        ("Version = '1.2'\nPriority = -5\n" + CLASS, "1.2", -5),
        (CLASS + " version = '2'\n Priority = 3.0", "2", 3),
        ("version = '1.0.0'\n" + CLASS + " Version = '2.0.0-rc.1'", "2.0.0-rc.1", 0),
        ("from importlib.metadata import version\n" + CLASS, "0.0.0", 0),
        ("version = Version = '1.0.0'\n" + CLASS, "1.0.0", 0),
        ("version = None\npriority = None\n" + CLASS, "0.0.0", 0),
        (CLASS + " version: str = '1'\n priority: int = 4", "0.0.0", 0),
        (
            "from dataclasses import dataclass\n@dataclass(slots=True) \n" + CLASS
            if hasattr(types, "UnionType")
            else CLASS,
            "0.0.0",
            0,
        ),
    ],
)
def test_version_and_priority(text: str, version: str, priority: int) -> None:
    plugin = load(text)
    assert (plugin.version, plugin.priority) == (version, priority)
    assert type(plugin.priority) is int


@pytest.mark.parametrize(
    "line",
    [
        "version = 1.0",
        "version = b'1.0.0'",
        "version = ''",
        "version = '1.0.0.0'",
        "version = 'latest'",
        "version = '1.0.0'\nVersion = '2.0.0'",
        "priority = '5'",
        "priority = True",
        "priority = 1.5",
        "priority = float('nan')",
        "priority = 2**60",
    ],
)
def test_a_version_or_priority_that_kong_would_not_take(line: str) -> None:
    reason = refused(f"{line}\n{CLASS}")
    assert line.split()[0] in reason


def test_info_is_what_kong_asks_for() -> None:
    plugin = load("version = '1.0.0'\npriority = 3\n" + CLASS, "my-plugin")
    assert plugin.info() == {
        "Name": "my-plugin",
        "Phases": ["access"],
        "Version": "1.0.0",
        "Priority": 3,
        "Schema": {
            "name": "my-plugin",
            "fields": [{"config": {"type": "record", "fields": []}}],
        },
    }


def test_pipelining_can_be_turned_off_by_an_attribute(tmp_path: Path) -> None:
    for name, text, expected in (
        ("plain", "", True),
        ("module", "pipelining = False\n", False),
    ):
        (tmp_path / f"{name}.py").write_text(
            f"{text}class Plugin:\n    def access(self, kong): ...\n"
        )
        assert load_plugin(tmp_path, name).pipelined is expected
    (tmp_path / "inner.py").write_text(
        "class Plugin:\n    pipelining = False\n    def access(self, kong): ...\n"
    )
    assert load_plugin(tmp_path, "inner").pipelined is False
    (tmp_path / "wrong.py").write_text(
        "pipelining = 'no'\nclass Plugin:\n    def access(self, kong): ...\n"
    )
    with pytest.raises(PluginError, match="pipelining is 'no'"):
        load_plugin(tmp_path, "wrong")


def test_what_new_sets_without_annotations_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "class Conf:\n"
        "    def __init__(self): self.message = 'm'\n"
        "    def Access(self, kong): ...\n"
        "def New(): return Conf()\n"
    )
    with pytest.raises(PluginError, match="no annotated fields, so message"):
        load_plugin(tmp_path, "bare")
