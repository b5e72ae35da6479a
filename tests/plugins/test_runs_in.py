"""Where a plugin's handlers run is decided when it is loaded, by what it is made of."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
from paths import EXAMPLES, ROOT
from shared_libraries import needs_compiler

from kongps.plugins.loader import from_object, load_directory, load_plugin
from kongps.plugins.plugin import missing_plugin

PLAIN = """
class Plugin:
    def access(self, kong): ...
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def placed(directory: Path, text: str) -> tuple[str, str]:
    write(directory / "one.py", text)
    plugin = load_plugin(directory, "one")
    return plugin.placed


def test_a_plain_handler_runs_inline(tmp_path: Path) -> None:
    assert placed(tmp_path, PLAIN) == ("inline", "it uses no module that waits or needs threads")


def test_async_handlers_run_under_asyncio(tmp_path: Path) -> None:
    text = "class Plugin:\n    async def access(self, kong): ...\n    def start(self): ...\n"
    assert placed(tmp_path, text) == ("asyncio", "they are async def")
    plugin = load_plugin(tmp_path, "one")
    assert plugin.where("access") == plugin.where("start") == "asyncio"


def test_the_plain_handlers_beside_async_ones_follow_the_rule_for_plain_ones(
    tmp_path: Path,
) -> None:
    text = """
        import queue

        class Plugin:
            async def access(self, kong): ...
            def log(self, kong): ...
    """
    assert placed(tmp_path, text)[0] == "threads"
    plugin = load_plugin(tmp_path, "one")
    assert plugin.where("access") == "asyncio"
    assert plugin.where("log") == plugin.where("start") == "threads"
    assert plugin.describe_where() == (
        "its handlers run in threads: it uses queue (line 2): threads or locks; "
        "access under asyncio: async def"
    )


KONG_PYTHON_PDK = """
class Plugin:
    def __init__(self, config): ...
    def access(self, kong): ...
"""


def test_kong_python_pdks_layout_runs_in_threads(tmp_path: Path) -> None:
    assert placed(tmp_path, KONG_PYTHON_PDK) == ("threads", "it has kong-python-pdk's layout")


@pytest.mark.parametrize(("value", "where"), [("True", "threads"), ("False", "inline")])
@pytest.mark.parametrize("text", [PLAIN, f"import threading\n{PLAIN}", KONG_PYTHON_PDK])
def test_what_a_plugin_says_itself_counts_more(
    tmp_path: Path, text: str, value: str, where: str
) -> None:
    text = f"{text}\nblocking = {value}\n"
    assert placed(tmp_path, text) == (where, f"it says blocking = {value}")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import threading", "threading"),
        ("import threading as t", "threading"),
        ("from threading import Lock", "threading"),
        ("import concurrent.futures", "concurrent.futures"),
        ("from concurrent import futures", "concurrent.futures"),
        ("import asyncio", "asyncio"),
        ("import sqlite3", "sqlite3"),
        ("from time import sleep", "time.sleep"),
        ("import time\nwait = time.sleep", "time.sleep"),
        ("import time as t\nwait = t.sleep", "time.sleep"),
        ("import urllib.request", "urllib.request"),
        ("import urllib\nimport http.client", "http.client"),
        ("import os\nrun = os.system", "os.system"),
        ("try:\n    import redis\nexcept ImportError:\n    redis = None", "redis"),
    ],
)
def test_what_waits_or_needs_threads(tmp_path: Path, line: str, name: str) -> None:
    where, reason = placed(tmp_path, f"{line}\n{PLAIN}")
    assert (where, reason.partition(" (")[0]) == ("threads", f"it uses {name}")


@pytest.mark.parametrize(
    "line",
    [
        "import time\nnow = time.monotonic()",
        "import urllib.parse",
        "from http import HTTPStatus",
        "import os\nhere = os.getcwd()",
        "import logging, json, re",  # what those import is not the plugin's own
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import threading",
        "import typing\nif typing.TYPE_CHECKING:\n    import threading",
    ],
)
def test_what_does_not(tmp_path: Path, line: str) -> None:
    assert placed(tmp_path, f"{line}\n{PLAIN}")[0] == "inline"


