"""What `kongps dump` does without: Kong waits for it, and most of its time are its imports."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import EXAMPLES, SRC
from server_process import run

# What only serving needs, or only messages.
SPARED = {
    "asyncio",
    "concurrent.futures",
    "greenlet",
    "kongps.cli.doctor",
    "kongps.cli.serve",
    "kongps.compiled.checks",
    "kongps.core",
    "kongps.pdk",
    "kongps.server.server",
    "msgspec",
    "sqlite3",
    "subprocess",
}

PLAIN = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"

class Config:
    message: str = "hello"
    times: int = 1
    factor: float = 0.5
    loud: bool = False

    def access(self, kong: Kong) -> None: ...

def New() -> Config:
    return Config()
"""

PYTHON_PDK = """
Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"

class Plugin(object):
    def __init__(self, config):
        self.config = config
    def access(self, kong): ...
"""

COMMANDS = [
    ["dump", "--plugins-directory", "DIR"],
    ["dump", "--plugins-directory", "DIR", "--protocol", "msgpack", "--socket", "/s", "NAME"],
    ["-plugins-directory", "DIR", "-dump-all-plugins"],
    ["--kong-prefix", "/k", "--plugins-directory", "DIR", "--dump-all-plugins"],
]


def imported(*words: str) -> set[str]:
    """The modules that a command line imports, by a Python that has imported nothing itself."""
    script = (
        "import sys; before = set(sys.modules); from kongps.cli.main import main; "
        "code = main(); print(*set(sys.modules) - before, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, *words],
        env={"PYTHONPATH": os.pathsep.join([str(SRC), *filter(None, sys.path)])},
        capture_output=True,
        check=True,
    )
    assert b"Phases" in done.stdout
    modules = set(done.stderr.decode().split())
    assert "kongps.plugins.loader" in modules
    return modules


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.mark.parametrize("text", [PLAIN, PYTHON_PDK], ids=["structure", "kong-python-pdk"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_dump_imports_nothing_that_it_can_do_without(
    tmp_path: Path, command: list[str], text: str
) -> None:
    write(tmp_path, "NAME", text)
    modules = imported(*(str(tmp_path) if word == "DIR" else word for word in command))
    assert not modules & SPARED


def test_a_dump_as_messagepack_imports_nothing_that_it_can_do_without(tmp_path: Path) -> None:
    write(tmp_path, "plain", PLAIN)
    modules = imported("-plugins-directory", str(tmp_path), "-dump-plugin-info", "plain")
    assert not modules & SPARED


@pytest.mark.parametrize("name", ["hello", "key_gate", "log", "hello_go", "hello_kong_pdk"])
def test_what_the_examples_import_is_all_that_their_dump_adds(name: str) -> None:
    modules = imported("dump", "--plugins-directory", str(EXAMPLES), name)
    assert not modules & {"asyncio", "kongps.core", "kongps.pdk", "kongps.server", "msgspec"}


@pytest.mark.parametrize("name", sorted(SPARED))
def test_what_is_spared_could_be_imported(name: str) -> None:
    """Else a module that was given another name would be spared for good."""
    assert importlib.util.find_spec(name) is not None


def test_what_a_plugin_logs_while_it_is_dumped_is_written_as_the_server_does(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        "talks",
        """
        import logging
        logging.getLogger("talks").warning("two\\nlines")
        logging.getLogger("talks").info("too much")
        class Plugin:
            def access(self, kong): ...
        """,
    )
    done = run("dump", "--plugins-directory", str(tmp_path))
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert re.fullmatch(r"\S+Z \[warning\] talks: two \| lines", line)
