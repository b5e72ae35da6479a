"""Which files of a plugins directory are plugins, and how they are imported."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kongps.errors import NotALibrary, PluginError, PluginNameError, ServerError
from kongps.plugin_names import MAX_NAME_LENGTH, check_name, valid_name
from kongps.plugins.loader import from_object, load_directory, load_plugin

Write = Callable[..., Path]

PLUGIN = """
class Plugin:
    def access(self, kong):
        return kong
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str = PLUGIN) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


# Names


@pytest.mark.parametrize("name", ["a", "9", "key-auth", "key_auth", "A1", "x" * MAX_NAME_LENGTH])
def test_names_that_kong_takes(name: str) -> None:
    assert valid_name(name)
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/etc/passwd", "a/b", "a.b", ".x", "_x", "-x"),
        *("a b", "a\n", "ä", "a\0", "x" * (MAX_NAME_LENGTH + 1), None, 5, b"a", ["a"]),
    ],
)
def test_other_names_are_refused_before_the_file_system_sees_them(
    name: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("the file system was asked")

    monkeypatch.setattr(os, "scandir", touched)
    assert not valid_name(name)
    with pytest.raises(PluginNameError):
        check_name(name)
    with pytest.raises(PluginNameError):
        load_plugin("/nowhere", name)  # type: ignore[arg-type]


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(PluginNameError) as caught:
        check_name("x" * 100_000)
    assert len(str(caught.value)) < 200


# Files


def test_loads_files_and_packages_and_skips_the_rest(write: Write, tmp_path: Path) -> None:
    write("one.py")
    write("two-b.py")
    write("package/__init__.py")
    for other in (
        "__pycache__/x.py",
        ".hidden.py",
        "_shared.py",
        "__init__.py",
        "data.json",
        "x.c",
    ):
        write(other, "raise AssertionError")
    write("no_package/readme.txt", "")
    write("a.b/__init__.py", "raise AssertionError")
    loaded = load_directory(tmp_path)
    assert loaded.errors == []
    assert list(loaded.plugins) == ["one", "package", "two-b"]


def test_a_python_file_whose_name_cannot_be_a_plugins_is_reported(
    write: Write, tmp_path: Path
) -> None:
    write("good.py")
    write("a.b.py")
    loaded = load_directory(tmp_path)
    assert list(loaded.plugins) == ["good"]
    (error,) = loaded.errors
    assert isinstance(error, PluginNameError)
    assert "a.b.py" in str(error)


def test_two_files_for_one_plugin_are_an_error_that_names_both(
    write: Write, tmp_path: Path
) -> None:
    write("twice.py")
    write("twice/__init__.py")
    write("other.py")
    loaded = load_directory(tmp_path)
    assert list(loaded.plugins) == ["other"]
    assert "twice and twice.py" in str(loaded.errors[0])
    with pytest.raises(PluginError, match=r"twice and twice\.py"):
        load_plugin(tmp_path, "twice")


@pytest.mark.parametrize("suffix", EXTENSION_SUFFIXES)
def test_a_file_that_is_no_extension_module_is_reported(
    suffix: str, write: Write, tmp_path: Path
) -> None:
    path = write(f"hello{suffix}", "not a library")
    with pytest.raises(PluginError) as caught:
        load_plugin(tmp_path, "hello")
    assert caught.value.plugin == "hello"
    assert str(path) in caught.value.reason
    assert isinstance(caught.value, NotALibrary)


def test_a_compiled_module_is_loaded(tmp_path: Path) -> None:
    import _struct  # any extension module will do: it is imported, and has no plugin in it

    library = getattr(_struct, "__file__", None)
    if library is None:
        pytest.skip("no extension module to copy")
    shutil.copy(library, tmp_path / ("_struct" + EXTENSION_SUFFIXES[0]).lstrip("_"))
    with pytest.raises(PluginError, match="PyInit_struct"):
        load_plugin(tmp_path, "struct")


def test_a_module_compiled_for_another_python_says_so(write: Write, tmp_path: Path) -> None:
    write("hello.cpython-38-x86_64-linux-gnu.so", "")
    with pytest.raises(PluginError, match="compiled for another Python"):
        load_plugin(tmp_path, "hello")
    write("hello.py")
    assert load_plugin(tmp_path, "hello").name == "hello"


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no hello\.py"):
        load_plugin(tmp_path, "hello")
    with pytest.raises(PluginError, match="cannot be read"):
        load_plugin(tmp_path / "nowhere", "hello")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="nowhere"):
        load_directory(tmp_path / "nowhere")


def test_a_symbolic_link_is_followed(write: Write, tmp_path: Path) -> None:
    target = write("store/..data/hello.py")
    (tmp_path / "hello.py").symlink_to(target)
    assert list(load_directory(tmp_path).plugins) == ["hello"]


def test_tells_file_and_times(write: Write, tmp_path: Path) -> None:
    path = write("hello.py")
    os.utime(path, (1_000_000, 1_000_000))
    plugin = load_plugin(tmp_path, "hello")
    assert plugin.path == str(path)
    assert plugin.modified == 1_000_000
    assert plugin.loaded > 1_600_000_000


