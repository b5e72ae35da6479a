"""``kongps demo``: the example plugins at work, shown call by call.

It starts a real server with the example plugins in a directory of its own, sends it requests
through the socket with the stand-in for Kong, and prints what happened.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kongps.cli.common import FAILED, OK, command_parser
from kongps.errors import KongpsError
from kongps.testing import Call, Kong, Result
from kongps.testing.versions import parse_version

__all__ = ["main"]

# Seconds for the server to open its socket, and to end after SIGTERM.
START_TIMEOUT = 20.0
STOP_TIMEOUT = 15.0

_SHOWN_HEADERS = ("content-type", "www-authenticate")
_WIDTH = 100

_PROTOCOLS = {"ProtoBuf:1": "protobuf", "MsgPack:1": "msgpack"}


@dataclass
class Step:
    """One request of the demo, and what is expected of it."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    check: Optional[Callable[[Result], bool]] = None
    expected: str = ""


@dataclass
class Scene:
    """A plugin, its configuration, and the requests that show it."""

    plugin: str
    title: str
    config: dict[str, Any]
    steps: list[Step]


def main(words: Sequence[str]) -> int:
    """Runs the command.

    :returns: 0, or 1 when anything was not as expected, with the reason on stderr.
    """
    parser = command_parser("demo")
    parser.add_argument(
        "--kong",
        metavar="VERSION",
        default="3.9",
        help="the version of Kong to stand in for (default: %(default)s)",
    )
    parser.add_argument(
        "--examples", metavar="DIR", help="where the plugins are (default: those installed)"
    )
    options = parser.parse_args(words)
    try:
        _run(Path(options.examples) if options.examples else _examples(), options.kong)
    except (KongpsError, ValueError) as error:
        print(f"kongps demo: {error}", file=sys.stderr)
        return FAILED
    return OK


def _examples() -> Path:
    here = Path(__file__).resolve().parent.parent
    for directory in (here / "examples", here.parent.parent / "examples"):
        if (directory / "hello.py").is_file():
            return directory
    raise KongpsError("the example plugins are not installed; give their directory with --examples")


def _scenes(log_file: Path) -> list[Scene]:
    greeting = "Python says good morning to example.test"
    hello = Step(
        "GET",
        "/greet",
        {"host": "example.test"},
        check=lambda result: result.headers.get("x-hello-from-python") == greeting,
        expected="a header x-hello-from-python",
    )
    config = {"message": "good morning"}
    return [
        Scene("hello", "reads a header, sets two", config, [hello]),
        Scene("hello_go", "the same in the layout of a Go plugin", config, [hello]),
        Scene("hello_kong_pdk", "the same in kong-python-pdk's layout", config, [hello]),
        Scene(
            "key_gate",
            "lets in consumers who have a key",
            {},
            [
                Step("GET", "/private", status=401),
                Step(
                    "GET",
                    "/private",
                    {"x-key": "alice"},
                    check=_names_alice,
                    expected="the service to get the consumer's name",
                ),
            ],
        ),
        Scene(
            "image",
            "answers with a picture, without any service",
            {"size": 16, "colour": "green"},
            [
                Step(
                    "GET",
                    "/picture",
                    check=lambda result: result.body.startswith(b"\x89PNG\r\n\x1a\n"),
                    expected="a PNG",
                )
            ],
        ),
        Scene(
            "log",
            "writes each request to a file when the response is out",
            {"path": str(log_file)},
            [
                Step(
                    "POST",
                    "/order?id=7",
                    check=lambda result: _logged_status(log_file) == result.status,
                    expected=f"the request in {log_file.name}",
                )
            ],
        ),
    ]


def _names_alice(result: Result) -> bool:
    sent = result.service_request
    return sent is not None and sent.headers.get("x-consumer-username") == "alice"


def _logged_status(path: Path) -> Any:
    try:
        return json.loads(path.read_text().splitlines()[-1])["response"]["status"]
    except (OSError, ValueError, LookupError):
        return None


def _run(examples: Path, version: str) -> None:
    # What happens is shown over one protocol; the other has to have the same results.
    shown, *others = (
        ("ProtoBuf:1", "MsgPack:1") if parse_version(version).protobuf else ("MsgPack:1",)
    )
    with tempfile.TemporaryDirectory(prefix="kongps-") as place:
        socket = os.path.join(place, "kongps.sock")
        scenes = _scenes(Path(place, "requests.log"))
        with _serving(examples, socket, Path(place, "server.log")):
            print(
                f"A kongps server with the plugins of {examples}, and a stand-in for "
                f"Kong {version} that speaks {shown} to it over its socket."
            )
            results = {shown: [_play(scene, socket, version, shown, show=True) for scene in scenes]}
            for protocol in others:
                results[protocol] = [_play(scene, socket, version, protocol) for scene in scenes]
            if others:
                _show_comparison(scenes, results)
        requests = sum(len(played) for played in results[shown])
        calls = sum(len(result.calls) for played in results[shown] for result in played)
        print()
        print(
            f"{requests} requests, {calls} PDK calls{' over each protocol' if others else ''}, "
            "all as expected; the server has shut down cleanly."
        )


