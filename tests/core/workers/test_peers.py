"""A link between two workers, with both ends in one process."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from core_defaults import new_dispatcher

from kongps.core.io.loop import Loop
from kongps.core.workers.relay import Routes


def fails(_: Any) -> None:
    raise OSError("too many open files")


@pytest.mark.parametrize("failing", [fails, lambda _: object()])
def test_a_command_that_fails_costs_no_more_than_its_answer(
    failing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(100)
    one, other = Routes(1, loop, False), Routes(2, loop, False)
    calls, answers = socket.socketpair(), socket.socketpair()
    for end in (*calls, *answers):
        end.setblocking(False)
    commands = {"kongps.Fails": failing, "kongps.Works": lambda argument: argument}
    one.add(2, calls[0].detach(), answers[0].detach(), new_dispatcher(), {})
    other.add(1, answers[1].detach(), calls[1].detach(), new_dispatcher(), commands)
    results: list[Any] = []
    (relay,) = one.others()
    relay.ask("kongps.Fails", 0, results.append)
    relay.ask("kongps.Works", 7, lambda result: (results.append(result), loop.stop()))
    loop.call_later(10, loop.stop)
    loop.run()
    assert results == [None, 7]
    assert one.others() == [relay]
    assert "kongps.Fails" in caplog.text
    loop.close_streams()
