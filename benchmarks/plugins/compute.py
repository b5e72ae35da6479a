"""A handler that computes: a checksum over numbers, as a plugin that hashes or scores would."""

from __future__ import annotations


class Plugin:
    rounds: int = 20000

    def access(self, kong) -> None:
        a, b = 1, 0
        for number in range(self.rounds):
            a = (a + number * 31) % 65521
            b = (b + a) % 65521
        kong.response.set_header("x-sum", str(b * 65536 + a))
