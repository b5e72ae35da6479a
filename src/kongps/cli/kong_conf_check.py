"""Reads a kong.conf, and finds what keeps a Kong with it from running its plugins."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

from kongps.cli.kong_conf_lines import parse_version, settings_of
from kongps.errors import ServerError
from kongps.settings import DEFAULT_PREFIX, LONGEST_SOCKET_PATH

__all__ = ["Finding", "Served", "check", "plugins_directory", "read"]

# Seconds that a query command gets; Kong itself waits without end.
QUERY_TIMEOUT = 60

_SETTING = re.compile(r"pluginserver_(.+)_(socket|start_cmd|query_cmd)")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    :ivar level: ``error``: Kong does not run, or not with all plugins; ``warning``: perhaps.
    :ivar about: what it is about: a plugin, a setting, a package.
    :ivar text: what is wrong.
    :ivar remedy: how to fix it.
    """

    level: str
    about: str
    text: str
    remedy: str


@dataclass
class Served:
    """A name of ``pluginserver_names`` with its settings.

    :ivar plugins: the plugins in its query command's answer.
    """

    name: str
    socket: str
    start_cmd: str
    query_cmd: str
    plugins: list[str]

    def setting(self, kind: str) -> str:
        """The name of one of its settings: ``socket``, ``start_cmd`` or ``query_cmd``."""
        return f"{settings_of(self.name)}_{kind}"


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
    return _Check(settings, kong, list(there)).run()