def _play(
    scene: Scene, socket: str, version: str, protocol: str, *, show: bool = False
) -> list[Result]:
    """Sends a scene's requests over a protocol, and with `show` prints them."""
    if show:
        print()
        print(f"{_paint('1', scene.plugin)}: {scene.title}")
    results = []
    with Kong(
        socket,
        plugins={scene.plugin: scene.config},
        version=version,
        protocol=_PROTOCOLS[protocol],
        consumers=["alice"],
    ) as kong:
        for step in scene.steps:
            result = kong.request(step.method, step.path, headers=step.headers)
            if show:
                _show_result(step, result)
            _check(scene, step, result)
            results.append(result)
    return results


def _check(scene: Scene, step: Step, result: Result) -> None:
    what = f"{scene.plugin}, {step.method} {step.path}"
    if result.status != step.status:
        raise KongpsError(f"{what}: expected status {step.status}, got {result.status}")
    if step.check is not None and not step.check(result):
        raise KongpsError(f"{what}: expected {step.expected}")


@contextlib.contextmanager
def _serving(plugins: Path, socket: str, log: Path) -> Iterator[None]:
    """Runs the plugin server as a process of its own while the `with` block runs."""
    environment = dict(os.environ)
    # The same kongps as this one, also when it runs from a checkout.
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "kongps", "serve"]
    command += ["--plugins-directory", str(plugins), "--socket", socket]
    # A checkout may be of any user's and umask.
    command.append("--allow-unsafe-plugins")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and not os.path.exists(socket):
            if time.monotonic() > deadline:
                raise KongpsError(f"the server opened no socket within {START_TIMEOUT:.0f} s")
            time.sleep(0.02)
        if process.poll() is None:
            yield
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code != 0:
        printed = log.read_text(errors="replace").strip()
        raise KongpsError(f"the server ended with exit code {code}:\n{printed}")


def _paint(code: str, text: str) -> str:
    """Colours `text`, on a terminal only."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _show_result(step: Step, result: Result) -> None:
    """One request: its line, its events with their calls, the response."""
    headers = "".join(f"  {name}: {value}" for name, value in step.headers.items())
    print(f"  {_paint('36', f'{step.method} {step.path}')}{headers}")
    for event in result.events:
        took = _milliseconds(event.seconds)
        if event.start_seconds > 1e-4:
            took += f", after {_milliseconds(event.start_seconds)} to start the instance"
        print(f"    {event.phase}, {took}")
        for call in result.calls:
            if (call.plugin, call.phase) == (event.plugin, event.phase):
                _show_call(call)
    for entry in result.log:
        print(f"    {_paint('33', str(entry))}")
    sent = result.service_request
    if sent is None:
        print("    the service received no request")
    else:
        print(f"    the service received {sent.method} {sent.path}")
    _show_response(result)


def _show_comparison(scenes: list[Scene], results: dict[str, list[list[Result]]]) -> None:
    """What each request costs over each protocol: every PDK call is a round trip over
    MsgPack:1; over ProtoBuf:1 those without a result are sent with the next."""
    print()
    print(_paint("1", "The same requests over both protocols, in round trips"))
    rows: list[tuple[Any, ...]] = []
    for scene, *played in zip(scenes, *results.values()):
        for step, *answers in zip(scene.steps, *played):
            trips = [sum(event.round_trips for event in each.events) for each in answers]
            rows.append((f"{scene.plugin}, {step.method} {step.path}", *trips))
    totals = [sum(column) for column in list(zip(*rows))[1:]]
    rows = [("", *results), *rows, ("total", *totals)]
    first = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        print(f"  {name:<{first}}" + "".join(f"{cell:>12}" for cell in cells))


def _show_call(call: Call) -> None:
    asked = f"{call.function}({', '.join(_shown(arg) for arg in call.args)})"
    answer = ""
    if call.refused:
        answer = f"refused: {call.error}"
    elif call.error:
        answer = f"error: {call.error}"
    elif call.answer is not None:
        answer = _shown(call.answer)
    print(f"    {_milliseconds(call.seconds):>10}  {_cut(asked)}")
    if answer:
        print(f"                {_paint('2', '->')} {_cut(answer)}")


def _show_response(result: Result) -> None:
    colour = "32" if result.status < 400 else "31"
    status = _paint(
        colour, f"{result.status} {http.client.responses.get(result.status, '')}".strip()
    )
    size = f"{len(result.body)} bytes"
    print(f"    {status}, {size}, {_milliseconds(result.seconds)} in total")
    for name, value in result.headers.lines():
        shown = name.lower().startswith("x-") and not name.lower().startswith("x-kong-")
        if shown or name.lower() in _SHOWN_HEADERS:
            print(f"      {name.lower()}: {value}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, str) and '"' in value:
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=repr)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
