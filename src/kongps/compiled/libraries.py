"""Whether the shared libraries that a compiled plugin needs are on this machine."""

from __future__ import annotations

import functools
import glob
import os
import re
import sysconfig

from kongps.compiled.elf import ELF

__all__ = ["is_there", "library_directories"]


def library_directories(elf: ELF) -> list[str]:
    """The directories in which the dynamic linker looks for the libraries of `elf`."""
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


def is_there(library: str, elf: ELF) -> bool:
    """Whether the dynamic linker would find `library`, as ld.so(8) says that it looks."""
    if "/" in library:
        return os.path.exists(library)
    if any(os.path.exists(os.path.join(each, library)) for each in library_directories(elf)):
        return True
    # The cache is a table of names and paths; a name may be the end of its path.
    if any(before + os.fsencode(library) + b"\0" in _linker_cache() for before in (b"\0", b"/")):
        return True
    try:
        with open("/proc/self/maps") as maps:  # loaded already: the linker takes that one
            return any(line.rstrip().endswith("/" + library) for line in maps)
    except OSError:
        return True
