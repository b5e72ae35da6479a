"""What a handler costs by the way it was written: processor time of one event, without sockets.

The hello event (one header read, two set) as Python, compiled by `kongps build`, and as C; and a
handler that computes, as Python, compiled, and compiled with C types. Everything runs in this
process, and the least of many rounds is taken, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import msgpack

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from kongps.compiled.build import build
from kongps.core.dispatch.instance import Instance
from kongps.core.session import Session
from kongps.plugins.loader import load_plugin
from kongps.server.core import make_dispatcher
from kongps.settings import Settings

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"

ID = 7


def session(directory: Path, name: str, config: dict[str, object]) -> Session:
    plugin = load_plugin(directory, name)
    dispatcher = make_dispatcher({plugin.name: plugin})
    dispatcher.add_instance(Instance(ID, plugin, config, 0.0, plugin.new(config)))
    return Session(dispatcher, Settings().max_message)


def ask(session: Session, call: bytes) -> dict[str, object]:
    session.receive_data(call)
    return msgpack.unpackb(session.data_to_send())[3]


def events(session: Session, count: int) -> float:
    """Seconds of processor time for each of some events."""
    begin = msgpack.packb([0, 1, "plugin.HandleEvent", [{"InstanceId": ID, "EventName": "access"}]])
    begun = time.process_time()
    for _ in range(count):
        answer = ask(session, begin)
        while answer["Data"] != "ret":
            step = {"EventId": answer["EventId"]}
            if answer["Data"]["Method"].startswith("kong.request"):
                step["Data"] = "example.com"
            answer = ask(session, msgpack.packb([0, 2, "plugin.Step", [step]]))
    return (time.process_time() - begun) / count


def measure(kinds: dict[str, Session], rounds: int, count: int) -> dict[str, float]:
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(rounds):
        for kind, each in kinds.items():
            best[kind] = min(best[kind], events(each, count))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="of which the best counts (40)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for source, name in (
            (EXAMPLES / "hello.py", "hello"),
            (HERE / "plugins" / "compute.py", "compute"),
        ):
            for kind in ("python", "compiled"):
                (work / kind).mkdir(exist_ok=True)
            os.symlink(source, work / "python" / f"{name}.py")
            build(str(source), output=str(work / "compiled"), progress=lambda _: None)
        build(str(EXAMPLES / "native" / "hello.c"), output=str(work / "native"),
              progress=lambda _: None)  # fmt: skip
        config = {"message": "hello"}
        hello = {
            kind: session(work / kind, "hello", config) for kind in ("python", "compiled", "native")
        }
        typed = HERE / "plugins" / "compute_typed.pyx"
        build(str(typed), output=str(work / "compiled"), progress=lambda _: None)
        compute = {kind: session(work / kind, "compute", {}) for kind in ("python", "compiled")}
        compute["typed"] = session(work / "compiled", "compute_typed", {})
        found = {
            "hello": measure(hello, options.rounds, 2000),
            "compute": measure(compute, options.rounds // 4 or 1, 50),
        }
    if options.json:
        print(json.dumps(found))
        return
    for event, kinds in found.items():
        for kind, seconds in kinds.items():
            ratio = kinds["python"] / seconds
            print(f"{event:8} {kind:9} {seconds * 1e6:8.2f} us/event   {ratio:.2f} times Python")


if __name__ == "__main__":
    main()
