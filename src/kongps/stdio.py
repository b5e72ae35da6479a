"""What a process prints: stdout kept for the answer alone, and lines shown as they are printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

__all__ = ["print_at_once", "redirect_stdout", "stdout_kept_clean", "write_all"]


def print_at_once() -> None:
    """Makes what handlers print appear at once, in a pipe too."""
    with contextlib.suppress(Exception):  # a plugin may have put anything in its place
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Sends to stderr what is printed inside the `with` block."""
    kept = redirect_stdout()
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # a plugin may have put anything in its place
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def redirect_stdout() -> int:
    """Sends to stderr what is printed from now on, by C code too.

    :returns: a file descriptor of what stdout was.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` to a file descriptor."""
    while data:
        data = data[os.write(descriptor, data) :]