class _Check:
    def __init__(self, settings: dict[str, str], kong: str, there: list[str]) -> None:
        self.settings = settings
        self.version = parse_version(kong)
        self.kong = kong
        self.there = there
        self.findings: list[Finding] = []
        self.prefix = settings.get("prefix", DEFAULT_PREFIX)
        self.go_directory = settings.get("go_plugins_dir", "off")
        self.conf_prints_it = f"`kongps conf --kong {kong}` prints what to write"

    def error(self, about: str, text: str, remedy: str) -> None:
        self.findings.append(Finding("error", about, text, remedy))

    def warning(self, about: str, text: str, remedy: str) -> None:
        self.findings.append(Finding("warning", about, text, remedy))

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
        setting = settings_of(name)
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
        directory = self.go_directory
        exe = self.settings.get("go_pluginserver_exe", "/usr/local/bin/go-pluginserver")
        given = [
            name for name in ("go_plugins_dir", "go_pluginserver_exe") if name in self.settings
        ]
        if given and self.version >= (3, 0):
            self.error(
                given[0],
                f"Kong {self.kong} does not know this setting; 2.8 was the last",
                f"use pluginserver_names; {self.conf_prints_it}",
            )
            return
        if self.version < (2, 3) and "pluginserver_names" in self.settings:
            self.error(
                "pluginserver_names",
                f"Kong {self.kong} does not know this setting",
                f"use go_pluginserver_exe; {self.conf_prints_it}",
            )
        if directory == "off":
            if given:
                self.error("go_plugins_dir", "it is off, so nothing is served", "set it")
            return
        if not os.path.isdir(directory):
            self.error(
                "go_plugins_dir",
                f"there is no directory {directory}",
                f"mkdir -p {shlex.quote(directory)}",
            )
        if not shutil.which(exe):
            self.error(
                "go_pluginserver_exe",
                f"there is no command {exe}",
                "give the path of the kongps command",
            )
        self.check_directory("prefix", self.prefix)

    def check_names(self, names: list[str]) -> None:
        known = {settings_of(name) for name in names}
        for key in self.settings:
            match = _SETTING.fullmatch(key)
            if match and f"pluginserver_{match[1]}" not in known:
                self.error(
                    key,
                    f"there is no {match[1]} in pluginserver_names, so Kong does not read it (- "
                    "is written _ in the setting)",
                    f"add the name to pluginserver_names: {', '.join([*names, match[1]])}",
                )

    def check_directory(self, about: str, directory: str) -> None:
        if not os.path.isdir(directory):
            self.error(
                about,
                f"the directory {directory} of the socket does not exist",
                f"mkdir -p {shlex.quote(directory)}, for the user that Kong runs as",
            )

    def check_socket(self, server: Served) -> None:
        about = server.setting("socket")
        self.check_directory(about, os.path.dirname(server.socket) or ".")
        if len(os.fsencode(server.socket)) > LONGEST_SOCKET_PATH:
            self.error(
                about,
                f"the path {server.socket} is too long for a unix socket",
                f"give one of at most {LONGEST_SOCKET_PATH} bytes",
            )

    def check_start(self, server: Served, servers: list[Served]) -> None:
        about = server.setting("start_cmd")
        same = [each for each in servers if each.socket == server.socket]
        starting = [each for each in same if each.start_cmd]
        if len(starting) > 1 and starting[0] is server:
            self.error(
                about,
                f"{' and '.join(each.name for each in starting)} both start a server for "
                f"{server.socket}, and the second one cannot use it",
                "keep only one _start_cmd",
            )
        if not server.start_cmd:
            if not starting and same[0] is server and not _listens(server.socket):
                self.warning(
                    about,
                    f"there is no such setting, and nothing listens on {server.socket}: Kong does "
                    "not start the server itself",
                    "start the server before Kong, or set it",
                )
            return
        words = self.words(about, server.start_cmd)
        given = _option(words, "--socket") if words is not None else None
        if given is not None and os.path.abspath(given) != os.path.abspath(server.socket):
            self.error(
                about,
                f"it serves {given}, but Kong connects to {server.socket}",
                f"write --socket {shlex.quote(server.socket)}",
            )

    def words(self, about: str, command: str) -> Optional[list[str]]:
        """The words of a command, if its program exists."""
        try:
            words = shlex.split(command)
        except ValueError as error:
            self.error(about, f"it is not a command: {error}", "close the quotes")
            return None
        program = next((word for word in words if "=" not in word), "")
        if not shutil.which(program):
            self.error(
                about,
                f"there is no command {program!r}",
                "give the full path of the kongps command, which Kong's user may run",
            )
            return None
        return words

    def check_query(self, server: Served) -> None:
        about = server.setting("query_cmd")
        if not server.query_cmd:
            self.error(
                about,
                "there is no such setting, so Kong does not know the plugins",
                self.conf_prints_it,
            )
            return
        if self.words(about, server.query_cmd) is None:
            return
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", server.query_cmd],
                capture_output=True,
                timeout=QUERY_TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            self.error(
                about, f"it has not ended after {QUERY_TIMEOUT} s", "run it in a shell to see why"
            )
            return
        printed = done.stderr.decode("utf-8", "replace").strip().splitlines()
        hint = f"; its last message is: {printed[-1]}" if printed else ""
        answer = _answer(done.stdout)
        if answer is None:
            shown = done.stdout[:60].decode("utf-8", "replace")
            self.error(
                about,
                f"its output is not what Kong expects: {shown!r}{hint}",
                "it must print the JSON of `kongps dump` and nothing else; run it in a shell to "
                "see what it prints",
            )
            return
        server.plugins = answer
        if done.returncode:
            self.error(
                about, f"its exit code is {done.returncode}{hint}", "fix the plugin that it names"
            )
        elif not answer:
            self.error(
                about,
                f"its output lists no plugin{hint}",
                "put a plugin into the plugins directory",
            )

    def check_plugins(self, servers: list[Served]) -> None:
        enabled = _listed(self.settings.get("plugins", "bundled"))
        served: list[str] = []
        for server in servers:
            served += server.plugins[:1] if self.version >= (3, 9) else server.plugins
        if self.version >= (3, 9):
            self.check_one_name_each(servers, served)
        if self.go_directory != "off" and self.version < (3, 0):
            served += self.there
        for name in served:
            if name not in enabled:
                self.warning(
                    "plugins",
                    f"{name} is served but not enabled",
                    f"plugins = {','.join([*enabled, name])}",
                )
        for name in enabled:
            if name not in served and name not in ("bundled", "off"):
                self.check_not_served(name, served, servers)

    def check_not_served(self, name: str, served: list[str], servers: list[Served]) -> None:
        """Finds out why a plugin that is enabled is not served."""
        twin = next((each for each in served if _alike(each, name)), None)
        if name in self.there:
            self.error(
                "plugins",
                f"{name} is enabled and in the plugins directory, but no plugin server of "
                "pluginserver_names has it: Kong does not start",
                self.conf_prints_it,
            )
        elif twin is not None:
            self.error(
                "plugins",
                f"there is no plugin {name}; a plugin server has {twin}",
                f"write {twin}",
            )
        elif servers:
            self.warning(
                "plugins",
                f"no plugin server has {name}: it has to be a Lua plugin, or Kong does not start",
                "check the name",
            )

    def check_one_name_each(self, servers: list[Served], served: list[str]) -> None:
        for server in servers:
            for name in server.plugins[1:]:
                if name not in served:
                    self.error(
                        "pluginserver_names",
                        f"Kong {self.kong} uses only the first plugin of a query's output, "
                        f"{server.plugins[0]} of {server.name}'s; {name} needs a name of its own",
                        self.conf_prints_it,
                    )


def _alike(one: str, other: str) -> bool:
    return re.sub("[-_]", "", one).lower() == re.sub("[-_]", "", other).lower()


def _option(words: list[str], flag: str) -> Optional[str]:
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def plugins_directory(settings: dict[str, str]) -> Optional[str]:
    """The plugins directory that a start command or ``go_plugins_dir`` names, if it exists."""
    for key, command in settings.items():
        if key.endswith("_start_cmd"):
            with contextlib.suppress(ValueError):  # of what is no command
                directory = _option(shlex.split(command), "--plugins-directory")
                if directory is not None and os.path.isdir(directory):
                    return directory
    directory = settings.get("go_plugins_dir", "off")
    return directory if os.path.isdir(directory) else None


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
