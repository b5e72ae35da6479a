"""Who was built for what: checks of compiled and native plugins before anything is loaded.

Everything is read from the file itself: its name, its ELF headers, and the record that ``kongps
build`` puts into it. What does not fit raises a :class:`CompatError`, of a class of its own for
each kind of mismatch; its text says what the file is, what it was built for, what is running, and
how to fix it. ``docs/versions.md`` is made from these classes, which are in ``kongps.errors``.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import struct
import sys
import sysconfig
from collections.abc import Iterable
from typing import Any, Optional

from kongps._version import PLUGIN_API, __version__
from kongps.compiled.elf import ELF
from kongps.compiled.interpreter import facts, readable
from kongps.compiled.record import SECTION, parse, source_hash
from kongps.errors import (
    CompatError,
    CoreMismatch,
    DebugBuild,
    FreeThreadedBuild,
    LibcTooOld,
    LibraryMissing,
    NotALibrary,
    NotAPlugin,
    NotELF,
    OtherArchitecture,
    OtherLibc,
    OtherPython,
    PluginAPITooNew,
    PluginAPITooOld,
    PluginError,
    SeveralFiles,
    SourceChanged,
    Truncated,
    TruncatedFile,
)

__all__ = [
    "check_object",
    "check_source",
    "choose",
    "core_mismatch",
    "read_record",
    "source_of",
]

# The oldest plugin API whose plugins still run.
OLDEST_PLUGIN_API = 1

# The one symbol of a native plugin: its table, which begins with the plugin API's number.
NATIVE_SYMBOL = "kongps_plugin"

# Where `kongps build` keeps a source that it did not find in the plugins directory.
SOURCES = ".sources"

# ``.cpython-313td-x86_64-linux-gnu.so``: the version, how it was built, and the platform.
_TAG = re.compile(
    r"\.(?P<tag>(?:cpython-|cp|pypy|graalpy)(?P<version>\d+)(?P<flags>[a-z]*)"
    r"[A-Za-z0-9_]*(?:-(?P<platform>[A-Za-z0-9_-]+))?)\.so$"
)


# What runs


@functools.lru_cache(maxsize=1)
def running() -> dict[str, Any]:
    """The facts of this interpreter, with the machine it was compiled for.

    That may be another one than the kernel's, as for a 32-bit Python on a 64-bit kernel.
    """
    found = facts()
    try:
        program = ELF("/proc/self/exe")
    except (OSError, ValueError):
        return found
    musl = "musl" in program.interpreter or any("musl" in each for each in program.needed)
    return {**found, "machine": program.machine, "libc": "musl" if musl else found["libc"]}


def python_command(*words: str) -> str:
    """A kongps command line with the interpreter that runs this."""
    return " ".join(map(shlex.quote, [sys.executable, "-m", "kongps", *words]))


# What a file says


def read_record(path: str) -> Optional[dict[str, Any]]:
    """What `kongps build` recorded in a file; None for a file without a record."""
    try:
        return parse(ELF(path).section(SECTION))
    except (OSError, ValueError, struct.error):
        return None


def source_of(path: str, record: Optional[dict[str, Any]]) -> Optional[str]:
    """The source that a compiled file of a plugins directory was made from, if it is there.

    :param path: the compiled file, or one of the package that the plugin is.
    :param record: what is recorded in it; without, the source is looked for by its name.
    """
    directory, entry = os.path.split(os.path.abspath(path))
    name = entry.partition(".")[0]
    if name == "__init__":
        directory, name = os.path.split(directory)
    if record is not None:
        place = os.path.join(directory, str(record.get("source", "")))
        if record.get("package"):  # a module of it may lie deeper
            while not os.path.exists(place) and len(directory) > 1:
                directory = os.path.dirname(directory)
                place = os.path.join(directory, str(record.get("source", "")))
        return place if record.get("source") and os.path.exists(place) else None
    for place in (directory, os.path.join(directory, SOURCES)):
        for suffix in (".pyx", ".py", ".c", ".cpp", ".cc", ".cxx"):
            if os.path.isfile(os.path.join(place, name + suffix)):
                return os.path.join(place, name + suffix)
    kept = os.path.join(directory, SOURCES, name)
    return kept if os.path.isdir(kept) else None


def remedy_for(plugin: str, path: str, record: Optional[dict[str, Any]]) -> str:
    """The command that builds a plugin again, for the interpreter that runs this."""
    directory = os.path.dirname(_whole(os.path.abspath(path)))
    if source_of(path, record) is not None:
        return python_command("rebuild", directory)
    source = os.path.basename(str((record or {}).get("source") or f"{plugin}.py"))
    return f"{python_command('build', source, '-o', directory)} (its source is not beside it)"


# The checks


def check_object(plugin: str, path: str) -> str:
    """Checks a compiled file of a plugin; nothing of it is loaded.

    :param plugin: the plugin's name.
    :param path: the file.
    :returns: ``python`` for an extension module, ``native`` for a library with a plugin's table.
    :raises CompatError: of the class that says what does not match.
    """
    return _Check(plugin, path).run()


class _Check:
    def __init__(self, plugin: str, path: str) -> None:
        self.plugin = plugin
        self.path = path
        self.record: Optional[dict[str, Any]] = None

    def error(
        self, kind: type[CompatError], what: str, built_for: str, running: str
    ) -> CompatError:
        remedy = remedy_for(self.plugin, self.path, self.record)
        return kind(self.plugin, f"{self.path} {what}", built_for, running, remedy)

    def run(self) -> str:
        try:
            elf = ELF(self.path)
            self.record = parse(elf.section(SECTION))
            self.check_machine(elf)
            self.check_python(elf)
            kind = self.kind(elf)
            self.check_api(elf, kind)
            self.check_libc(elf)
            self.check_libraries(elf)
        except NotELF as error:
            self.check_tag()
            raise self.error(
                NotALibrary, "is no shared library", str(error), "a plugin must be one"
            ) from None
        except Truncated as error:
            raise self.error(
                TruncatedFile, "is cut off", str(error), "a plugin must be whole"
            ) from None
        except (struct.error, IndexError, UnicodeError, RecursionError):
            raise self.error(
                TruncatedFile, "is damaged", "its headers point outside of it",
                "a plugin must be whole",
            ) from None  # fmt: skip
        except OSError as error:
            raise PluginError(self.plugin, f"{self.path}: {error.strerror}") from error
        return kind

    def check_machine(self, elf: ELF) -> None:
        here = running()["machine"]
        if elf.machine != here:
            raise self.error(
                OtherArchitecture, "is compiled for another processor", elf.machine, here
            )

    def check_python(self, elf: ELF) -> None:
        """What it was compiled for, by its record; without one, by its name."""
        self.check_tag()
        if self.record is not None and self.record.get("kind") == "python":
            self.compare(self.record, str(self.record.get("abi_tag", "")), readable(self.record))

    def check_tag(self) -> None:
        """What the file's name says that it was compiled for."""
        match = _TAG.search(os.path.basename(self.path))
        if match is None:
            return
        digits, flags = match["version"], match["flags"]
        tag = match["tag"]
        pypy = tag.startswith(("pypy", "graalpy"))
        built = {
            "implementation": tag[:4] if pypy else "cpython",
            "python": f"{digits[0]}.{digits[1:]}",
            "abi_tag": tag,
            "debug": "d" in flags,
            "free_threaded": "t" in flags,
        }
        if self.record is not None and self.record.get("abi_tag") == tag:
            built = self.record  # which knows the exact version
        self.compare(built, tag, readable(built))

    def compare(self, built: dict[str, Any], tag: str, described: str) -> None:
        here = running()
        now = readable(here)
        version = [str(each["python"]).split(".")[:2] for each in (built, here)]
        if version[0] != version[1] or built["implementation"] != here["implementation"]:
            raise self.error(OtherPython, "was compiled for another Python", described, now)
        if bool(built.get("free_threaded")) != here["free_threaded"]:
            raise self.error(
                FreeThreadedBuild,
                f"was compiled for a {_threads(bool(built.get('free_threaded')))} Python",
                described, now,
            )  # fmt: skip
        if bool(built.get("debug")) != here["debug"]:
            raise self.error(
                DebugBuild,
                f"was compiled for a {_build(bool(built.get('debug')))} build of Python",
                described, now,
            )  # fmt: skip
        if tag == here["abi_tag"]:
            return
        platforms = [each.partition("-")[2].partition("-")[2] for each in (tag, here["abi_tag"])]
        if not all(platforms):
            return  # such as cp311: it says no more
        if platforms[0].partition("-")[0] != platforms[1].partition("-")[0]:
            raise self.error(OtherArchitecture, "is compiled for another processor", described, now)
        raise self.error(OtherLibc, "is linked with another C library", described, now)

    def check_api(self, elf: ELF, kind: str) -> None:
        api = (self.record or {}).get("plugin_api")
        table = elf.symbol(NATIVE_SYMBOL) if kind == "native" else None
        if table is not None:
            api = elf.unsigned(table.address)
        if not isinstance(api, int):
            return
        here = f"kongps {__version__} with plugin API {PLUGIN_API}"
        built_with = (self.record or {}).get("kongps")
        built = f"plugin API {api}" + (f" of kongps {built_with}" if built_with else "")
        if api > PLUGIN_API:
            raise self.error(PluginAPITooNew, "uses a newer plugin API", built, here)
        if api < OLDEST_PLUGIN_API:
            raise self.error(PluginAPITooOld, "uses a plugin API that is gone", built, here)

    def check_libc(self, elf: ELF) -> None:
        here = running()["libc"]
        named = [each for each in elf.needed if each == "libc.so.6" or "musl" in each]
        if named:
            built = "musl" if "musl" in named[0] else "glibc"
            if not here.startswith((built, "unknown")):
                raise self.error(
                    OtherLibc, "is linked with another C library", f"{built} ({named[0]})", here
                )
        needed = [
            _numbers(version)
            for versions in elf.versions.values()
            for version in versions
            if re.fullmatch(r"GLIBC_[\d.]+", version)
        ]
        if needed and here.startswith("glibc ") and max(needed) > _numbers(here):
            least = ".".join(map(str, max(needed)))
            raise self.error(LibcTooOld, "needs a newer glibc", f"glibc {least} or newer", here)

    def check_libraries(self, elf: ELF) -> None:
        missing = [each for each in elf.needed if not _is_there(each, elf)]
        if missing:
            names = " and ".join(missing)
            raise LibraryMissing(
                self.plugin,
                f"{self.path} needs shared libraries that are not there",
                f"it is linked with {names}",
                f"not found in {', '.join(_library_directories(elf))} or ld.so.cache",
                f"installing the package with {names}, or LD_LIBRARY_PATH=DIR",
            )

    def kind(self, elf: ELF) -> str:
        stem = os.path.basename(self.path).partition(".")[0]
        if stem == "__init__":
            stem = os.path.basename(os.path.dirname(os.path.abspath(self.path)))
        init = f"PyInit_{stem.replace('-', '_')}"
        symbols = {name for name, _ in elf.symbols()}
        if init in symbols:
            return "python"
        if NATIVE_SYMBOL in symbols:
            return "native"
        others = sorted(name[len("PyInit_") :] for name in symbols if name.startswith("PyInit_"))
        held = f"it is the module {', '.join(others)}" if others else "it is some other library"
        raise self.error(
            NotAPlugin, "is no plugin of this name", held,
            f"a plugin exports {init} or {NATIVE_SYMBOL}",
        )  # fmt: skip


