"""Plugins that tests write."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write(directory: Path, name: str, text: str) -> None:
    """Writes a plugin's file, whole from one moment to the next: a server may be reading it."""
    fresh = directory / f".{name}"
    fresh.write_text(textwrap.dedent(text))
    fresh.rename(directory / f"{name}.py")