# Importing


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nraise ValueError('no\\n luck')\n", "bad.py:2: ValueError: no luck"),
        ("x = 1\n\nclass :\n", "bad.py:3: SyntaxError: invalid syntax"),
        ("if 1:\nx = 1\n", "bad.py:2: IndentationError"),
        ("import no_such_module\n", "bad.py:1: ModuleNotFoundError: No module named"),
        ("import json\njson.loads('{')\n", "bad.py:2: JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", "bad.py:2: SystemExit: 3"),
        ("\n\nraise KeyboardInterrupt\n", "bad.py:3: KeyboardInterrupt"),
        ("raise GeneratorExit", "bad.py:1: GeneratorExit"),
        ("x = '\0'", "null byte"),
    ],
)
def test_a_plugin_that_cannot_be_imported_does_not_keep_others_from_loading(
    text: str, reason: str, write: Write, tmp_path: Path
) -> None:
    write("bad.py", text)
    write("good.py")
    before = set(sys.modules)
    loaded = load_directory(tmp_path)
    assert list(loaded.plugins) == ["good"]
    (error,) = loaded.errors
    assert error.plugin == "bad"
    assert reason in error.reason
    assert str(tmp_path / "bad.py") in error.reason
    assert not [name for name in set(sys.modules) - before if name.endswith(".bad")]


def test_the_error_names_the_file_of_a_package_that_failed(write: Write, tmp_path: Path) -> None:
    write("parts/__init__.py", "from .inner import Plugin\n" + PLUGIN)
    inner = write("parts/inner.py", "x = 1\nx.y\n")
    with pytest.raises(PluginError) as caught:
        load_plugin(tmp_path, "parts")
    assert f"{inner}:2: AttributeError" in caught.value.reason


def test_a_plugin_hides_no_other_module(write: Write, tmp_path: Path) -> None:
    import json
    import logging

    write("json.py", "import json, logging\nloads = json.loads\n" + PLUGIN)
    write("logging.py")
    write("kongps.py")
    loaded = load_directory(tmp_path)
    assert loaded.errors == []
    assert sys.modules["json"] is json
    assert sys.modules["logging"] is logging
    assert str(tmp_path) not in sys.path


def test_plugins_of_two_directories_with_one_name_are_two_modules(
    write: Write, tmp_path: Path
) -> None:
    write("a/same.py", "version = '1.0.0'\n" + PLUGIN)
    write("b/same.py", "version = '2.0.0'\n" + PLUGIN)
    first, second = load_plugin(tmp_path / "a", "same"), load_plugin(tmp_path / "b", "same")
    assert (first.version, second.version) == ("1.0.0", "2.0.0")


def test_a_package_imports_its_own_modules_and_shared_ones(write: Write, tmp_path: Path) -> None:
    write("_shared.py", "version = '3.2.1'\n")
    write("parts/__init__.py", "from .inner import Plugin\nfrom .._shared import version\n")
    write("parts/inner.py", PLUGIN)
    write("flat.py", "from ._shared import version\n" + PLUGIN)
    loaded = load_directory(tmp_path)
    assert loaded.errors == []
    assert {plugin.version for plugin in loaded.plugins.values()} == {"3.2.1"}


def test_classes_of_a_plugin_can_be_pickled_and_their_hints_read(
    write: Write, tmp_path: Path
) -> None:
    write(
        "key-gate.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field

        @dataclass
        class Limit:
            minute: int = 5

        @dataclass
        class Plugin:
            limits: list[Limit] = field(default_factory=list)

            def access(self, kong):
                return self
        """,
    )
    plugin = load_plugin(tmp_path, "key-gate")
    made = plugin.new({"limits": [{"minute": 3}]})["access"](None)
    assert pickle.loads(pickle.dumps(made)) == made
    assert typing.get_type_hints(type(made))["limits"] is not None


def test_loading_again_reads_the_file_again(write: Write, tmp_path: Path) -> None:
    write("again/__init__.py", "from .part import version\n" + PLUGIN)
    write("again/part.py", "version = '1.0.0'\n")
    assert load_plugin(tmp_path, "again").version == "1.0.0"
    write("again/part.py", "version = '1.0.10'\n")
    assert load_plugin(tmp_path, "again").version == "1.0.10"
    write("again/part.py", "version = 1 +\n")
    with pytest.raises(PluginError, match=r"part\.py:1: SyntaxError"):
        load_plugin(tmp_path, "again")
    write("again/part.py", "version = '1.0.100'\n")
    assert load_plugin(tmp_path, "again").version == "1.0.100"


def test_a_directory_that_takes_no_bytecode_is_fine(write: Write, tmp_path: Path) -> None:
    write("hello.py")
    write("__pycache__", "a file where the directory would be")  # stops root as well
    assert load_plugin(tmp_path, "hello").name == "hello"
    assert (tmp_path / "__pycache__").is_file()


# Objects


def test_a_class_becomes_a_plugin() -> None:
    class Gate:
        version = "2.0.0"
        priority = 7

        def access(self, kong: object) -> object:
            return kong

    plugin = from_object(Gate, name="my-gate")
    assert (plugin.name, plugin.version, plugin.priority) == ("my-gate", "2.0.0", 7)
    assert from_object(Gate).name == "gate"
    assert plugin.new({})["access"](5) == 5


def test_something_else_does_not() -> None:
    with pytest.raises(PluginError, match="expected a class or a module, got int"):
        from_object(5, name="five")
    with pytest.raises(PluginNameError):
        from_object(object, name="../x")
