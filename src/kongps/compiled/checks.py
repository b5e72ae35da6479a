"""Checks that a compiled file of a plugin fits what is running, before anything is loaded.

Everything is read from the file: its name, its ELF headers, and the record that ``kongps build``
puts into it. A file that does not fit raises a :class:`CompatError`, with a class for each kind of
mismatch; the message says what the file is, what it was built for, what is running, and how to fix
it. The classes are in ``kongps.errors``; ``docs/versions.md`` is made from them.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import struct
import sys
from typing import Any, Optional

from kongps import errors
from kongps._version import PLUGIN_API, __version__
from kongps.compiled.elf import ELF
from kongps.compiled.interpreter import facts, readable
from kongps.compiled.libraries import is_there, library_directories
from kongps.compiled.record import SECTION, parse
from kongps.compiled.sources import remedy_for

__all__ = ["NATIVE_SYMBOL", "OLDEST_PLUGIN_API", "check_object", "core_mismatch", "running"]

# The oldest plugin API whose plugins still run.
OLDEST_PLUGIN_API = 1

# The one symbol of a native plugin: its table, which begins with the plugin API's number.
NATIVE_SYMBOL = "kongps_plugin"

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


# The checks


def check_object(plugin: str, path: str) -> str:
    """Checks a compiled file of a plugin; nothing of it is loaded.

    :param plugin: the plugin's name.
    :param path: the file.
    :returns: ``python`` for an extension module, ``native`` for a library with a plugin's table.
    :raises errors.CompatError: of the class that says what does not match.
    """
    return _Check(plugin, path).run()


class _Check:
    def __init__(self, plugin: str, path: str) -> None:
        self.plugin = plugin
        self.path = path
        self.record: Optional[dict[str, Any]] = None

    def error(
        self, kind: type[errors.CompatError], what: str, built_for: str, running: str
    ) -> errors.CompatError:
        remedy = remedy_for(self.plugin, self.path, self.record)
        return kind(self.plugin, f"{self.path} {what}", built_for, running, remedy)

    def run(self) -> str:
        whole = "a plugin must be whole"
        try:
            elf = ELF(self.path)
            self.record = parse(elf.section(SECTION))
            self.check_machine(elf)
            self.check_python(elf)
            kind = self.kind(elf)
            self.check_api(elf, kind)
            self.check_libc(elf)
            self.check_libraries(elf)
        except errors.NotELF as error:
            self.check_tag()
            what = "is no shared library"
            raise self.error(errors.NotALibrary, what, str(error), "a plugin must be one") from None
        except errors.Truncated as error:
            raise self.error(errors.TruncatedFile, "is cut off", str(error), whole) from None
        except (struct.error, IndexError, UnicodeError, RecursionError):
            damage = "its headers point outside of it"
            raise self.error(errors.TruncatedFile, "is damaged", damage, whole) from None
        except OSError as error:
            raise errors.PluginError(self.plugin, f"{self.path}: {error.strerror}") from error
        return kind

    def check_machine(self, elf: ELF) -> None:
        here = running()["machine"]
        if elf.machine != here:
            raise self.error(
                errors.OtherArchitecture, "is compiled for another processor", elf.machine, here
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
            raise self.error(errors.OtherPython, "was compiled for another Python", described, now)
        if bool(built.get("free_threaded")) != here["free_threaded"]:
            raise self.error(
                errors.FreeThreadedBuild,
                f"was compiled for a {'not ' if here['free_threaded'] else ''}free-threaded Python",
                described,
                now,
            )
        if bool(built.get("debug")) != here["debug"]:
            raise self.error(
                errors.DebugBuild,
                f"was compiled for a {'release' if here['debug'] else 'debug'} build of Python",
                described,
                now,
            )
        if tag == here["abi_tag"]:
            return
        platforms = [each.partition("-")[2].partition("-")[2] for each in (tag, here["abi_tag"])]
        if not all(platforms):
            return  # such as cp311: it says no more
        if platforms[0].partition("-")[0] != platforms[1].partition("-")[0]:
            raise self.error(
                errors.OtherArchitecture, "is compiled for another processor", described, now
            )
        raise self.error(errors.OtherLibc, "is linked with another C library", described, now)

    def check_api(self, elf: ELF, kind: str) -> None:
        api = (self.record or {}).get("plugin_api")
        if kind == "native":
            api = elf.unsigned(elf.symbols[NATIVE_SYMBOL])
        if not isinstance(api, int):
            return
        here = f"kongps {__version__} with plugin API {PLUGIN_API}"
        built_with = (self.record or {}).get("kongps")
        built = f"plugin API {api}" + (f" of kongps {built_with}" if built_with else "")
        if api > PLUGIN_API:
            raise self.error(errors.PluginAPITooNew, "uses a newer plugin API", built, here)
        if api < OLDEST_PLUGIN_API:
            raise self.error(errors.PluginAPITooOld, "uses a plugin API that is gone", built, here)

    def check_libc(self, elf: ELF) -> None:
        here = running()["libc"]
        named = [each for each in elf.needed if each == "libc.so.6" or "musl" in each]
        if named:
            built = "musl" if "musl" in named[0] else "glibc"
            if not here.startswith((built, "unknown")):
                raise self.error(
                    errors.OtherLibc,
                    "is linked with another C library",
                    f"{built} ({named[0]})",
                    here,
                )
        needed = [
            _numbers(version)
            for versions in elf.versions.values()
            for version in versions
            if re.fullmatch(r"GLIBC_[\d.]+", version)
        ]
        if needed and here.startswith("glibc ") and max(needed) > _numbers(here):
            least = ".".join(map(str, max(needed)))
            raise self.error(
                errors.LibcTooOld, "needs a newer glibc", f"glibc {least} or newer", here
            )

    def check_libraries(self, elf: ELF) -> None:
        missing = [each for each in elf.needed if not is_there(each, elf)]
        if missing:
            names = " and ".join(missing)
            raise errors.LibraryMissing(
                self.plugin,
                f"{self.path} needs shared libraries that are not there",
                f"it is linked with {names}",
                f"not found in {', '.join(library_directories(elf))} or ld.so.cache",
                f"installing the package with {names}, or LD_LIBRARY_PATH=DIR",
            )

    def kind(self, elf: ELF) -> str:
        stem = os.path.basename(self.path).partition(".")[0]
        if stem == "__init__":
            stem = os.path.basename(os.path.dirname(os.path.abspath(self.path)))
        init = f"PyInit_{stem.replace('-', '_')}"
        if init in elf.symbols:
            return "python"
        if NATIVE_SYMBOL in elf.symbols:
            return "native"
        others = sorted(
            name[len("PyInit_") :] for name in elf.symbols if name.startswith("PyInit_")
        )
        held = f"it is the module {', '.join(others)}" if others else "it is some other library"
        raise self.error(
            errors.NotAPlugin,
            "is no plugin of this name",
            held,
            f"a plugin exports {init} or {NATIVE_SYMBOL}",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


# The core


def core_mismatch(directory: str) -> errors.CoreMismatch:
    """What to raise when the core is not there for this interpreter.

    :param directory: where its modules should be.
    """
    here = facts()
    paths = glob.glob(os.path.join(glob.escape(directory), "*.so"))
    tags = sorted({match["tag"] for path in paths if (match := _TAG.search(path))})
    python = shlex.quote(sys.executable)
    return errors.CoreMismatch(
        "kongps",
        f"kongps {__version__}",
        ", ".join(tags) or "none: it is not built",
        readable(here),
        f"{python} -m pip install --force-reinstall . (in a checkout of kongps)",
    )
