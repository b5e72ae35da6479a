"""``kongps build`` and ``rebuild``, and what they make, loaded and run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Optional

import pytest
from interpreters import installed
from paths import EXAMPLES
from server_process import run
from shared_libraries import PLUGIN_SOURCE, dumped, needs_compiler

from kongps import __version__
from kongps._version import PLUGIN_API
from kongps.compiled.build import build
from kongps.compiled.record import source_hash
from kongps.compiled.sources import read_record
from kongps.errors import BuildError, PluginError, PluginNameError, SourceChanged
from kongps.plugins.loader import load_directory, load_plugin
from kongps.plugins.rebuild import rebuild
from kongps.testing import Kong

SUFFIX = EXTENSION_SUFFIXES[0]

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="no Cython"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-O0")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hello example in all three layouts, compiled."""
    directory = tmp_path_factory.mktemp("layouts")
    for name in ("hello", "hello_go", "hello_kong_pdk"):
        os.environ["CFLAGS"] = "-O0"
        build(str(EXAMPLES / f"{name}.py"), output=str(directory), progress=lambda _: None)
    return directory


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


# What it makes


@pytest.mark.parametrize("name", ["hello", "hello_go", "hello_kong_pdk"])
def test_every_layout_runs_compiled_as_it_does_from_source(name: str, layouts: Path) -> None:
    compiled, source = load_plugin(layouts, name), load_plugin(EXAMPLES, name)
    assert compiled.path.endswith(SUFFIX)
    assert compiled.info() == source.info()
    for directory in (layouts, EXAMPLES):
        kong = Kong(plugins_directory=directory, plugins={name: {"message": "bye"}})
        result = kong.request("GET", "/", headers={"host": "example.com"})
        assert result.headers["x-hello-from-python"] == "Python says bye to example.com"


def test_the_file_has_the_interpreters_tag_and_says_what_it_was_built_with(layouts: Path) -> None:
    path = layouts / f"hello{SUFFIX}"
    record = read_record(str(path))
    assert record is not None
    assert record["plugin"] == "hello"
    assert record["kind"] == "python"
    assert record["abi_tag"] in SUFFIX
    assert record["kongps"] == __version__
    assert record["plugin_api"] == PLUGIN_API
    assert record["source"] == ".sources/hello.py"
    assert record["source_hash"] == source_hash(str(EXAMPLES / "hello.py"))
    for key in ("python", "implementation", "machine", "libc", "cython", "compiler"):
        assert record[key], key
    # Stripping it leaves the record.
    if shutil.which("strip"):
        os.system(f"strip -o '{layouts}/stripped.x' '{path}'")
        assert read_record(str(layouts / "stripped.x")) == record


