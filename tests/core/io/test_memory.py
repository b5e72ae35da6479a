"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest
from client import Client, failed
from plugin_files import write
from server_process import serving, status

from kongps.server.core import MEMORY_INTERVAL

# Of 40 MB in pieces that the C library keeps in one heap, one in a hundred stays, also at its end.
HOLDS = """
kept = []

class Plugin:
    def access(self, kong):
        pieces = [bytes(2000) for _ in range(20_000)]
        kept.extend(pieces[::-100])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_what_a_burst_took_goes_back_to_the_system(plugins: Path, short_path: Path) -> None:
    write(plugins, "holds", HOLDS)
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        before = status(server)["Memory"]
        assert not failed(client.event(client.start("holds")))
        deadline = time.monotonic() + MEMORY_INTERVAL + 5
        while (grown := status(server)["Memory"] - before) > 5_000_000:
            assert time.monotonic() < deadline, f"{grown} bytes were not given back"
            time.sleep(0.2)
