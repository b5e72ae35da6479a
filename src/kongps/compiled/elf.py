"""Reads what a shared library says about itself, from the file, without loading it.

Only what the checks in :mod:`kongps.compiled.checks` need: the machine, the libraries and symbol
versions it asks for, the symbols it defines, and the bytes of a section. See elf(5) for the format.
"""

from __future__ import annotations

import mmap
import os
import struct
from functools import cached_property
from typing import NamedTuple, Union

from kongps.errors import NotELF, Truncated

__all__ = ["ELF"]

# The machines that kongps is built for and those one is likely to meet, by e_machine.
MACHINES = {
    3: "i686",
    8: "mips",
    21: "ppc64le",
    22: "s390x",
    40: "armv7l",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}

_HEADER_SIZE = 64

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_SHT_DYNSYM = 11
_SHT_NOBITS = 8
_DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 14, 15, 29
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_ET_EXEC, _ET_DYN = 2, 3


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


class _Section(NamedTuple):
    name: int
    kind: int
    offset: int
    size: int
    link: int


class ELF:
    """An ELF file, as far as its headers reach.

    :param path: the file.
    :ivar machine: such as ``x86_64``; ``machine 99`` for one without a name here.
    :raises NotELF: when it is no shared library or program.
    :raises Truncated: when it is cut off.
    :raises OSError: when it cannot be read.
    """

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        self.path = os.fspath(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # The file may be replaced, but not cut, while it is read: builds rename.
            self._data: Union[bytes, mmap.mmap] = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            )
        try:
            self._read_header()
        except struct.error:
            raise Truncated("it ends within its headers") from None

    def _read_header(self) -> None:
        data = self._data
        if data[:4] != b"\x7fELF":
            raise NotELF("it is empty" if not len(data) else "it does not begin as one")
        if len(data) < _HEADER_SIZE:
            raise Truncated(f"it has {len(data)} bytes, less than its header")
        if data[4] not in (1, 2) or data[5] not in (1, 2):
            raise NotELF("its header is none")
        self._is_64 = data[4] == 2
        self._order = "<" if data[5] == 1 else ">"
        kind, machine = self._unpack("HH", 16)
        self.machine = MACHINES.get(machine, f"machine {machine}")
        if machine == 21 and self._order == ">":
            self.machine = "ppc64"
        if kind not in (_ET_EXEC, _ET_DYN):
            raise NotELF("it is an object file or a core dump, not a linked library")
        word = "Q" if self._is_64 else "I"
        phoff, shoff, _, _, phsize, phnum, shsize, shnum, self._names = self._unpack(
            f"{word}{word}IHHHHHH", 32 if self._is_64 else 28
        )
        end = max(phoff + phsize * phnum, shoff + shsize * shnum)
        self._segments = []
        for index in range(phnum):
            if self._is_64:
                kind, _, offset, address, _, size = self._unpack("IIQQQQ", phoff + index * phsize)
            else:
                kind, offset, address, _, size = self._unpack("IIIII", phoff + index * phsize)
            self._segments.append(_Segment(kind, offset, address, size))
            end = max(end, offset + size)
        self._sections = []
        if end > len(data):
            raise Truncated(f"it has {len(data)} bytes of the {end} that its headers promise")
        for index in range(shnum):
            name, kind, _, _, offset, size, link = self._unpack(
                f"II{word}{word}{word}{word}I", shoff + index * shsize
            )
            self._sections.append(_Section(name, kind, offset, size, link))
            if kind != _SHT_NOBITS and offset + size > len(data):
                raise Truncated(
                    f"it has {len(data)} bytes of the {offset + size} that its headers promise"
                )

    def _unpack(self, format: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + format, self._data, offset)

    def _string(self, offset: int) -> str:
        end = self._data.find(b"\0", offset)
        return os.fsdecode(bytes(self._data[offset:end]))

    def _offset(self, address: int) -> int:
        """Where in the file the bytes are that will stand at `address`."""
        for segment in self._segments:
            if segment.kind == _PT_LOAD and 0 <= address - segment.address < segment.size:
                return segment.offset + address - segment.address
        raise Truncated(f"nothing of it is loaded at {address:#x}")

    @cached_property
    def _dynamic(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        word = "qQ" if self._is_64 else "iI"
        step = struct.calcsize("=" + word)
        for segment in self._segments:
            if segment.kind != _PT_DYNAMIC:
                continue
            for offset in range(segment.offset, segment.offset + segment.size, step):
                tag, value = self._unpack(word, offset)
                if tag == 0:
                    break
                found.setdefault(tag, []).append(value)
        return found

    def _dynamic_strings(self, tag: int) -> list[str]:
        values = self._dynamic.get(tag, [])
        if not values:
            return []
        table = self._offset(self._dynamic[_DT_STRTAB][0])
        return [self._string(table + value) for value in values]

    @cached_property
    def needed(self) -> list[str]:
        """The libraries it needs, such as ``libc.so.6``."""
        return self._dynamic_strings(_DT_NEEDED)

    @cached_property
    def search_path(self) -> list[str]:
        """Where it has its libraries looked for first; ``$ORIGIN`` is its own directory."""
        paths = self._dynamic_strings(_DT_RUNPATH) or self._dynamic_strings(_DT_RPATH)
        origin = os.path.dirname(os.path.abspath(self.path))
        return [
            part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin)
            for path in paths
            for part in path.split(":")
            if part
        ]

    @cached_property
    def interpreter(self) -> str:
        """The dynamic linker that a program asks for; empty for a library."""
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return self._string(segment.offset)
        return ""

    @cached_property
    def versions(self) -> dict[str, list[str]]:
        """The symbol versions it needs, by library: ``{"libc.so.6": ["GLIBC_2.34", …]}``."""
        found: dict[str, list[str]] = {}
        if _DT_VERNEED not in self._dynamic:
            return found
        table = self._offset(self._dynamic[_DT_STRTAB][0])
        need = self._offset(self._dynamic[_DT_VERNEED][0])
        for _ in range(self._dynamic[_DT_VERNEEDNUM][0]):
            _, count, file, first, following = self._unpack("HHIII", need)
            entry = need + first
            names = found.setdefault(self._string(table + file), [])
            for _ in range(count):
                _, _, _, name, next_entry = self._unpack("IHHII", entry)
                names.append(self._string(table + name))
                entry += next_entry
            need += following
        return found

    def section(self, name: str) -> Union[bytes, None]:
        """The bytes of the section called `name`; None without such a section."""
        if self._names >= len(self._sections):
            return None
        names = self._sections[self._names]
        for each in self._sections:
            if each.kind != _SHT_NOBITS and self._string(names.offset + each.name) == name:
                return bytes(self._data[each.offset : each.offset + each.size])
        return None

    @cached_property
    def symbols(self) -> dict[str, int]:
        """The symbols that it defines for others, and their addresses."""
        found = {}
        entry = "IBBHQQ" if self._is_64 else "IIIBBH"
        step = struct.calcsize("=" + entry)
        for table in self._sections:
            if table.kind != _SHT_DYNSYM:
                continue
            strings = self._sections[table.link].offset
            for offset in range(table.offset, table.offset + table.size, step):
                if self._is_64:
                    name, _, _, section, address, _ = self._unpack(entry, offset)
                else:
                    name, address, _, _, _, section = self._unpack(entry, offset)
                if section and name:
                    found[self._string(strings + name)] = address
        return found

    def unsigned(self, address: int) -> int:
        """The 32-bit number that stands at `address` of the loaded library."""
        return self._unpack("I", self._offset(address))[0]
