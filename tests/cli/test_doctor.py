"""``kongps doctor``: every fault of a plugins directory and of a kong.conf, with its remedy."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from server_process import run
from shared_libraries import PLUGIN_SOURCE, compile_c, needs_compiler

from kongps._version import PLUGIN_API, __version__
from kongps.cli import kong_conf_check
from kongps.cli.doctor import _within, examine_all
from kongps.cli.kong_conf_check import Finding
from kongps.cli.kong_conf_lines import kong_conf_lines
from kongps.compiled.interpreter import facts

SUFFIX = EXTENSION_SUFFIXES[0]
KONGPS = f"{sys.executable} -m kongps"


def doctor(*words: str) -> tuple[int, dict[str, Any]]:
    done = run("doctor", "--json", *words)
    assert done.stderr == b""
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["fine"] == (done.returncode == 0)
    return done.returncode, report


# The installation


def test_a_page_on_this_installation() -> None:
    code, report = doctor()
    assert code == 0
    assert report["findings"] == []
    assert report["interpreter"]["executable"] == sys.executable
    assert facts()["abi_tag"] in report["interpreter"]["name"]
    assert report["core"]["modules"] >= 10
    for key in ("cython", "compiler", "flags"):
        assert report["core"][key]
    assert report["core"]["kongps"] == __version__
    names = [each["name"] for each in report["dependencies"]]
    assert {"cffi", "greenlet", "msgspec", "cython"} <= set(names)
    assert "hypothesis" not in names
    text = run("doctor").stdout.decode()
    assert f"kongps {__version__}, plugin API {PLUGIN_API}" in text
    assert text.endswith("no problems found\n")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.16", ">=1.16,<3", True),
        ("1.15.9", ">=1.16,<3", False),
        ("3.0", ">=1.16,<3", False),
        ("2.99.1", "<3,>=1.16", True),
        ("0.22.0", ">=0.19,<0.23", True),
        ("0.23.1", ">=0.19,<0.23", False),
        ("5", "", True),
    ],
)
def test_versions_of_dependencies(version: str, wanted: str, fits: bool) -> None:
    assert _within(version, wanted) is fits


# Plugins


@needs_compiler
def test_one_plugin_of_each_broken_kind_each_with_its_remedy(tmp_path: Path) -> None:
    def c(name: str, text: str = "", **options: Any) -> Path:
        stem = name.partition(".")[0]
        return compile_c(
            tmp_path / name, text or f"void *PyInit_{stem}(void) {{ return 0; }}", **options
        )

    def record(**other: Any) -> dict[str, Any]:
        return {"kind": "python", "plugin_api": PLUGIN_API, **facts(), **other}

    tag = facts()["abi_tag"]
    (tmp_path / "fine.py").write_text(PLUGIN_SOURCE)
    c(f"python.{re.sub('[0-9]+', '38', tag, count=1)}.so")
    c(f"debug{SUFFIX}", record=record(debug=True))
    c(f"threads{SUFFIX}", record=record(free_threaded=True))
    c(f"newer{SUFFIX}", record=record(plugin_api=PLUGIN_API + 1))
    c(f"older{SUFFIX}", record=record(plugin_api=0))
    machine = c(f"machine{SUFFIX}")
    data = bytearray(machine.read_bytes())
    data[18:20] = (243).to_bytes(2, sys.byteorder)
    machine.write_bytes(data)
    cut = c(f"cut{SUFFIX}")
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / f"text{SUFFIX}").write_text("text")
    c(f"renamed{SUFFIX}", "void *PyInit_before(void) { return 0; }")
    library = compile_c(
        tmp_path / "lib" / "libgone.so.1", "int f(void) { return 0; }",
        flags=["-Wl,-soname,libgone.so.1"],
    )  # fmt: skip
    c(f"library{SUFFIX}", "int f(void); int PyInit_library(void) { return f(); }",
      flags=[str(library)])  # fmt: skip
    c(f"twice{SUFFIX}")
    (tmp_path / "twice.py").write_text(PLUGIN_SOURCE)
    (tmp_path / "a.b.py").write_text(PLUGIN_SOURCE)
    (tmp_path / "raises.py").write_text("x = 1\nraise ValueError('no luck')\n")
    (tmp_path / "quits.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n")
    c("native.so", "const int kongps_plugin[40] = { 1, 4 };")
    code, report = doctor("--plugins-directory", str(tmp_path))
    assert code == 1
    broken = {each["name"] for each in report["plugins"] if each["state"] == "broken"}
    assert {each["name"] for each in report["plugins"]} - broken == {"fine"}
    expected = {
        "python": "compiled for another Python",
        "debug": "debug build of Python",
        "threads": "free-threaded",
        "newer": f"plugin API {PLUGIN_API + 1}",
        "older": "plugin API 0",
        "machine": "riscv64",
        "cut": "cut off",
        "text": "no shared library",
        "renamed": "PyInit_renamed",
        "library": "libgone.so.1",
        "twice": "both this plugin",
        "a.b": "a.b.py",
        "raises": "raises.py:2: ValueError: no luck",
        "quits": "ends the process",
        "crashes": "SIGABRT",
        "native": "its table has 4 bytes",
    }
    assert broken == set(expected)
    for name, text in expected.items():
        (finding,) = (each for each in report["findings"] if each["about"] == name)
        assert finding["level"] == "error"
        assert text in finding["text"]
        assert finding["remedy"]
        assert "fix it with" not in finding["text"]
    page = run("doctor", "--plugins-directory", str(tmp_path)).stdout.decode()
    assert page.count("  fix it: ") == len(expected)


def test_a_plugin_that_loads_has_a_line_on_where_its_handlers_run(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLUGIN_SOURCE)
    (tmp_path / "waits.py").write_text(f"import sqlite3\n{PLUGIN_SOURCE}\nsqlite3.connect\n")
    _, report = doctor("--plugins-directory", str(tmp_path))
    handlers = {each["name"]: each["handlers"] for each in report["plugins"]}
    assert handlers["plain"].startswith("its handlers run inline: ")
    assert handlers["waits"].startswith("its handlers run in threads: it uses sqlite3")
    page = run("doctor", "--plugins-directory", str(tmp_path)).stdout.decode()
    assert all(line in page for line in handlers.values())


# kong.conf


@pytest.fixture
def directory(short_path: Path) -> Path:
    plugins = short_path / "plugins"
    plugins.mkdir()
    for name in ("hello", "key-gate"):
        (plugins / f"{name}.py").write_text(PLUGIN_SOURCE)
    return plugins


def written(directory: Path, kong: str = "3.9") -> str:
    """A kong.conf without fault."""
    lines = kong_conf_lines(
        ["hello", "key-gate"], kong=kong, directory=str(directory),
        socket=str(directory.parent / "kps.sock"), executable=sys.executable,
    )  # fmt: skip
    return "\n".join([*lines, ""]).replace(shlex.quote(sys.executable), KONGPS)


def check(directory: Path, text: str, kong: str = "3.9") -> list[Finding]:
    path = directory.parent / "kong.conf"
    path.write_text(text)
    report = examine_all(kong_conf=str(path), kong=kong)
    assert report.fine == all(each.level != "error" for each in report.findings)
    return report.findings


@pytest.mark.parametrize("kong", ["2.8", "3.8", "3.9"])
def test_what_conf_prints_has_no_fault(kong: str, directory: Path) -> None:
    assert check(directory, written(directory, kong), kong) == []


def test_comments_and_spaces_are_read_as_kong_does(tmp_path: Path) -> None:
    path = tmp_path / "kong.conf"
    path.write_text("# a = 1\n a=1 # one\nb = x\\#y\n  # c = 2\nC  =  3  \nd\n\n")
    assert kong_conf_check.read(str(path)) == {"a": "1", "b": "x#y", "c": "3"}


FAULTS: list[tuple[str, str, str, str, str]] = [
    ("kps.sock", "gone/kps.sock", "error", "_socket", "gone of the socket does not exist"),
    ("kps.sock", "k" * 120, "error", "_socket", "too long"),
    (KONGPS + " serve", "/no/kongps serve", "error", "_start_cmd", "there is no command '/no/"),
    ("--socket ", "--socket /else", "error", "_start_cmd", "but Kong connects to"),
    (KONGPS + " dump", "/no/kongps dump", "error", "_query_cmd", "there is no command '/no/"),
    (KONGPS + " dump", KONGPS + " conf", "error", "_query_cmd", "is not what Kong expects"),
    (KONGPS + " dump", "echo '{}' #", "error", "_query_cmd", "is not what Kong expects: '{}"),
    (KONGPS + " dump", "'", "error", "_query_cmd", "it is not a command"),
    ("dump --plugins-directory", "dump --plugins-directory /no", "error", "_query_cmd",
     "is not what Kong expects"),
    ("_query_cmd =", "_queri_cmd =", "error", "_query_cmd", "there is no such setting"),
    ("names = hello,key-gate", "names = hello,keygate", "error", "pluginserver_key_gate_",
     "no key_gate in pluginserver_names"),
    ("plugins = bundled,hello", "plugins = bundled", "warning", "plugins", "hello is served but"),
    (",key-gate\npluginserver_names", ",key_gate\npluginserver_names", "error", "plugins",
     "there is no plugin key_gate; a plugin server has key-gate"),
    ("plugins = bundled,", "plugins = bundled,other,", "warning", "plugins",
     "no plugin server has other"),
    ("pluginserver_names = hello,key-gate", "pluginserver_names = hello", "error", "plugins",
     "key-gate is enabled and in the plugins directory"),
    ("pluginserver_hello_start_cmd", "# no", "warning", "_start_cmd", "nothing listens on"),
    ("--protocol protobuf hello", "--protocol protobuf nope",
     "error", "_query_cmd", "exit code is 1; its last message is: kongps: plugin 'nope'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "to", "level", "about", "said"), FAULTS)
def test_a_fault_in_kong_conf_is_told_with_its_remedy(
    change: str, to: str, level: str, about: str, said: str, directory: Path
) -> None:
    change, to = (each.replace("{directory}", str(directory)) for each in (change, to))
    text = written(directory)
    assert change in text
    findings = check(directory, text.replace(change, to))
    fitting = [each for each in findings if about in each.about and said in each.text]
    assert fitting, findings
    assert all(each.level == level and each.remedy for each in fitting)


def test_kong_3_9_needs_a_name_for_each_plugin(directory: Path) -> None:
    (finding,) = (
        each for each in check(directory, written(directory, "3.8")) if "first plugin" in each.text
    )
    assert finding.level == "error"
    assert "key-gate needs a name of its own" in finding.text
    assert "kongps conf --kong 3.9" in finding.remedy


def test_two_start_commands_for_one_socket(directory: Path) -> None:
    text = written(directory)
    start = next(line for line in text.splitlines() if "_start_cmd" in line)
    findings = check(directory, text + start.replace("_hello_", "_key_gate_") + "\n")
    assert ["both start a server" in each.text for each in findings] == [True]


def test_settings_for_another_version_of_kong(directory: Path) -> None:
    old = written(directory, "2.2").replace(KONGPS, sys.executable)
    assert all(each.level != "error" or "directory /usr/local/kong" in each.text
               for each in check(directory, old, "2.2"))  # fmt: skip
    assert any("does not know this setting" in each.text for each in check(directory, old, "3.9"))
    new = written(directory, "2.8")
    assert any("does not know this setting" in each.text for each in check(directory, new, "2.2"))
    gone = old.replace(f"go_plugins_dir = {directory}", "go_plugins_dir = /no/plugins")
    assert any("no directory /no/plugins" in each.text for each in check(directory, gone, "2.2"))


def test_the_command_takes_a_kong_conf_and_fails_when_it_would(directory: Path) -> None:
    path = directory.parent / "kong.conf"
    path.write_text(written(directory))
    code, report = doctor("--kong-conf", str(path))
    assert (code, report["findings"]) == (0, [])
    assert report["plugins_directory"] == str(directory)
    assert [each["plugins"] for each in report["plugin_servers"]] == [["hello"], ["key-gate"]]
    os.unlink(directory / "hello.py")
    code, _ = doctor("--kong-conf", str(path))
    assert code == 1
    missing = run("doctor", "--kong-conf", str(directory / "nothing"))
    assert missing.returncode == 1
    assert b"cannot read" in missing.stderr
