"""Reads a command line that is as it should be, without argparse.

Flags are declared once, by functions that call ``add_argument`` of what they are given. That is an
``argparse.ArgumentParser``, or the :class:`PlainReader` of this module, which takes the same
declarations and knows the plain cases alone. For everything else - a flag that it does not know, a
value that is missing or wrong, ``--help`` - it gives up, and argparse has the last word and all
messages. Importing argparse and declaring each flag takes as long as starting Python.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, Optional

from kongps.data import Data

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from typing import Protocol

    class TakesFlags(Protocol):
        """What flags are declared to."""

        def add_argument(self, *names: str, **details: Any) -> Any:
            """Declares a flag, as ``ArgumentParser.add_argument`` does."""

        def add_mutually_exclusive_group(self) -> Any:
            """Makes a group of flags of which one alone can be given."""


__all__ = ["PlainReader", "read"]


def read(declare: Callable[[Any], None], words: Sequence[str]) -> Optional[SimpleNamespace]:
    """The values of flags, as argparse would give them; None when it is to be asked.

    :param declare: declares the flags.
    :param words: the command line.
    """
    reader = PlainReader()
    declare(reader)
    return reader.read(words)


class _NotPlain(Exception):
    """A command line is argparse's to read."""


class _Flag(Data):
    dest: str
    action: str
    const: Any
    type: Optional[Callable[[str], Any]]
    choices: Optional[Container[Any]]

    def value(self, before: Any, left: list[str]) -> Any:
        """What it stands for; a value of its own is taken from the words that are left.

        :param before: what it stood for without.
        """
        if self.action == "store_const":
            return self.const
        if self.action == "count":
            return (before or 0) + 1
        if not left or left[0].startswith("-"):
            raise _NotPlain
        text = left.pop(0)
        try:
            value = self.type(text) if self.type is not None else text
        except Exception:
            raise _NotPlain from None
        if self.choices is not None and value not in self.choices:
            raise _NotPlain
        return value


class PlainReader:
    """Takes flags as ``argparse.ArgumentParser`` does, and reads plain command lines."""

    def __init__(self) -> None:
        self._flags: dict[str, _Flag] = {}
        self._defaults: dict[str, Any] = {}
        self._names: Optional[str] = None

    def add_argument(
        self,
        *names: str,
        action: str = "store",
        dest: Optional[str] = None,
        default: Any = None,
        const: Any = None,
        type: Optional[Callable[[str], Any]] = None,
        choices: Optional[Container[Any]] = None,
        nargs: Optional[str] = None,
        **told: Any,
    ) -> None:
        """Declares a flag, or with ``nargs="*"`` the words that are no flags.

        Flags with actions beside store, store_const, store_true and count are argparse's to read.

        :param told: what argparse tells in its messages.
        """
        if nargs == "*":
            (self._names,) = names
            self._defaults[self._names] = []
            return
        if dest is None:
            long = [name for name in names if name.startswith("--")]
            dest = (long or list(names))[0].lstrip("-").replace("-", "_")
        if action == "store_true":
            action, const, default = "store_const", True, False
        if action != "version":  # which leaves no value
            self._defaults[dest] = default
        if action in ("store", "store_const", "count"):
            self._flags.update(dict.fromkeys(names, _Flag(dest, action, const, type, choices)))

    def add_mutually_exclusive_group(self) -> PlainReader:
        """A group of flags, which are argparse's; their defaults count here too."""
        group = PlainReader()
        group._defaults = self._defaults
        return group

    def read(self, words: Sequence[str]) -> Optional[SimpleNamespace]:
        """The values of all flags; None when `words` are not a plain case."""
        try:
            return SimpleNamespace(**self._values(list(words)))
        except _NotPlain:
            return None

    def _values(self, left: list[str]) -> dict[str, Any]:
        values = dict(self._defaults)
        while left:
            word = left.pop(0)
            flag = self._flags.get(word)
            if flag is not None:
                values[flag.dest] = flag.value(values[flag.dest], left)
            elif word.startswith("-") or self._names is None or values[self._names]:
                raise _NotPlain
            else:
                values[self._names] = names = [word]
                while left and not left[0].startswith("-"):
                    names.append(left.pop(0))
        return values
