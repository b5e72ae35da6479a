"""The event loop, and what plugin code may do to its file descriptors."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from core_defaults import MAX_MESSAGE, new_dispatcher

from kongps.core.connection import Unfinished, serve
from kongps.core.io.loop import Loop
from kongps.errors import DescriptorLost


def open_fds() -> set[int]:
    with os.scandir("/proc/self/fd") as found:
        numbers = {int(entry.name) for entry in found}
    return {fd for fd in numbers if os.path.islink(f"/proc/self/fd/{fd}")}


class Served:
    """A loop with a listening socket, run by the test itself."""

    def __init__(self, path: Path) -> None:
        before = open_fds()
        self.loop = Loop(16)
        self.loop_fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds() - before}
        self.path = str(path)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen()
        dispatcher = new_dispatcher()
        serve(self.loop, self.listening, dispatcher, Unfinished(1 << 20), MAX_MESSAGE)

    def fd(self, kind: str) -> int:
        return next(fd for fd, link in self.loop_fds.items() if link.startswith(kind))

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(5)
        peer.connect(self.path)
        return peer

    def run(self, seconds: float = 0.05) -> None:
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()


@pytest.fixture
def served(short_path: Path) -> Served:
    made = Served(short_path / "l.sock")
    made.run()
    assert made.loop.failed is None
    return made


def test_an_epoll_that_plugin_code_closes_ends_the_loop(served: Served) -> None:
    os.close(served.fd("anon_inode:[eventpoll]"))
    served.loop.call_later(60, lambda: None)
    served.loop.run()
    assert served.loop.failed is not None
    assert "plugin code has closed file descriptors of the server, an epoll" in served.loop.failed


def test_an_epoll_whose_number_is_another_files_by_now_ends_the_loop(served: Served) -> None:
    number = served.fd("anon_inode:[eventpoll]")
    os.close(number)
    other = os.open("/dev/null", os.O_RDONLY)
    if other != number:
        os.dup2(other, number)
    served.loop.run()
    assert served.loop.failed is not None
    loop, served.loop = served.loop, None  # type: ignore[assignment]
    del loop
    assert os.fstat(number)  # which is not the loop's to close
    for fd in {number, other}:
        os.close(fd)


def test_a_pipe_that_plugin_code_closes_is_found_by_the_next_check(served: Served) -> None:
    os.close(served.fd("pipe:"))
    served.loop.call_later(0.01, served.loop.check)
    served.loop.run()
    assert served.loop.failed is not None
    assert "a pipe among them" in served.loop.failed


def test_a_listening_socket_that_plugin_code_closes_is_found_by_the_next_check(
    served: Served,
) -> None:
    served.loop.check()
    assert served.loop.failed is None
    os.close(served.listening.fileno())
    other = os.open("/dev/null", os.O_RDONLY)  # gets its number
    served.loop.call_later(0.01, served.loop.check)
    served.loop.run()
    assert served.loop.failed is not None
    assert "a socket that it listens on" in served.loop.failed
    assert os.fstat(other)
    os.close(other)


def test_a_connection_that_plugin_code_closes_is_dropped_and_others_go_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    kept = served.connect()
    served.run()
    before = open_fds()
    lost = served.connect()
    served.run()
    assert served.loop.streams == 2
    number = max(open_fds() - before - {lost.fileno()})
    another = socket.socket(socket.AF_UNIX)
    another.settimeout(5)
    os.close(number)
    assert lost.recv(1) == b""
    another.connect(served.path)  # whose other end gets the number
    served.run()
    assert served.loop.failed is None
    assert "a connection is lost" in caplog.text
    assert served.loop.streams == 2
    for peer in (kept, another):
        peer.sendall(b"\x94\x00\x01\xb0plugin.GetStatus\x90")
        served.run()
        assert peer.recv(100)
        peer.close()
    lost.close()


def test_a_connection_whose_file_another_process_has_open_ends_the_loop(served: Served) -> None:
    """The epoll goes on reporting it, and nothing makes it stop."""
    before = open_fds()
    peer = served.connect()
    served.run()
    number = max(open_fds() - before - {peer.fileno()})
    kept = os.dup(number)
    os.close(number)
    peer.sendall(b"\x94\x00\x01\xb0plugin.GetStatus\x90")
    served.loop.call_later(5, served.loop.stop)
    served.loop.run()
    assert served.loop.failed is not None
    os.close(kept)
    peer.close()


def test_a_call_may_say_that_a_descriptor_is_lost(served: Served) -> None:
    def lost() -> None:
        raise DescriptorLost("those of something else")

    thread = threading.Thread(target=served.loop.call_soon_threadsafe, args=(lost,))
    thread.start()
    served.loop.run()
    thread.join()
    assert served.loop.failed is not None
    assert "those of something else among them" in served.loop.failed


def test_calls_and_timers_that_fail_are_logged_and_others_are_made(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []

    def fail() -> None:
        raise ValueError("no")

    served.loop.call_later(0, fail)
    served.loop.call_soon_threadsafe(fail)
    served.loop.call_soon_threadsafe(lambda: made.append(1))
    cancelled = served.loop.call_later(0, lambda: made.append(2))
    cancelled.cancel()
    served.run()
    assert made == [1]
    assert caplog.text.count("a call on the event loop failed") == 2
