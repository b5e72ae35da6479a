"""The settings of a kong.conf that concern plugin servers, and what is wrong with them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

from kongps.cli.conf import parse_version
from kongps.errors import ServerError

__all__ = ["Finding", "Served", "check", "read"]

# Seconds that a query command gets; Kong itself waits without end.
QUERY_TIMEOUT = 60

# Where Kong puts things when kong.conf does not say.
DEFAULT_PREFIX = "/usr/local/kong"

# Longest path of a unix socket on Linux.
LONGEST_SOCKET_PATH = 107

_SETTING = re.compile(r"pluginserver_(.+)_(socket|start_cmd|query_cmd)")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    :ivar level: ``error``: Kong does not run, or not with all plugins; ``warning``: perhaps.
    :ivar about: what it is about: a plugin, a setting, a package.
    :ivar text: what is wrong.
    :ivar remedy: what mends it.
    """

    level: str
    about: str
    text: str
    remedy: str


@dataclass
class Served:
    """A name of ``pluginserver_names`` with its settings.

    :ivar plugins: what its query command told of.
    """

    name: str
    socket: str
    start_cmd: str
    query_cmd: str
    plugins: list[str]


def read(path: str) -> dict[str, str]:
    """The settings of a kong.conf.

    :param path: the file.
    :raises ServerError: when it cannot be read.
    """
    settings = {}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                line = re.sub(r"(^|[^\\])#.*", r"\1", line).replace("\\#", "#").strip()
                name, equals, value = line.partition("=")
                if equals:
                    settings[name.strip().lower()] = value.strip()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    return settings


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def check(
    settings: dict[str, str], *, kong: str, there: Iterable[str] = ()
) -> tuple[list[Served], list[Finding]]:
    """Looks for what keeps a Kong with these settings from running its plugins.

    :param settings: of :func:`read`.
    :param kong: the version of Kong, such as ``3.9``.
    :param there: the names of the plugins in the plugins directory.
    :returns: the plugin servers, and what is wrong.
    :raises ServerError: for a version that is none.
    """
    return _Check(settings, parse_version(kong), kong, list(there)).run()


