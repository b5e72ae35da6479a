"""Logs each request to a file, as one line of JSON.

An attribute with a leading underscore is not configuration. It belongs to the object, which handles
every request until the configuration changes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kongps import Field

if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"
priority = 9


@dataclass
class Plugin:
    # Required, because it has no default: Kong rejects a configuration without it. `match` is a Lua
    # pattern that Kong checks: an absolute path.
    path: Annotated[str, Field(match="^/")]
    reopen: bool = False  # open the file again for each request
    _file: int = -1

    def log(self, kong: Kong) -> None:
        line = json.dumps(kong.log.serialize(), separators=(",", ":")) + "\n"
        # O_APPEND and a single write: lines from several processes do not mix.
        os.write(self._opened(), line.encode())

    def _opened(self) -> int:
        if self._file >= 0 and (self.reopen or self._was_moved()):
            self.close()
        if self._file < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o644)
        return self._file

    def _was_moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Called when the instance ends."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
