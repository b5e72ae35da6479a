"""``kongps doctor``: one page on this installation, its plugins and a kong.conf.

No plugin is loaded into this process: ``kongps dump`` loads them in a process of its own, since a
broken native plugin can end the process that loads it.
"""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from kongps._version import PLUGIN_API, __version__
from kongps.cli import kong_conf_check
from kongps.cli.common import FAILED, OK, command_parser
from kongps.cli.kong_conf_check import Finding
from kongps.compiled.build import cython_version
from kongps.compiled.checks import running
from kongps.compiled.interpreter import readable
from kongps.compiled.sources import python_command, read_record
from kongps.errors import CompatError, PluginNameError
from kongps.plugins.files import Examined, examine
from kongps.plugins.rebuild import rebuild
from kongps.settings import SETTINGS

__all__ = ["Report", "examine_all", "main"]

# Seconds that plugins get to load.
LOAD_TIMEOUT = 60


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    variable = SETTINGS["plugins_directory"].variable
    parser = command_parser("doctor")
    parser.add_argument(
        "--plugins-directory",
        metavar="DIR",
        help=f"where the plugins are (default: the directory that {variable} or the kong.conf "
        "names)",
    )
    parser.add_argument("--kong-conf", metavar="FILE", help="the kong.conf to check")
    parser.add_argument(
        "--kong",
        metavar="VERSION",
        default="3.9",
        help="the version of Kong that reads it (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(words)
    report = examine_all(
        directory=options.plugins_directory or os.environ.get(variable),
        kong_conf=options.kong_conf,
        kong=options.kong,
    )
    print(report.json() if options.json else report.text(), end="")
    return OK if report.fine else FAILED


@dataclass
class Report:
    """What was found; each part can be written as JSON.

    :ivar findings: what is wrong.
    """

    interpreter: dict[str, Any] = field(default_factory=dict)
    core: dict[str, Any] = field(default_factory=dict)
    dependencies: list[dict[str, Any]] = field(default_factory=list)
    plugins_directory: Optional[str] = None
    plugins: list[dict[str, Any]] = field(default_factory=list)
    kong_conf: Optional[str] = None
    plugin_servers: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether nothing keeps Kong from running."""
        return all(each.level != "error" for each in self.findings)

    def add(self, level: str, about: str, text: str, remedy: str) -> None:
        self.findings.append(Finding(level, about, text, remedy))

    def json(self) -> str:
        """All of it as JSON."""
        return json.dumps({**asdict(self), "fine": self.fine}, indent=2)

    def text(self) -> str:
        """All of it as a page to read."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"kongps {__version__}, plugin API {PLUGIN_API}"
        yield f"  interpreter   {self.interpreter['name']}"
        yield f"                {self.interpreter['executable']}"
        yield f"  machine       {self.interpreter['machine']}, {self.interpreter['libc']}"
        core = self.core
        yield f"  core          {core['modules']} modules, built for {core['built_for']}"
        if core.get("cython"):
            yield f"                Cython {core['cython']}, {core['compiler']}"
            yield f"                {core['flags']}"
        for each in self.dependencies:
            yield f"  {each['name']:<13} {each['version'] or 'missing'} ({each['wanted']})"
        if self.plugins_directory is not None:
            yield ""
            yield f"plugins in {self.plugins_directory}"
            for each in self.plugins:
                yield f"  {each['name']:<20} {each['state']:<7} {each['what']}"
                if "handlers" in each:
                    yield f"{'':<31}{each['handlers']}"
            if not self.plugins:
                yield "  none"
        if self.kong_conf is not None:
            yield ""
            yield f"plugin servers in {self.kong_conf}"
            for each in self.plugin_servers:
                plugins = ", ".join(each["plugins"]) or "no plugin"
                yield f"  {each['name']:<20} {each['socket']}: {plugins}"
            if not self.plugin_servers:
                yield "  none"
        yield ""
        if not self.findings:
            yield "no problems found"
        for finding in self.findings:
            yield f"{finding.level}: {finding.about}: {finding.text}"
            yield f"  fix it: {finding.remedy}"


def examine_all(
    *, directory: Optional[str] = None, kong_conf: Optional[str] = None, kong: str = "3.9"
) -> Report:
    """Looks at this installation, and at a plugins directory and a kong.conf if they are given.

    :param directory: the plugins directory; without, the one that the kong.conf names.
    :param kong_conf: the path of a kong.conf.
    :param kong: the version of Kong that reads it.
    :raises ServerError: when the directory or the file cannot be read.
    """
    report = Report()
    _interpreter(report)
    _core(report)
    _dependencies(report)
    settings = kong_conf_check.read(kong_conf) if kong_conf is not None else {}
    if directory is None:
        directory = kong_conf_check.plugins_directory(settings)
    if directory is not None:
        _plugins(report, os.path.abspath(directory))
    if kong_conf is not None:
        report.kong_conf = kong_conf
        there = [each["name"] for each in report.plugins]
        servers, findings = kong_conf_check.check(settings, kong=kong, there=there)
        report.plugin_servers = [asdict(each) for each in servers]
        report.findings += findings
        if not servers and settings.get("go_plugins_dir", "off") == "off" and there:
            report.add(
                "warning",
                "pluginserver_names",
                "it is not set: Kong knows of no plugin server",
                f"`kongps conf --kong {kong}` prints what to write",
            )
    return report


def _interpreter(report: Report) -> None:
    here = running()
    report.interpreter = {
        "name": readable(here),
        "executable": sys.executable,
        "machine": here["machine"],
        "libc": here["libc"],
        "kernel": platform.release(),
    }


def _core(report: Report) -> None:
    from kongps import core

    (directory,) = core.__path__
    suffix = running()["suffix"]
    modules = sorted(
        glob.glob(os.path.join(glob.escape(directory), "**", f"*{suffix}"), recursive=True)
    )
    record = read_record(modules[0]) if modules else None
    report.core = {
        "modules": len(modules),
        "built_for": readable(record) if record else "unknown: it has no record",
        **{key: (record or {}).get(key) for key in ("kongps", "cython", "compiler", "flags")},
    }
    remedy = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall . (in a checkout)"
    if record is None:
        report.add("warning", "core", "it has no record of what it was built with", remedy)
        return
    versions = {str((read_record(path) or {}).get("kongps")) for path in modules}
    if versions != {__version__}:
        found = " and ".join(sorted(versions))
        report.add("error", "core", f"it is of kongps {found}, not {__version__}", remedy)


def _dependencies(report: Report) -> None:
    try:
        wanted = importlib.metadata.requires("kongps") or []
    except importlib.metadata.PackageNotFoundError:
        report.add(
            "warning",
            "kongps",
            "it is on the path but not installed",
            f"{shlex.quote(sys.executable)} -m pip install . (in a checkout)",
        )
        wanted = []
    for line in wanted:
        requirement, _, marker = line.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*\(?([^)]*)\)?", requirement)
        if match is None or "extra" in marker:
            continue
        name, range_ = match[1], match[2].strip()
        try:
            version: Optional[str] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        report.dependencies.append({"name": name, "version": version, "wanted": range_})
        if version is None or not _within(version, range_):
            report.add(
                "error",
                name,
                f"kongps needs {range_}; there is {version or 'none'}",
                f"{shlex.quote(sys.executable)} -m pip install '{name}{range_}'",
            )
    report.dependencies.append(
        {"name": "cython", "version": cython_version(), "wanted": "for kongps build alone"}
    )


