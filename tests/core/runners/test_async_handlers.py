"""Handlers that are ``async def``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from client import EXIT, PROTOCOLS, Client, at_once, failed, told
from paths import SRC
from plugin_files import write
from server_process import is_quiet, run, serving, status
from shared_libraries import needs_compiler


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pdk_calls_are_awaited_also_several_at_once(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(
        plugins,
        "gathers",
        """
        import asyncio, threading

        class Plugin:
            async def access(self, kong):
                method = await kong.request.get_method()
                await kong.response.set_header("x-thread", threading.current_thread().name)
                found = await asyncio.gather(
                    kong.request.get_path(), kong.request.get_header("host"),
                    kong.response.set_header("x-a", "1"), kong.request.get_path(),
                    self.slowly(kong),
                )
                await kong.log.notice(method, *[str(each) for each in found])

            async def slowly(self, kong):
                await asyncio.sleep(0.01)
                return await kong.request.get_port()
        """,
    )
    answers = {
        "kong.request.get_method": "GET",
        "kong.request.get_path": "/path",
        "kong.request.get_header": "there",
        "kong.request.get_port": 80,
    }
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        trail = client.event(client.start("gathers"), answers=answers.get)
        names = [function for function, _ in trail]
        assert "kongps-async-1" in trail[1][1]
        assert names.count("kong.request.get_path") == 1, "what cannot change is asked once"
        assert names[-1] == "kong.log.notice"
        for part in ("GET", "/path", "there", "None", "80"):
            assert part in trail[-1][1]
        assert is_quiet(server)


def test_fifty_events_that_await_take_about_the_time_of_one(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "awaits",
        """
        import asyncio

        class Plugin:
            async def access(self, kong):
                await asyncio.sleep(0.5)
                await kong.response.exit(204)
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        instance = Client(server).start("awaits")
        began = time.monotonic()
        with at_once(server, instance, 50) as events:
            assert all(event.result()[-1][0] == EXIT for event in events)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pdk_call_that_is_timed_out_does_not_disturb_the_next(
    plugins: Path, short_path: Path, protocol: str
) -> None:
    write(
        plugins,
        "times",
        """
        import asyncio

        class Plugin:
            async def access(self, kong):
                for _ in range(3):
                    try:
                        await asyncio.wait_for(kong.request.get_header("slow"), 0.05)
                    except asyncio.TimeoutError:
                        pass
                    else:
                        raise ValueError("it was answered")
                await kong.log.notice("then", await kong.request.get_path())
        """,
    )

    def answers(function: str) -> str:
        if function == "kong.request.get_header":
            time.sleep(0.2)
            return "wrong"
        return "/right"

    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        trail = client.event(client.start("times"), answers=answers)
        assert "/right" in told(trail), trail
        assert "wrong" not in told(trail)
        assert is_quiet(server)


