"""Responds with an image: a binary body, and limits on a number in the configuration."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from kongps import Field

if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"

COLOURS = {"red": b"\xd0\x20\x20", "green": b"\x20\x90\x20", "blue": b"\x20\x20\xd0"}


class Plugin(msgspec.Struct):
    """A msgspec.Struct works as well as a dataclass. Kong rejects a size of 5000."""

    size: Annotated[int, Field(between=(1, 512))] = 32
    colour: Literal["red", "green", "blue"] = "blue"
    _png: bytes = b""

    def __post_init__(self) -> None:
        # Called once for each configuration, not for each request.
        self._png = png(self.size, COLOURS[self.colour])

    def access(self, kong: Kong) -> None:
        kong.response.exit(200, self._png, {"content-type": "image/png"})


def png(size: int, colour: bytes) -> bytes:
    """A PNG of a square in one colour, `size` pixels wide."""
    rows = (b"\x00" + colour * size) * size  # each row starts with its filter type
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
