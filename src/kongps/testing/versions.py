"""What differs between the Kongs that the stand-in can be."""

from __future__ import annotations

from dataclasses import dataclass

_RELEASES = {(2, 0): "2.0.5", (2, 8): "2.8.5", (3, 9): "3.9.1"}


@dataclass(frozen=True)
class Version:
    """A Kong version and the behaviours that depend on it.

    The differences were recorded on 2.0.5, 2.8.5 and 3.9.1; any other version behaves as the
    recorded one that its plugin server code is nearest to.
    """

    number: tuple[int, int]
    release: str

    def __str__(self) -> str:
        return f"{self.number[0]}.{self.number[1]}"

    @property
    def oldest(self) -> bool:
        """2.0 to 2.2: the Go plugin server code, before plugin servers had names."""
        return self.number < (2, 3)

    @property
    def step_error(self) -> bool:
        """A function that returned nil and an error text is answered with StepError."""
        return self.number < (3, 0)

    @property
    def binary_bodies(self) -> bool:
        """Raw bodies travel as ``bin``; before, as ``str``."""
        return self.number >= (3, 0)

    @property
    def protobuf(self) -> bool:
        """It speaks ProtoBuf:1 as well as MsgPack:1."""
        return self.number >= (2, 4)

    @property
    def protobuf_defaults(self) -> tuple[str, ...]:
        """Over ProtoBuf:1, the kinds of fields that are sent when they are false or empty; others
        look like nil."""
        return ("bool", "string", "bytes") if self.number >= (3, 0) else ()

    @property
    def lost_again(self) -> bool:
        """Over ProtoBuf:1, a connection that the plugin server closes makes it start the instance
        and the event again, and what fails otherwise is a 500; before, the request goes on."""
        return self.number >= (3, 0)

    @property
    def has_response_phase(self) -> bool:
        """Plugin servers get a response event."""
        return self.number >= (2, 4)

    @property
    def first_seq(self) -> int:
        """The ``__seq__`` of a config that has not been changed yet."""
        if self.oldest:
            return 0
        return 1 if self.number < (3, 0) else 2

    @property
    def via(self) -> str:
        """The value of the Via header that Kong puts on a proxied response."""
        prefix = "1.1 " if self.number >= (3, 0) else ""
        return f"{prefix}kong/{self.release}"

    @property
    def server(self) -> str:
        """The value of the Server header on responses that Kong makes itself."""
        return f"kong/{self.release}"

    def knows(self, since: str) -> bool:
        """Whether a function that first came in version ``since`` is there."""
        major, _, minor = since.partition(".")
        return (int(major), int(minor)) <= self.number


def parse_version(text: str) -> Version:
    """``"3.9"`` or ``"3.9.1"`` to a :class:`Version`; raises ValueError for anything else."""
    parts = text.split(".")
    if not 2 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"not a Kong version: {text!r} (such as '3.9', '2.8', '2.0')")
    number = (int(parts[0]), int(parts[1]))
    if not (2, 0) <= number < (4, 0):
        raise ValueError(f"Kong {text} is not one that plugin servers are known for (2.0 to 3.x)")
    release = text if len(parts) == 3 else _RELEASES.get(number, f"{text}.0")
    return Version(number, release)