def test_a_cancellation_that_meets_the_answer_does_not_hold_up_the_next_call(
    plugins: Path, short_path: Path
) -> None:
    """wait_for with a timeout that passes about when Kong answers, in any order."""
    write(
        plugins,
        "races",
        """
        import asyncio

        class Plugin:
            async def access(self, kong):
                late = 0
                for number in range(150):
                    call = asyncio.ensure_future(kong.request.get_header(f"h{number}"))
                    other = asyncio.ensure_future(kong.request.get_header(f"o{number}"))
                    await asyncio.sleep(0.0001 * (number % 12))
                    call.cancel()
                    if number % 3 == 0:
                        other.cancel()
                    late += call.cancelled()
                    await asyncio.wait([call, other])
                    if not other.cancelled():
                        assert other.result() == f"o{number}"
                    if not call.cancelled():
                        assert call.result() == f"h{number}"
                await kong.log.notice("at the end")
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        for _ in range(3):
            asked = wire.event(wire.start("races"))
            while asked["Data"] != "ret":
                assert asked["Data"]["Method"] != EXIT
                asked = wire.step(asked, (asked["Data"]["Args"] or [""])[0])
        assert is_quiet(server)


def test_cancelled_between_an_answer_and_its_arrival(plugins: Path, short_path: Path) -> None:
    """The future of a call has its result, and the coroutine is cancelled as it wakes."""
    write(
        plugins,
        "unlucky",
        """
        import asyncio

        class Plugin:
            async def access(self, kong):
                loop = asyncio.get_running_loop()
                call = asyncio.ensure_future(kong.request.get_header("a"))
                await asyncio.sleep(0)
                waits_for = call._fut_waiter
                if waits_for is None:
                    raise ValueError("asyncio is not as this test knows it")
                waiting = asyncio.ensure_future(kong.request.get_header("b"))
                done = loop.create_future()
                waits_for.add_done_callback(lambda _: (call.cancel(), done.set_result(None)))
                await done
                try:
                    await call
                except asyncio.CancelledError:
                    pass
                assert await asyncio.wait_for(waiting, 5) == "b"
                assert await asyncio.wait_for(kong.request.get_header("c"), 5) == "c"
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        wire = server.connect()
        asked = wire.event(wire.start("unlucky"))
        seen = []
        while asked["Data"] != "ret":
            seen.append(asked["Data"])
            assert asked["Data"]["Method"] == "kong.request.get_header", seen
            asked = wire.step(asked, asked["Data"]["Args"][0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "how",
    [
        "raise ValueError('oh no')",
        "raise asyncio.CancelledError",
        "asyncio.current_task().cancel(); await asyncio.sleep(5)",
        "await self",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "await asyncio.gather(self.fails(), kong.request.get_path())",
        "await asyncio.wait_for(asyncio.sleep(10), 0.01)",
    ],
)
def test_a_handler_that_fails_or_is_cancelled_fails_closed(
    plugins: Path, short_path: Path, protocol: str, how: str
) -> None:
    write(
        plugins,
        "fails",
        f"""
        import asyncio

        class Plugin:
            async def access(self, kong):
                await kong.request.get_method()
                {how}

            async def fails(self):
                raise ValueError('oh no')
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server, protocol)
        instance = client.start("fails")
        for _ in range(2):
            trail = client.event(instance)
            assert failed(trail), trail
            assert "fails.py" in told(trail)
            assert "access handler" in told(trail)
        assert is_quiet(server)


def test_a_handler_that_is_cancelled_before_it_ran_fails_closed(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "kills",
        """
        import asyncio, time

        class Plugin:
            async def access(self, kong):
                time.sleep(0.3)  # others are begun together afterwards
                await asyncio.sleep(0)

            async def log(self, kong):
                for task in asyncio.all_tasks():
                    if task is not asyncio.current_task():
                        task.cancel()
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("kills")
        blocks, kills, victim = Client(server), Client(server), Client(server)
        blocks.begin(instance)
        time.sleep(0.1)
        kills.begin(instance, "log")
        time.sleep(0.05)
        victim.begin(instance)
        kills.finish()
        trail = victim.finish()
        assert failed(trail), trail
        assert "CancelledError" in told(trail)
        blocks.finish()
        assert is_quiet(server)


def test_a_coroutine_that_outlives_its_handler_gets_an_error(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "leaves",
        """
        import asyncio

        class Plugin:
            path: str

            async def access(self, kong):
                self.left = [asyncio.ensure_future(self.go_on(kong, at)) for at in (0, 0, 0.2)]
                await asyncio.sleep(0.05)

            async def go_on(self, kong, at):
                await asyncio.sleep(at)
                try:
                    while True:
                        await kong.request.get_header("x")
                except Exception as error:
                    with open(self.path, "a") as file:
                        print(type(error).__name__, error, file=file)
        """,
    )
    path = short_path / "notes"
    with serving(plugins, short_path / "k.sock") as server:
        for count, protocol in enumerate(PROTOCOLS, 1):
            client = Client(server, protocol)
            instance = client.start("leaves", f'{{"path": "{path}"}}')
            trail = client.event(instance, answers=lambda _: time.sleep(0.1))
            assert {function for function, _ in trail} <= {"kong.request.get_header"}

            def written(expected: int = 3 * count) -> bool:
                return path.exists() and len(path.read_text().splitlines()) >= expected

            server.wait_for(written)
        for line in path.read_text().splitlines():
            assert line.startswith("PDKError")
            assert "the event is over" in line
        assert is_quiet(server)


def test_a_plugin_cannot_stop_the_asyncio_loop_for_others(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "stops",
        """
        import asyncio

        class Plugin:
            how: str = ""

            async def access(self, kong):
                if self.how == "stop":
                    asyncio.get_running_loop().stop()
                if self.how == "exit":
                    async def leave():
                        raise SystemExit
                    asyncio.ensure_future(leave())
                await asyncio.sleep(0.05)
                await kong.request.get_method()
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        for how in ("stop", "exit", "", "stop", ""):
            trail = client.event(client.start("stops", f'{{"how": "{how}"}}'))
            assert [function for function, _ in trail] == ["kong.request.get_method"]


@pytest.mark.parametrize(
    "policy",
    [
        "class Policy(asyncio.DefaultEventLoopPolicy):\n"
        "    def new_event_loop(self): raise RuntimeError('no loop')\n"
        "asyncio.set_event_loop_policy(Policy())",
        "import threading\n"
        "class Thread:\n"
        "    def __init__(self, *args, **named): raise RuntimeError('no thread')\n"
        "threading.Thread = Thread",
    ],
    ids=["a policy without loops", "a Thread that cannot be made"],
)
def test_what_a_plugin_replaces_in_libraries(plugins: Path, short_path: Path, policy: str) -> None:
    (plugins / "replaces.py").write_text(
        f"import asyncio\n{policy}\n"
        + textwrap.dedent("""
        class Plugin:
            async def start(self): pass
            async def access(self, kong): await kong.request.get_method()
            def log(self, kong): kong.request.get_method()
        """)
    )
    write(
        plugins, "blocks", "class Plugin:\n    blocking = True\n    def access(self, kong): ...\n"
    )
    with serving(plugins, short_path / "k.sock", "--shutdown-timeout", "0.5") as server:
        client = Client(server)
        instance = client.start("replaces")
        trail = client.event(instance)
        assert failed(trail) if "Policy" in policy else not failed(trail)
        assert not failed(client.event(client.start("blocks")))
        assert not failed(client.event(client.start("hello")))
        server.process.terminate()
        assert server.end() == 0


def test_libraries_that_speak_asyncio_just_work(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "fetches",
        """
        import asyncio

        class Plugin:
            async def start(self):
                async def serve(reader, writer):
                    line = await reader.readline()
                    await asyncio.sleep(0.05)
                    writer.write(line.upper())
                    await writer.drain()
                    writer.close()
                self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
                self._port = self._server.sockets[0].getsockname()[1]
                self._limit = asyncio.Semaphore(10)

            async def access(self, kong):
                async with self._limit:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    path = await kong.request.get_path()
                    writer.write(path.encode() + b"\\n")
                    answer = await reader.readline()
                    writer.close()
                number = await asyncio.get_running_loop().run_in_executor(None, sum, (1, 2))
                done = await asyncio.create_subprocess_exec("true")
                await done.wait()
                await kong.response.exit(200 + number + done.returncode, answer.decode().strip())

            async def close(self):
                self._server.close()
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("fetches")
        for _ in range(3):
            trail = client.event(instance, answers=lambda _: "/some/path")
            assert "203" in trail[-1][1]
            assert "/SOME/PATH" in trail[-1][1]
        server.process.terminate()
        assert server.end() == 0


def test_a_pdk_call_from_elsewhere_than_the_handler_is_refused(
    plugins: Path, short_path: Path
) -> None:
    write(
        plugins,
        "elsewhere",
        """
        import asyncio, threading

        class Plugin:
            async def access(self, kong):
                loop = asyncio.get_running_loop()
                def call():
                    return asyncio.run(kong.request.get_method())
                try:
                    await loop.run_in_executor(None, call)
                except Exception as error:
                    await kong.log.notice(type(error).__name__, str(error))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        trail = client.event(client.start("elsewhere"))
        assert "PDKError" in told(trail)
        assert "another thread" in told(trail)


@needs_compiler
def test_async_handlers_can_be_compiled(plugins: Path, short_path: Path) -> None:
    pytest.importorskip("Cython")
    write(
        plugins,
        "compiled",
        """
        import asyncio
        from dataclasses import dataclass

        version = "1.0.0"

        @dataclass
        class Plugin:
            async def access(self, kong):
                slept = asyncio.sleep(0.01, "slept")
                found = await asyncio.gather(kong.request.get_method(), slept)
                if found[0] == "DELETE":
                    raise ValueError("oh no")
                await kong.log.notice(*found)
        """,
    )
    built = run("build", str(plugins / "compiled.py"), cwd=plugins)
    assert built.returncode == 0, built.stderr.decode()
    (plugins / "compiled.py").unlink()
    with serving(plugins, short_path / "k.sock") as server:
        client = Client(server)
        instance = client.start("compiled")
        assert "slept" in told(client.event(instance, answers=lambda _: "GET"))
        trail = client.event(instance, answers=lambda _: "DELETE")
        assert failed(trail)
        assert "oh no" in told(trail)


def counts(said: str) -> int:
    return sum(int(number) for number in re.findall(r"=(\d+)", said))


def test_thousands_of_async_events_leave_nothing(plugins: Path, short_path: Path) -> None:
    write(
        plugins,
        "awaits",
        """
        import asyncio, gc

        class Plugin:
            async def access(self, kong):
                await kong.request.get_header("x")
                try:
                    await asyncio.wait_for(kong.request.get_path(), 0.0005)
                except asyncio.TimeoutError:
                    pass
                await asyncio.gather(kong.request.get_method(), asyncio.sleep(0))

            def log(self, kong):
                gc.collect()
                kinds = [type(each).__name__ for each in gc.get_objects()]
                kong.log.notice(" ".join(
                    f"{kind}={kinds.count(kind)}" for kind in
                    ("Event", "AsyncKong", "AsyncTask", "Task", "Future", "greenlet", "coroutine")
                ))
        """,
    )
    with serving(plugins, short_path / "k.sock") as server:
        client, other = Client(server), Client(server, "protobuf")
        instance = client.start("awaits")

        def run(events: int) -> tuple[int, str]:
            for _ in range(events):
                client.event(instance, answers=lambda _: "GET")
                other.event(instance, answers=lambda _: "GET")
            time.sleep(0.2)
            said = told(client.event(instance, "log"))
            return status(server)["Memory"], said

        run(300)
        before, kinds = run(300)
        after, kinds_later = run(1500)
        assert after - before < 3_000_000
        assert counts(kinds_later) <= counts(kinds) + 3, (kinds, kinds_later)


# --- types ---------------------------------------------------------------------------------------

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Optional
from kongps import AsyncKong


@dataclass
class Plugin:
    message: str = ""

    async def access(self, kong: AsyncKong) -> None:
        host: Optional[str] = await kong.request.get_header("host")
        if host is None:
            await kong.response.exit(400, {"message": "no host"})
        await kong.response.set_header("x-host", host)
"""

WRONG = {
    "a type that a function does not take": (
        'await kong.response.set_header("x-host", host)',
        'await kong.response.set_header(1, host)',
        "Argument 1",
    ),
    "a type that a function does not give": (
        "host: Optional[str] = await", "host: int = await", "Incompatible types in assignment",
    ),
    "a missing await": (
        'await kong.request.get_header("host")', 'kong.request.get_header("host")', "Coroutine",
    ),
    "a function that there is not": (
        "kong.request.get_header(", "kong.request.get_headder(", "has no attribute",
    ),
}  # fmt: skip


def test_mypy_knows_the_types_of_async_handlers(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "good.py").write_text(GOOD)
    for number, (right, broken, _) in enumerate(WRONG.values()):
        (tmp_path / f"wrong_{number}.py").write_text(GOOD.replace(right, broken))
    # One run for all: most of its time goes into the standard library's types.
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir=/dev/null",
            "--config-file=", "--follow-imports=silent", *sorted(os.listdir(tmp_path)),
        ],
        cwd=tmp_path, env={"MYPYPATH": str(SRC), "PATH": ""}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "good.py" not in done.stdout
    for number, (change, (_, _, message)) in enumerate(WRONG.items()):
        found = [line for line in done.stdout.splitlines() if line.startswith(f"wrong_{number}.")]
        assert message in "".join(found), change


def test_the_types_of_the_async_pdk_are_those_of_the_pdk() -> None:
    if shutil.which("ruff") is None:
        pytest.importorskip("ruff")
    import async_pdk

    assert async_pdk.PAGE.read_text() == async_pdk.formatted(async_pdk.stub()), "`make docs`"


def test_the_async_pdk_has_the_functions_of_the_pdk() -> None:
    import ast

    from kongps import pdk
    from kongps.core.dispatch.namespace import Namespace
    from kongps.pdk.aio import AsyncKong

    classes = {
        node.name: node
        for node in ast.parse((SRC / "kongps" / "pdk" / "aio.pyi").read_text()).body
        if isinstance(node, ast.ClassDef)
    }

    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    def compare(kind: type, other: type) -> int:
        assert public(kind) == public(other), kind
        names = set()
        for node in classes[other.__name__].body:
            if isinstance(node, ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                assert isinstance(node.targets[0], ast.Name)
                names.add(node.targets[0].id)
        assert names - {"__call__"} == public(other)
        count = 1
        for name in public(kind):
            inner = getattr(kind, name)
            if isinstance(inner, type) and issubclass(inner, Namespace):
                count += compare(inner, getattr(other, name))
        return count

    assert compare(pdk.Kong, AsyncKong) > 15