def _within(version: str, wanted: str) -> bool:
    """Whether a version is in a range of ``>=`` and ``<``, the only ones that kongps uses."""

    def numbers(text: str) -> list[int]:
        return [int(each) for each in re.findall(r"\d+", text)[:4]]

    for part in filter(None, (each.strip() for each in wanted.split(","))):
        sign = part.rstrip("0123456789.")
        least, have = numbers(part), numbers(version)
        if (sign == ">=" and have < least) or (sign == "<" and have[: len(least)] >= least):
            return False
    return True


def _plugins(report: Report, directory: str) -> None:
    report.plugins_directory = directory
    stale = {}
    examined = examine(directory)
    for each in rebuild(directory, check=True, progress=lambda _: None):
        stale[each.name] = each.problem
    loadable = [each.name for each in examined if each.error is None]
    loaded, _ = _dump(directory, loadable)
    for plugin in examined:
        _plugin(report, directory, plugin, loaded.get(plugin.name), stale.get(plugin.name))


def _plugin(
    report: Report,
    directory: str,
    plugin: Examined,
    info: Optional[dict[str, Any]],
    stale: Optional[str],
) -> None:
    what = os.path.relpath(plugin.path, directory)
    error, remedy = None, f"fix {plugin.path}"
    if plugin.error is not None:
        error = plugin.error.reason
        if isinstance(plugin.error, CompatError):
            error = plugin.error.problem
            remedy = plugin.error.remedy
        elif isinstance(plugin.error, PluginNameError):
            error, remedy = f"{plugin.path}: {error}", "give the file another name"
    elif info is None:
        # Again, alone: another plugin may have ended the process before this one was loaded.
        loaded, error = _dump(directory, [plugin.name])
        info = loaded.get(plugin.name)
    if info is None:
        report.plugins.append({"name": plugin.name, "state": "broken", "what": what})
        report.add("error", plugin.name, error or "it does not load", remedy)
        return
    phases = ", ".join(info["Phases"])
    report.plugins.append(
        {
            "name": plugin.name,
            "state": "loads",
            "what": f"{what}: version {info['Version']}, priority {info['Priority']}, {phases}",
            "handlers": info["Handlers"],
        }
    )
    if stale is not None:
        report.add("warning", plugin.name, stale, python_command("rebuild", directory))


def _dump(directory: str, names: list[str]) -> tuple[dict[str, dict[str, Any]], Optional[str]]:
    """What plugins report to Kong, and the last line on stderr if some did not load."""
    if not names:
        return {}, None
    command = [sys.executable, "-m", "kongps", "dump", "--handlers", *names]
    command += ["--plugins-directory", directory]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=LOAD_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return {}, f"loading it has not ended after {LOAD_TIMEOUT} s"
    printed = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode < 0:
        return {}, f"loading it ends the process with {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout)["Plugins"]
    except (ValueError, KeyError):
        return {}, printed[-1] if printed else "loading it ends the process"
    last = printed[-1].removeprefix("kongps: ") if printed and done.returncode else None
    return {each["Name"]: each for each in answer}, last