def _build(debug: bool) -> str:
    return "debug" if debug else "release"


def _threads(free: bool) -> str:
    return "free-threaded" if free else "not free-threaded"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


# Shared libraries


def _library_directories(elf: ELF) -> list[str]:
    directories = [*elf.search_path, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    for pattern in ("/lib/ld-musl-*.so.1", "/etc/ld-musl-*.path"):
        for path in glob.glob(pattern):
            if path.endswith(".path"):
                with open(path) as file:
                    directories += re.split(r"[:\n]", file.read())
    triplet = sysconfig.get_config_var("MULTIARCH")
    if triplet:
        directories += [f"/lib/{triplet}", f"/usr/lib/{triplet}"]
    directories += ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"]
    return list(dict.fromkeys(each for each in directories if each))


@functools.lru_cache(maxsize=1)
def _linker_cache() -> bytes:
    try:
        with open("/etc/ld.so.cache", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _is_there(library: str, elf: ELF) -> bool:
    """Whether the dynamic linker would find `library`, as ld.so(8) says that it looks."""
    if "/" in library:
        return os.path.exists(library)
    if any(os.path.exists(os.path.join(each, library)) for each in _library_directories(elf)):
        return True
    # The cache is a table of names and paths; a name may be the end of its path.
    if any(before + os.fsencode(library) + b"\0" in _linker_cache() for before in (b"\0", b"/")):
        return True
    try:
        with open("/proc/self/maps") as maps:  # loaded already: the linker takes that one
            return any(line.rstrip().endswith("/" + library) for line in maps)
    except OSError:
        return True


# A plugin's files


def choose(plugin: str, objects: Iterable[str], sources: Iterable[str]) -> str:
    """The file to load a plugin from, out of those that are it.

    A compiled plugin may lie beside the source that it was compiled from.

    :param objects: its compiled files that this interpreter could load.
    :param sources: its ``.py`` files and package directories.
    :raises SeveralFiles: when they are more than one plugin.
    """
    objects, sources = list(objects), list(sources)
    if len(objects) + len(sources) == 1:
        return (objects or sources)[0]
    if len(objects) == 1 and len(sources) == 1:
        record = read_record(objects[0])
        source = source_of(objects[0], record) if record is not None else None
        beside = _whole(sources[0])
        if source is not None and os.path.samefile(source, beside):
            return objects[0]
    entries = " and ".join(sorted(os.path.basename(_whole(each)) for each in [*objects, *sources]))
    raise SeveralFiles(
        plugin, f"{entries} are both this plugin", "one of them would hide the other",
        "a plugin has one file", "removing or renaming one",
    )  # fmt: skip


def _whole(path: str) -> str:
    """The file, or the package directory whose ``__init__`` it is."""
    entry = os.path.basename(path)
    return os.path.dirname(path) if entry.startswith("__init__.") else path


def check_source(plugin: str, path: str) -> None:
    """Compares a compiled file with its source, if that is in the plugins directory too.

    :raises SourceChanged: when it was compiled from another one.
    """
    record = read_record(path)
    source = source_of(path, record) if record is not None else None
    if record is None or source is None:
        return
    there = source_hash(source)
    if record.get("source_hash") != there:
        raise SourceChanged(
            plugin, f"{path} was compiled from another {os.path.basename(source)}",
            f"its source had the SHA-256 {str(record.get('source_hash'))[:12]}…",
            f"the one beside it has {there[:12]}…",
            remedy_for(plugin, path, record),
        )  # fmt: skip


# The core


def core_mismatch(directory: str) -> CoreMismatch:
    """What to raise when the core is not there for this interpreter.

    :param directory: where its modules should be.
    """
    here = facts()
    tags = sorted(
        {
            match["tag"]
            for path in glob.glob(os.path.join(glob.escape(directory), "*.so"))
            if (match := _TAG.search(path))
        }
    )
    python = shlex.quote(sys.executable)
    return CoreMismatch(
        "kongps", f"kongps {__version__}", ", ".join(tags) or "none: it is not built",
        readable(here),
        f"{python} -m pip install --force-reinstall . (in a checkout of kongps)",
    )  # fmt: skip
