"""Plugins of kong-python-pdk's layout run as they are, with and without that package."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import DATA

from kongps.errors import PDKError, PluginError
from kongps.kong_pdk import shim as kong_pdk_shim
from kongps.plugins.loader import from_object, load_directory, load_plugin
from kongps.plugins.plugin import Plugin

PLUGINS = DATA / "plugins" / "kong_python_pdk"


@pytest.fixture
def greeter() -> Plugin:
    return load_plugin(PLUGINS, "py-greeter")


def test_a_file_of_that_layout_is_loaded(greeter: Plugin) -> None:
    assert greeter.info() == {
        "Name": "py-greeter",
        "Phases": ["access", "log"],
        "Version": "0.1.0",
        "Priority": 100,
        "Schema": {
            "name": "py-greeter",
            "fields": [
                {
                    "config": {
                        "type": "record",
                        "fields": [
                            {"message": {"type": "string"}},
                            {
                                "names": {
                                    "type": "array",
                                    "elements": {"type": "string"},
                                    "default": ["a"],
                                }
                            },
                        ],
                    }
                }
            ],
        },
    }


def test_all_of_them_load() -> None:
    loaded = load_directory(PLUGINS)
    assert loaded.errors == []
    assert {name: plugin.version for name, plugin in loaded.plugins.items()} == {
        "bare": "0.0.0",
        "hints": "0.5",
        "py-greeter": "0.1.0",
    }


def test_the_configuration_is_handed_over_as_kong_sent_it(greeter: Plugin) -> None:
    config = {"message": None, "names": {}, "__seq__": 1, "service_id": "x", "deep": {"a": [1]}}
    plugin_object = greeter.new(config)["access"].__self__
    assert plugin_object.config == config
    plugin_object.config["deep"]["a"].append(2)
    assert config["deep"] == {"a": [1]}


def test_calls_return_pairs_unless_told_otherwise(greeter: Plugin) -> None:
    compat = pytest.importorskip("kongps.kong_pdk.pdk")
    assert greeter.kong is compat.LuaStyleKong
    assert load_plugin(PLUGINS, "py-greeter", lua_style=False).kong is compat.PlainKong


def test_plugins_of_other_layouts_get_the_typed_pdk() -> None:
    pdk = pytest.importorskip("kongps.pdk")

    class Typed:
        def access(self, kong: Any) -> None: ...

    assert from_object(Typed).kong is pdk.Kong
    assert from_object(Typed, lua_style=False).kong is pdk.Kong


class WithConfig:
    def __init__(self, config: Any) -> None:
        self.config = config

    def access(self, kong: Any) -> Any:
        return self.config


class AnnotatedWithConfig:
    config: dict  # type: ignore[type-arg]

    def __init__(self, config: Any) -> None:
        self.config = config

    def access(self, kong: Any) -> Any:
        return self.config


class OptionalConfig:
    def __init__(self, config: Any = None) -> None:
        self.config = config

    def access(self, kong: Any) -> Any:
        return self.config


class AnyArguments:
    def __init__(self, *args: Any) -> None:
        (self.config,) = args

    def access(self, kong: Any) -> Any:
        return self.config


class Inheriting(WithConfig):
    pass


class OptionalArgumentOfAStructure:
    config: str

    def __init__(self, config: str = "x") -> None:
        self.config = config

    def access(self, kong: Any) -> Any:
        return self.config


@pytest.mark.parametrize(
    "cls", [WithConfig, AnnotatedWithConfig, OptionalConfig, AnyArguments, Inheriting]
)
def test_a_class_made_with_one_argument_is_of_that_layout(cls: type) -> None:
    plugin = from_object(cls)
    assert plugin.new({"a": 1})["access"](None) == {"a": 1}
    assert plugin.schema["fields"][0]["config"]["fields"] == []


def test_a_class_with_fields_that_needs_no_argument_is_a_structure() -> None:
    plugin = from_object(OptionalArgumentOfAStructure)
    assert plugin.new({"config": "y"})["access"](None) == "y"
    assert plugin.new({})["access"](None) == "x"


def test_only_lower_case_names_are_handlers_there() -> None:
    class Capital(WithConfig):
        def Log(self, kong: Any) -> None: ...

    assert from_object(Capital).phases == ("access",)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"message": {"type": "string"}}, "Schema.fields: expected a list"),
        (["message"], r"Schema\[0\]: expected a field"),
        ([{"a": {"type": "string"}, "b": {"type": "string"}}], "with one key"),
        ([{"a": {"type": "text"}}], "Schema.a: the type is 'text'"),
        ([{"a": {}}], "Schema.a: the type is None"),
        ([{"a": {"type": "array"}}], "needs 'elements'"),
        ([{"a": {"type": "string", "custom_validator": len}}], "cannot be sent to Kong"),
    ],
)
def test_a_schema_that_kong_would_refuse_is_a_plugin_error(schema: Any, reason: str) -> None:
    broken = type("Broken", (WithConfig,), {"Schema": schema})
    with pytest.raises(PluginError, match=reason):
        from_object(broken)


# Without kong-python-pdk


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    kong_pdk_shim.install()
    for name in [name for name in sys.modules if name.split(".")[0] == "kong_pdk"]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.find_spec("kong_pdk")
    if spec is None or spec.origin != "kongps":
        pytest.skip("kong-python-pdk is installed here")


@pytest.mark.usefixtures("without_package")
def test_the_names_that_plugins_import_are_there() -> None:
    import kong_pdk.pdk.kong as kong
    from kong_pdk.cli import start_dedicated_server
    from kong_pdk.const import __version__
    from kong_pdk.exception import PDKException, PluginServerException
    from kong_pdk.pdk.kong import kong as same
    from kong_pdk.pdk.kong.client.tls import tls
    from kong_pdk.pdk.kong.service.request import request

    assert kong.kong is same
    assert isinstance(tls, type)
    assert isinstance(request, type)
    assert isinstance(kong.response.response, type)
    assert PDKException is PDKError
    assert issubclass(PluginServerException, Exception)
    assert callable(start_dedicated_server)
    assert __version__ >= 0.3
    with pytest.raises(AttributeError):
        kong.no_such_name  # noqa: B018
    with pytest.raises(TypeError, match="annotations"):
        kong.kong()


@pytest.mark.usefixtures("without_package")
def test_what_is_not_there_is_not_made_up() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"kong_pdk\.listener"):
        importlib.import_module("kong_pdk.listener")


def test_an_installed_package_is_found_first(tmp_path: Path) -> None:
    package = tmp_path / "kong_pdk"
    package.mkdir()
    (package / "__init__.py").write_text("REAL = True\n")
    script = (
        "import kongps.kong_pdk.shim as shim; shim.install()\n"
        "import kong_pdk; assert kong_pdk.REAL\n"
        "try:\n import kong_pdk.exception\n"
        "except ModuleNotFoundError: print('only the real one')\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "only the real one\n", done.stderr


def test_a_dedicated_server_is_started_with_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Plugin] = []

    def serve(module: ModuleType) -> int:
        served.append(from_object(module, name=module.__name__))
        return 0

    monkeypatch.setattr(kong_pdk_shim, "_serve", serve)
    schema = ({"message": {"type": "string"}},)
    kong_pdk_shim.start_dedicated_server("py-own", WithConfig, "0.1.0", 5, schema)
    (plugin,) = served
    assert (plugin.name, plugin.version, plugin.priority) == ("py-own", "0.1.0", 5)
    assert plugin.path == __file__
    assert json.loads(json.dumps(plugin.schema))["fields"][0]["config"]["fields"] == [*schema]


def test_a_dedicated_server_needs_a_file_that_is_run(tmp_path: Path) -> None:
    text = """
        from kong_pdk.cli import start_dedicated_server

        class Plugin:
            def __init__(self, config): ...
            def access(self, kong): ...

        start_dedicated_server("unguarded", Plugin)
    """
    (tmp_path / "unguarded.py").write_text(textwrap.dedent(text))
    with pytest.raises(PluginError, match=r"unguarded\.py:8: .* kongps run FILE"):
        load_plugin(tmp_path, "unguarded")