def test_a_package_of_several_modules_with_structures_and_data(tmp_path: Path) -> None:
    shop = tmp_path / "work" / "key-shop"
    write(
        shop / "__init__.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from pathlib import Path
        from typing import ClassVar
        from .rules.limits import Limit

        version = "3.2.1"

        @dataclass
        class Plugin:
            kind: ClassVar[str] = "x"
            limits: list[Limit] = field(default_factory=list)

            def access(self, kong):
                kong.response.set_header("x-limits", ",".join(str(l.minute) for l in self.limits))
                kong.response.set_header("x-data", (Path(__file__).parent / "data.txt").read_text())
        """,
    )
    write(shop / "rules" / "__init__.py", "")
    write(
        shop / "rules" / "limits.pyx",
        """
        from dataclasses import dataclass
        from typing import ClassVar

        @dataclass
        class Limit:
            kind: ClassVar[str] = "y"
            minute: int = 5
        """,
    )
    (shop / "data.txt").write_text("data")
    plugins = tmp_path / "plugins"
    made = build(str(shop), output=str(plugins), progress=lambda _: None)
    assert {os.path.relpath(each, plugins) for each in made} == {
        f"key-shop/__init__{SUFFIX}",
        f"key-shop/rules/__init__{SUFFIX}",
        f"key-shop/rules/limits{SUFFIX}",
    }
    shutil.rmtree(tmp_path / "work")
    config = {"limits": [{"minute": 3}, {}]}
    result = Kong(plugins_directory=plugins, plugins={"key-shop": config}).request("GET", "/")
    assert result.headers["x-limits"] == "3,5"
    assert result.headers["x-data"] == "data"
    assert [each.problem for each in rebuild(str(plugins), check=True)] == [None]


def test_a_name_that_is_no_identifier_and_a_pyx_file(tmp_path: Path) -> None:
    source = write(
        tmp_path / "2-fa.pyx",
        """
        cdef long twice(long n):
            return 2 * n

        class Plugin:
            n: int = 21

            def access(self, kong):
                kong.response.set_header("x-n", str(twice(self.n)))
        """,
    )
    build(str(source), progress=lambda _: None)
    assert Kong(plugins_directory=tmp_path, plugins={"2-fa": {}}).request().headers["x-n"] == "42"


def test_a_handler_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "bad.py", "x = 1\nraise ValueError('no luck')\n")
    build(str(tmp_path / "bad.py"), progress=lambda _: None)
    with pytest.raises(PluginError, match=r"bad\.py:2: ValueError: no luck"):
        load_plugin(tmp_path, "bad")


# Beside its source


def test_a_compiled_plugin_beside_its_source_is_the_one_that_runs(tmp_path: Path) -> None:
    source = write(tmp_path / "hello.py", PLUGIN_SOURCE)
    said: list[str] = []
    build(str(source), progress=said.append)
    assert len(said) == 2
    assert "compiling hello.py for CPython" in said[0]
    assert load_plugin(tmp_path, "hello").path.endswith(SUFFIX)
    # A source that has changed since is not passed over in silence.
    source.write_text(PLUGIN_SOURCE.replace("1.0.0", "1.0.1"))
    with pytest.raises(SourceChanged, match="kongps rebuild") as caught:
        load_plugin(tmp_path, "hello")
    assert f"hello{SUFFIX} was compiled from another hello.py" in str(caught.value)
    rebuilt = run("rebuild", str(tmp_path))
    assert rebuilt.returncode == 0
    assert load_plugin(tmp_path, "hello").version == "1.0.1"
    # Compiled in a directory that holds nothing else, it loads by itself.
    source.unlink()
    assert load_plugin(tmp_path, "hello").version == "1.0.1"
    assert run("rebuild", "--check", str(tmp_path)).returncode == 0


# The command


def test_an_error_of_cython_or_of_the_compiler_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "hello.pyx", "cdef int x = \n")
    done = run("build", str(tmp_path / "hello.pyx"))
    assert done.returncode == 1
    assert b"hello.pyx:1" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"kongps: translating ")
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.glob("*.so")) == []


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="there is no"):
        build(str(tmp_path / "hello.py"))
    write(tmp_path / "hello.txt", "")
    with pytest.raises(BuildError, match=r"\.py, \.pyx, \.c"):
        build(str(tmp_path / "hello.txt"))
    write(tmp_path / "a.b.py", "")
    with pytest.raises(PluginNameError):
        build(str(tmp_path / "a.b.py"))
    write(tmp_path / "empty" / "readme.txt", "")
    with pytest.raises(BuildError, match="has no __init__"):
        build(str(tmp_path / "empty"))
    write(tmp_path / "hello.py", "")
    with pytest.raises(BuildError, match="is not a Python"):
        build(str(tmp_path / "hello.py"), python="/bin/false")


def test_without_cython_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kongps.compiled.build.cython_version", lambda: None)
    with pytest.raises(BuildError, match=r"pip install 'kongps\[build\]'"):
        build(str(write(tmp_path / "hello.py", PLUGIN_SOURCE)))


def test_annotate_writes_cythons_report(tmp_path: Path) -> None:
    source = write(tmp_path / "hello.py", PLUGIN_SOURCE)
    assert run("build", "--annotate", str(source)).returncode == 0
    (report,) = tmp_path.glob("*.html")
    assert "Cython" in report.read_text()
    assert list(load_directory(tmp_path).plugins) == ["hello"]


# Built by one Python, loaded by another

HERE = "{}.{}".format(*sys.version_info[:2])
OTHERS = [python for version, python in installed().items() if version != HERE]


@pytest.mark.parametrize("python", sorted({*OTHERS[:1], *OTHERS[-1:]}) or [None])
def test_built_for_another_python_names_both_and_the_command_that_fixes_it(
    python: Optional[str], tmp_path: Path
) -> None:
    if python is None:
        pytest.skip("there is one CPython with headers on this machine; this needs two")
    plugins = tmp_path / "plugins"
    source = write(tmp_path / "hello.py", PLUGIN_SOURCE)
    write(plugins / "other.py", PLUGIN_SOURCE)
    built = run("build", str(source), "-o", str(plugins), "--python", python)
    assert built.returncode == 0, built.stderr
    done = run("dump", "--plugins-directory", str(plugins))
    assert done.returncode == 1
    assert dumped(done.stdout) == ["other"]
    (line,) = done.stderr.decode().splitlines()
    version = Path(python).name[len("python") :]
    assert f"CPython {version}" in line
    assert "running is CPython" in line
    checked = run("rebuild", "--check", str(plugins))
    assert checked.returncode == 1
    command = line.partition("fix it with: ")[2]
    assert os.system(f"{command} > {tmp_path}/out 2>&1") == 0, (tmp_path / "out").read_text()
    fixed = run("dump", "--plugins-directory", str(plugins))
    assert fixed.returncode == 0
    assert dumped(fixed.stdout) == ["hello", "other"]