class _Check:
    def __init__(
        self, settings: dict[str, str], version: tuple[int, int], kong: str, there: list[str]
    ) -> None:
        self.settings = settings
        self.version = version
        self.kong = kong
        self.there = there
        self.findings: list[Finding] = []
        self.prefix = settings.get("prefix", DEFAULT_PREFIX)

    def add(self, level: str, about: str, text: str, remedy: str) -> None:
        self.findings.append(Finding(level, about, text, remedy))

    def run(self) -> tuple[list[Served], list[Finding]]:
        self.check_go_settings()
        names = _listed(self.settings.get("pluginserver_names", ""))
        servers = [self.server(name) for name in names]
        self.check_names(names)
        for server in servers:
            if server.socket not in [each.socket for each in servers[: servers.index(server)]]:
                self.check_socket(server)
            self.check_start(server, servers)
            self.check_query(server)
        self.check_plugins(servers)
        return servers, self.findings

    def server(self, name: str) -> Served:
        setting = f"pluginserver_{name.replace('-', '_').lower()}"
        prefix = self.prefix if self.version >= (3, 9) else DEFAULT_PREFIX

        def command(kind: str, default: str) -> str:
            given = self.settings.get(f"{setting}_{kind}")
            return given if given is not None else default if os.path.exists(default) else ""

        return Served(
            name,
            self.settings.get(f"{setting}_socket", os.path.join(prefix, f"{name}.socket")),
            command("start_cmd", f"/usr/local/bin/{name}"),
            command("query_cmd", f"/usr/local/bin/query_{name}"),
            [],
        )

    def check_go_settings(self) -> None:
        directory = self.settings.get("go_plugins_dir", "off")
        exe = self.settings.get("go_pluginserver_exe", "/usr/local/bin/go-pluginserver")
        given = [
            name for name in ("go_plugins_dir", "go_pluginserver_exe") if name in self.settings
        ]
        if given and self.version >= (3, 0):
            self.add(
                "error", given[0], f"Kong {self.kong} does not know this setting; 2.8 was the last",
                f"use pluginserver_names; `kongps conf --kong {self.kong}` prints what to write",
            )  # fmt: skip
            return
        if self.version < (2, 3) and "pluginserver_names" in self.settings:
            self.add(
                "error", "pluginserver_names", f"Kong {self.kong} does not know this setting",
                f"use go_pluginserver_exe; `kongps conf --kong {self.kong}` prints what to write",
            )  # fmt: skip
        if directory == "off":
            if given:
                self.add("error", "go_plugins_dir", "it is off, so nothing is served", "set it")
            return
        if not os.path.isdir(directory):
            self.add(
                "error", "go_plugins_dir", f"there is no directory {directory}",
                f"mkdir -p {shlex.quote(directory)}",
            )  # fmt: skip
        if not shutil.which(exe):
            self.add(
                "error", "go_pluginserver_exe", f"there is no command {exe}",
                "give the path of the kongps command",
            )  # fmt: skip
        self.check_directory("prefix", self.prefix)

    def check_names(self, names: list[str]) -> None:
        known = {name.replace("-", "_").lower() for name in names}
        for key in self.settings:
            match = _SETTING.fullmatch(key)
            if match and match[1] not in known:
                self.add(
                    "error", key, f"there is no {match[1]} in pluginserver_names, so Kong does not "
                    "read it (- is written _ in the setting)",
                    f"add the name to pluginserver_names: {', '.join([*names, match[1]])}",
                )  # fmt: skip

    def check_directory(self, about: str, directory: str) -> None:
        if not os.path.isdir(directory):
            self.add(
                "error", about, f"the directory {directory} of the socket does not exist",
                f"mkdir -p {shlex.quote(directory)}, for the user that Kong runs as",
            )  # fmt: skip

    def check_socket(self, server: Served) -> None:
        about = f"pluginserver_{server.name.replace('-', '_')}_socket"
        self.check_directory(about, os.path.dirname(server.socket) or ".")
        if len(os.fsencode(server.socket)) > LONGEST_SOCKET_PATH:
            self.add(
                "error", about, f"the path {server.socket} is too long for a unix socket",
                f"give one of at most {LONGEST_SOCKET_PATH} bytes",
            )  # fmt: skip

    def check_start(self, server: Served, servers: list[Served]) -> None:
        about = f"pluginserver_{server.name.replace('-', '_')}_start_cmd"
        same = [each for each in servers if each.socket == server.socket]
        starting = [each for each in same if each.start_cmd]
        if len(starting) > 1 and starting[0] is server:
            self.add(
                "error", about, f"{' and '.join(each.name for each in starting)} both start a "
                f"server for {server.socket}, and the second one cannot have it",
                "leave one _start_cmd",
            )  # fmt: skip
        if not server.start_cmd:
            if not starting and same[0] is server and not _listens(server.socket):
                self.add(
                    "warning", about, "there is no such setting, and nothing listens on "
                    f"{server.socket}: Kong expects somebody else to run the server",
                    "start the server first, or set it",
                )  # fmt: skip
            return
        words = self.words(about, server.start_cmd)
        if words is None:
            return
        given = _option(words, "--socket")
        if given is not None and os.path.abspath(given) != os.path.abspath(server.socket):
            self.add(
                "error", about, f"it serves {given}, but Kong connects to {server.socket}",
                f"write --socket {shlex.quote(server.socket)}",
            )  # fmt: skip

    def words(self, about: str, command: str) -> Optional[list[str]]:
        """The words of a command whose program is there."""
        try:
            words = shlex.split(command)
        except ValueError as error:
            self.add("error", about, f"it is no command: {error}", "close the quotes")
            return None
        program = next((word for word in words if "=" not in word), "")
        if not shutil.which(program):
            self.add(
                "error", about, f"there is no command {program!r}",
                "give the full path of the kongps command, which Kong's user may run",
            )  # fmt: skip
            return None
        return words

    def check_query(self, server: Served) -> None:
        about = f"pluginserver_{server.name.replace('-', '_')}_query_cmd"
        if not server.query_cmd:
            self.add(
                "error", about, "there is no such setting: Kong does not learn of the plugins",
                f"`kongps conf --kong {self.kong}` prints what to write",
            )  # fmt: skip
            return
        if self.words(about, server.query_cmd) is None:
            return
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", server.query_cmd],
                capture_output=True, timeout=QUERY_TIMEOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            self.add("error", about, f"it has not ended after {QUERY_TIMEOUT} s", "run it by hand")
            return
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        hint = f"; it said: {said[-1]}" if said else ""
        answer = _answer(done.stdout)
        if answer is None:
            shown = done.stdout[:60].decode("utf-8", "replace")
            self.add(
                "error", about, f"its output is no answer to Kong: {shown!r}{hint}",
                "it must print the JSON of `kongps dump` and nothing else; run it by hand",
            )  # fmt: skip
            return
        server.plugins = answer
        if done.returncode:
            self.add(
                "error", about, f"it ended with {done.returncode}{hint}",
                "mend the plugin that it names",
            )  # fmt: skip
        elif not answer:
            self.add("error", about, f"it tells of no plugin{hint}", "put a plugin there")

    def check_plugins(self, servers: list[Served]) -> None:
        enabled = _listed(self.settings.get("plugins", "bundled"))
        served: list[str] = []
        for server in servers:
            served += server.plugins[:1] if self.version >= (3, 9) else server.plugins
        if self.version >= (3, 9):
            self.check_one_name_each(servers, served)
        if self.settings.get("go_plugins_dir", "off") != "off" and self.version < (3, 0):
            served += self.there
        for name in served:
            if name not in enabled:
                self.add(
                    "warning", "plugins", f"{name} is served but not enabled",
                    f"plugins = {','.join([*enabled, name])}",
                )  # fmt: skip
        for name in enabled:
            if name in served or name == "bundled" or name == "off":
                continue
            twin = next((each for each in served if _alike(each, name)), None)
            if name in self.there:
                self.add(
                    "error", "plugins", f"{name} is enabled and in the plugins directory, but no "
                    "plugin server of pluginserver_names tells of it: Kong does not start",
                    f"`kongps conf --kong {self.kong}` prints what to write",
                )  # fmt: skip
            elif twin is not None:
                self.add(
                    "error", "plugins", f"there is no plugin {name}; a plugin server has {twin}",
                    f"write {twin}",
                )  # fmt: skip
            elif servers:
                self.add(
                    "warning", "plugins", f"no plugin server tells of {name}: it has to be a Lua "
                    "plugin, or Kong does not start",
                    "check the name",
                )  # fmt: skip

    def check_one_name_each(self, servers: list[Served], served: list[str]) -> None:
        for server in servers:
            for name in server.plugins[1:]:
                if name in served:
                    continue
                self.add(
                    "error", "pluginserver_names",
                    f"Kong {self.kong} takes only the first plugin of an answer, "
                    f"{server.plugins[0]} of {server.name}'s; {name} needs a name of its own",
                    f"`kongps conf --kong {self.kong}` prints what to write",
                )  # fmt: skip


def _alike(one: str, other: str) -> bool:
    return re.sub("[-_]", "", one).lower() == re.sub("[-_]", "", other).lower()


def _option(words: list[str], flag: str) -> Optional[str]:
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def plugins_directories(servers: Iterable[Served]) -> Iterator[str]:
    """The plugins directories that start commands name."""
    for server in servers:
        try:
            given = _option(shlex.split(server.start_cmd), "--plugins-directory")
        except ValueError:
            continue
        if given is not None:
            yield given


def _answer(output: bytes) -> Optional[list[str]]:
    """The names of the plugins in an answer to Kong's query; None when it is none."""
    try:
        answer: Any = json.loads(output)
    except ValueError:
        return None
    if isinstance(answer, dict):
        answer = answer.get("Plugins")
    if not isinstance(answer, list):
        return None
    names = [str(each["Name"]) for each in answer if isinstance(each, dict) and "Name" in each]
    return names if len(names) == len(answer) else None


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
