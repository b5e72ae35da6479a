"""What does not match is told before anything is loaded, in one form: what it is, what it was
built for, what is running, how to fix it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import versions_page
from paths import SRC
from server_process import run
from shared_libraries import PLUGIN_SOURCE, compile_c, dumped, needs_compiler

from kongps import errors
from kongps._version import PLUGIN_API
from kongps.compiled.checks import check_object, running
from kongps.compiled.elf import ELF
from kongps.compiled.interpreter import facts
from kongps.errors import PluginError
from kongps.plugins.files import examine
from kongps.plugins.loader import load_directory, load_plugin

SUFFIX = EXTENSION_SUFFIXES[0]
TAG = facts()["abi_tag"]
GLIBC = facts()["libc"].startswith("glibc")

pytestmark = needs_compiler


def record(**other: Any) -> dict[str, Any]:
    return {
        "plugin": "hello", "kind": "python", "kongps": "0.1.0", "plugin_api": PLUGIN_API,
        "source": "hello.py", "source_hash": "", **facts(), **other,
    }  # fmt: skip


def refused(directory: Path, kind: type[errors.CompatError]) -> str:
    """Checks that the plugin is refused, that others load, and that the message has its form."""
    (directory / "other.py").write_text(PLUGIN_SOURCE)
    loaded = load_directory(directory)
    assert list(loaded.plugins) == ["other"]
    (error,) = loaded.errors
    assert type(error) is kind
    assert error.plugin == "hello"
    text = str(error)
    for part in (error.what, error.built_for, error.running, error.remedy):
        assert part
        assert part in text
    assert "fix it with: " in text
    assert "\n" not in text
    (examined,) = (each for each in examine(directory) if each.error is not None)
    assert str(examined.error) == text
    return text


def rebuild_command(directory: Path) -> str:
    return f"{sys.executable} -m kongps rebuild {directory}"


# The interpreter


@pytest.mark.parametrize(
    ("tag", "kind", "shown"),
    [
        (re.sub(r"\d+", "38", TAG, count=1), errors.OtherPython, "CPython 3.8"),
        (re.sub(r"(\d+)", r"\1d", TAG, count=1), errors.DebugBuild, "debug build"),
        (re.sub(r"(\d+)", r"\1t", TAG, count=1), errors.FreeThreadedBuild, "free-threaded"),
        (TAG.replace(facts()["machine"], "mips"), errors.OtherArchitecture, "mips"),
        (re.sub("gnu|musl", "other", TAG), errors.OtherLibc, "-other"),
        ("pypy310-pp73", errors.OtherPython, "PyPy 3.10"),
    ],
)
@pytest.mark.parametrize("by", ["name", "record"])
def test_a_module_for_another_interpreter(
    by: str, tag: str, kind: type[errors.CompatError], shown: str, tmp_path: Path
) -> None:
    built: dict[str, Any] = {"abi_tag": tag, "debug": "d-" in tag, "free_threaded": "t-" in tag}
    if tag.startswith("pypy"):
        built.update(implementation="pypy", python="3.10.2")
    elif kind is errors.OtherPython:
        built["python"] = "3.8.1"
    if by == "name":
        compile_c(tmp_path / f"hello.{tag}.so")
    else:
        compile_c(tmp_path / "hello.so", record=record(**built))
    (tmp_path / "_sources").mkdir()
    text = refused(tmp_path, kind)
    assert shown in text
    assert f"CPython {sys.version.split()[0]} ({TAG})" in text
    assert f"{sys.executable} -m kongps build hello.py -o {tmp_path}" in text


def test_the_command_is_rebuild_when_the_source_is_there(tmp_path: Path) -> None:
    compile_c(tmp_path / "hello.cpython-38-x86_64-linux-gnu.so")
    (tmp_path / ".sources").mkdir()
    (tmp_path / ".sources" / "hello.py").write_text(PLUGIN_SOURCE)
    text = refused(tmp_path, errors.OtherPython)
    assert text.endswith(f"fix it with: {rebuild_command(tmp_path)}")


# The machine and its libraries


def test_a_module_for_another_processor(tmp_path: Path) -> None:
    path = compile_c(tmp_path / f"hello{SUFFIX}")
    data = bytearray(path.read_bytes())
    other = 183 if ELF(path).machine != "aarch64" else 62
    data[18:20] = other.to_bytes(2, sys.byteorder)
    path.write_bytes(data)
    text = refused(tmp_path, errors.OtherArchitecture)
    assert running()["machine"] in text
    assert ("aarch64" if other == 183 else "x86_64") in text


def test_a_module_linked_with_another_libc(tmp_path: Path) -> None:
    name = "libc.musl-x86_64.so.1" if GLIBC else "libc.so.6"
    library = compile_c(
        tmp_path / "lib" / name, "int only_here(void) { return 0; }",
        flags=["-nostdlib", f"-Wl,-soname,{name}"],
    )  # fmt: skip
    compile_c(
        tmp_path / f"hello{SUFFIX}",
        "int only_here(void); int PyInit_hello(void) { return only_here(); }",
        flags=["-nostdlib", str(library)],
    )
    text = refused(tmp_path, errors.OtherLibc)
    assert ("musl" if GLIBC else "glibc") in text
    assert facts()["libc"] in text


@pytest.mark.skipif(not GLIBC, reason="only glibc has symbol versions")
def test_a_module_that_needs_a_newer_glibc(tmp_path: Path) -> None:
    path = compile_c(
        tmp_path / f"hello{SUFFIX}",
        "#include <string.h>\nvoid *PyInit_hello(void *x) { return strdup(x); }",
    )
    (version,) = {each for each in ELF(path).versions["libc.so.6"] if each.startswith("GLIBC_2.")}
    path.write_bytes(path.read_bytes().replace(version.encode(), version.encode()[:6] + b"9.9\0\0"))
    text = refused(tmp_path, errors.LibcTooOld)
    assert "glibc 9.9 or newer" in text
    assert facts()["libc"] in text


def test_a_module_that_needs_a_library_that_is_not_there(tmp_path: Path) -> None:
    library = compile_c(
        tmp_path / "lib" / "libkongpstest.so.7", "int only_here(void) { return 0; }",
        flags=["-Wl,-soname,libkongpstest.so.7"],
    )  # fmt: skip
    text = "int only_here(void); int PyInit_hello(void) { return only_here(); }"
    compile_c(tmp_path / f"hello{SUFFIX}", text, flags=[str(library)])
    assert "libkongpstest.so.7" in refused(tmp_path, errors.LibraryMissing)
    # Where the file itself says where to look, and the library is there, all is well.
    found = compile_c(
        tmp_path / "b" / f"hello{SUFFIX}", text, flags=[str(library), "-Wl,-rpath,$ORIGIN/../lib"]
    )
    assert check_object("hello", str(found)) == "python"


# The plugin API


@pytest.mark.parametrize(
    ("api", "kind"),
    [(PLUGIN_API + 1, errors.PluginAPITooNew), (0, errors.PluginAPITooOld)],
)
@pytest.mark.parametrize("native", [False, True])
def test_another_plugin_api(
    native: bool, api: int, kind: type[errors.CompatError], tmp_path: Path
) -> None:
    if native:
        compile_c(
            tmp_path / "hello.so", f"const struct {{ int api; }} kongps_plugin = {{ {api} }};"
        )
    else:
        compile_c(tmp_path / f"hello{SUFFIX}", record=record(plugin_api=api, kongps="9.9.9"))
    text = refused(tmp_path, kind)
    assert f"plugin API {api}" in text
    assert f"with plugin API {PLUGIN_API}" in text


# The file


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / f"hello{SUFFIX}").write_text("not a library")
    refused(tmp_path, errors.NotALibrary)
    (tmp_path / f"hello{SUFFIX}").write_text("")
    assert "it is empty" in refused(tmp_path, errors.NotALibrary)
    source = tmp_path / "hello.c"
    source.write_text("int x;")
    subprocess.run(["cc", "-c", source, "-o", tmp_path / f"hello{SUFFIX}"], check=True)
    assert "object file" in refused(tmp_path, errors.NotALibrary)


def test_a_file_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    path = compile_c(tmp_path / f"hello{SUFFIX}", record=record())
    whole = path.read_bytes()
    for size in (5, 40, 63, 64, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(tmp_path, errors.TruncatedFile)


def test_a_damaged_file_is_refused_or_checked_but_never_trips_the_check(tmp_path: Path) -> None:
    path = compile_c(tmp_path / f"hello{SUFFIX}", record=record())
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes(255 - each for each in whole[place : place + 8])
                         + whole[place + 8 :])  # fmt: skip
        with contextlib.suppress(errors.CompatError):
            check_object("hello", str(path))


def test_a_library_that_is_no_plugin_of_this_name(tmp_path: Path) -> None:
    compile_c(tmp_path / f"hello{SUFFIX}", "void *PyInit_goodbye(void) { return 0; }")
    text = refused(tmp_path, errors.NotAPlugin)
    assert "it is the module goodbye" in text
    assert "PyInit_hello" in text
    compile_c(tmp_path / f"hello{SUFFIX}", "int x;")
    refused(tmp_path, errors.NotAPlugin)


def test_two_files_for_one_plugin(tmp_path: Path) -> None:
    compile_c(tmp_path / f"hello{SUFFIX}")
    compile_c(tmp_path / "hello.so")
    assert f"hello{SUFFIX} and hello.so are both" in refused(tmp_path, errors.SeveralFiles)
    (tmp_path / "hello.so").unlink()
    (tmp_path / "hello.py").write_text(PLUGIN_SOURCE)
    assert f"hello{SUFFIX} and hello.py are both" in refused(tmp_path, errors.SeveralFiles)


def test_a_compiled_module_within_a_package_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "__init__.py").write_text("from .rules import Plugin\n")
    compile_c(tmp_path / "hello" / "rules.cpython-38-x86_64-linux-gnu.so")
    assert "rules.cpython-38" in refused(tmp_path, errors.OtherPython)


# The core


def test_a_core_for_another_interpreter_is_told_in_one_sentence(tmp_path: Path) -> None:
    package = tmp_path / "kongps"
    shutil.copytree(SRC / "kongps", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for module in ("dispatch", "loop"):
        compile_c(package / "core" / f"{module}.cpython-38-x86_64-linux-gnu.so", "int x;")
    done = subprocess.run(
        [sys.executable, "-c", "import kongps"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kongps.errors.CoreMismatch: kongps ")
    assert "only for cpython-38-x86_64-linux-gnu" in last
    assert f"CPython {sys.version.split()[0]}" in last
    assert f"{sys.executable} -m pip install" in last
    assert issubclass(errors.CoreMismatch, ImportError)


# What Kong sees


def test_dump_tells_on_stderr_and_leaves_the_plugin_out(tmp_path: Path) -> None:
    compile_c(tmp_path / "hello.cpython-38-x86_64-linux-gnu.so")
    (tmp_path / "other.py").write_text(PLUGIN_SOURCE)
    done = run("dump", "--plugins-directory", str(tmp_path))
    assert done.returncode == 1
    assert dumped(done.stdout) == ["other"]
    assert b"CPython 3.8" in done.stderr
    assert done.stderr.count(b"\n") == 1
    # As a Kong asks for one plugin: an answer without it, and the reason in Kong's output.
    done = run("dump", "--plugins-directory", str(tmp_path), "hello")
    assert (done.returncode, dumped(done.stdout)) == (1, [])
    assert b"fix it with: " in done.stderr


def test_every_class_has_a_test_and_a_row_for_the_table() -> None:
    text = (
        Path(__file__).read_text()
        + (Path(__file__).parent / "test_compiled_plugins.py").read_text()
    )
    bases = (errors.CompatError, errors.WrongFile)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.CompatError) and kind not in bases:
            assert kind.must_match
            assert kind.fixed_by
            assert f"{name}" in text.replace(f'"{name}"', ""), name


def test_the_running_interpreter_checks_its_own_modules(tmp_path: Path) -> None:
    compile_c(tmp_path / f"hello{SUFFIX}", record=record())
    assert check_object("hello", str(tmp_path / f"hello{SUFFIX}")) == "python"
    with pytest.raises(PluginError, match="No such file"):
        check_object("hello", str(tmp_path / "nothing.so"))
    with pytest.raises(PluginError):
        load_plugin(tmp_path, "nothing")


def test_the_page_on_versions_says_what_the_classes_say() -> None:
    assert versions_page.PAGE.read_text() == versions_page.render(), "run `make docs`"
