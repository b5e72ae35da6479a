"""Writes the lines of kong.conf that connect a Kong to this server, by Kong's version."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence

from kongps.errors import ServerError

__all__ = ["kong_conf_lines", "parse_version", "settings_of"]

# The name of this server among Kong's plugin servers, up to Kong 3.8.
SERVER_NAME = "kongps"


def kong_conf_lines(
    plugins: Sequence[str], *, kong: str, directory: str, socket: str, executable: str = ""
) -> list[str]:
    """The lines for kong.conf.

    :param plugins: the names of the plugins.
    :param kong: Kong's version, such as ``3.9`` or ``2.8.5``.
    :param directory: the plugins directory.
    :param socket: the path of the socket.
    :param executable: the ``kongps`` command; the one that runs by default.
    :raises ServerError: for a version that is none, or before 2.0, or without any plugin.
    """
    version = parse_version(kong)
    if not plugins:
        raise ServerError(f"there is no plugin in {directory} to write settings for")
    command = executable or _executable()
    directory = os.path.abspath(directory)
    lines = [f"# kongps on Kong {kong}", f"plugins = bundled,{','.join(plugins)}"]
    if version < (2, 3):
        return [
            *lines,
            f"go_pluginserver_exe = {command}",
            f"go_plugins_dir = {directory}",
            "# The socket is always go_pluginserver.sock in Kong's prefix.",
        ]
    socket = os.path.abspath(socket)
    where = f"--plugins-directory {shlex.quote(directory)} --socket {shlex.quote(socket)}"
    start = f"{shlex.quote(command)} serve {where}"
    # ProtoBuf:1 is far cheaper for Kong; 2.3 does not know it.
    protocol = "msgpack" if version < (2, 4) else "protobuf"
    query = f"{shlex.quote(command)} dump {where} --protocol {protocol}"
    if version < (3, 9):
        setting = f"pluginserver_{SERVER_NAME}"
        return [
            *lines,
            f"pluginserver_names = {SERVER_NAME}",
            f"{setting}_socket = {socket}",
            f"{setting}_start_cmd = {start}",
            f"{setting}_query_cmd = {query}",
        ]
    return [*lines, *_a_name_for_each(plugins, socket, start, query)]


def _a_name_for_each(plugins: Sequence[str], socket: str, start: str, query: str) -> Iterator[str]:
    """The settings for Kong from 3.9 on, where only the first plugin of a query's answer counts.

    Each plugin has a name of its own, all are on one socket, and one of them starts the server.
    """
    yield f"pluginserver_names = {','.join(plugins)}"
    written: dict[str, str] = {}
    for plugin in plugins:
        setting = settings_of(plugin)
        if setting in written:
            raise ServerError(
                f"{written[setting]} and {plugin} have the same settings in kong.conf, "
                f"{setting}_…, where - is written _; rename one"
            )
        yield f"{setting}_socket = {socket}"
        if not written:
            yield f"{setting}_start_cmd = {start}"
        yield f"{setting}_query_cmd = {query} {plugin}"
        written[setting] = plugin


def settings_of(name: str) -> str:
    """What the settings of a name in ``pluginserver_names`` begin with."""
    return f"pluginserver_{name.replace('-', '_').lower()}"


def parse_version(kong: str) -> tuple[int, int]:
    """The first two numbers of a version of Kong.

    :raises ServerError: when it is none, or before 2.0.
    """
    match = re.match(r"(\d+)\.(\d+)(\.|$)", kong)
    if not match:
        raise ServerError(f"{kong!r} is not a version of Kong; an example is 3.9")
    version = (int(match[1]), int(match[2]))
    if version < (2, 0):
        raise ServerError(f"Kong {kong} has no plugin servers; they came with 2.0")
    return version


def _executable() -> str:
    """The command that runs now, or the one beside the interpreter."""
    if os.path.basename(sys.argv[0]) == "kongps":
        return os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0])
    beside = os.path.join(os.path.dirname(sys.executable), "kongps")
    return beside if os.path.exists(beside) else shutil.which("kongps") or beside