def test_an_import_in_a_handler_counts(tmp_path: Path) -> None:
    text = "class Plugin:\n    def access(self, kong):\n        import sqlite3\n"
    assert placed(tmp_path, text) == (
        "threads",
        "it uses sqlite3 (line 3): objects that belong to one thread",
    )


def test_the_modules_of_a_package_and_those_beside_it_count(tmp_path: Path) -> None:
    write(tmp_path / "whole" / "__init__.py", f"from .inner import limit\n{PLAIN}")
    write(tmp_path / "whole" / "inner.py", "from .deep import rules\nlimit = 1\n")
    write(tmp_path / "whole" / "deep" / "rules.py", "import subprocess\n")
    write(tmp_path / "whole" / "deep" / "__init__.py", "")
    write(tmp_path / "beside.py", f"from . import _shared\n{PLAIN}")
    write(tmp_path / "_shared.py", "import socket\n")
    write(tmp_path / "apart.py", PLAIN)
    plugins = load_directory(tmp_path).plugins
    assert plugins["whole"].placed.reason == (
        "it uses subprocess (rules.py, line 1): other processes"
    )
    assert plugins["beside"].placed.reason == "it uses socket (_shared.py, line 1): the network"
    assert plugins["apart"].placed.runs_in == "inline"


@pytest.mark.parametrize(
    ("place", "where"), [("site-packages", "inline"), (".python/lib", "inline"), (".", "threads")]
)
def test_what_is_not_beside_the_plugin_is_not_looked_into(
    tmp_path: Path, place: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"used_{abs(hash(tmp_path))}"
    write(tmp_path / place / f"{name}.py", "import threading\n")
    monkeypatch.syspath_prepend(str((tmp_path / place).resolve()))
    assert placed(tmp_path, f"import {name}\n{PLAIN}")[0] == where


@needs_compiler
def test_the_globals_of_a_compiled_plugin_count(tmp_path: Path) -> None:
    from kongps.compiled.build import build

    for name, text in {
        "locks": f"from threading import Lock\nlock = Lock()\n{PLAIN}",
        "imports": f"import sqlite3\n{PLAIN}",
        "sleeps": f"from time import sleep\n{PLAIN}",
        "quick": f"import time\n{PLAIN}",
    }.items():
        source = write(tmp_path / "sources" / f"{name}.py", text)
        build(str(source), output=str(tmp_path / "plugins"), progress=lambda line: None)
    plugins = load_directory(tmp_path / "plugins").plugins
    assert {name: plugin.placed.runs_in for name, plugin in plugins.items()} == {
        "imports": "threads", "locks": "threads", "quick": "inline", "sleeps": "threads",
    }  # fmt: skip
    assert plugins["imports"].placed.reason == (
        "it uses sqlite3: objects that belong to one thread"
    )


def test_a_class_without_its_module_runs_inline() -> None:
    class Plugin:
        def access(self, kong: object) -> None: ...

    assert from_object(Plugin).describe_where() == (
        "its handlers run inline: it uses no module that waits or needs threads"
    )


def test_a_plugin_that_is_missing_has_no_handlers() -> None:
    plugin = missing_plugin("gone")
    assert (plugin.name, plugin.phases, plugin.path) == ("gone", (), "")
    assert plugin.kong
    with pytest.raises(Exception, match="there is no plugin 'gone' on this server"):
        plugin.new({})


def test_where_the_handlers_of_the_examples_run() -> None:
    assert {
        name: each.placed.runs_in for name, each in load_directory(EXAMPLES).plugins.items()
    } == {
        "async_gate": "asyncio",
        "hello": "inline",
        "hello_go": "inline",
        "hello_kong_pdk": "threads",
        "image": "inline",
        "key_gate": "inline",
        "log": "inline",
    }


def test_where_the_handlers_of_the_benchmarks_run(tmp_path: Path) -> None:
    for file in (ROOT / "benchmarks" / "plugins").glob("*.py"):
        shutil.copy(file, tmp_path)
    for name, plugin in load_directory(tmp_path).plugins.items():
        assert plugin.placed.runs_in == "inline", name
