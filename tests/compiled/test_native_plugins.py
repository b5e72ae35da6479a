"""Native plugins: the C interface, what loads and what does not, and handlers under load."""

from __future__ import annotations

import ctypes
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from client import Direct
from core_defaults import new_dispatcher
from paths import DATA, EXAMPLES
from shared_libraries import compile_c, needs_compiler

from kongps import get_include
from kongps._version import PLUGIN_API
from kongps.compiled import native
from kongps.compiled.build import build
from kongps.compiled.sources import read_record
from kongps.core.dispatch.instance import Instance
from kongps.core.wire.protobuf import encode_message
from kongps.errors import NativeError, PluginError, SourceChanged
from kongps.plugins.loader import load_directory, load_plugin
from kongps.plugins.rebuild import rebuild
from kongps.testing import Kong

EXAMPLES = EXAMPLES / "native"
INCLUDE = f"-I{get_include()}"

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("native")
    build(str(DATA / "native" / "probe.c"), output=str(directory), progress=lambda _: None)
    return directory


@pytest.fixture
def probe(plugins: Path) -> Iterator[ctypes.CDLL]:
    """The variables of the probe, as the server's copy has them."""
    load_plugin(plugins, "probe")
    library = ctypes.CDLL(str(plugins / "probe.so"))
    before = number(library, "instances")
    yield library
    assert number(library, "running") == 0
    assert number(library, "instances") >= before


def number(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int.in_dll(library, f"probe_{name}").value


# The interface


COMPILERS = [
    *(f"{cc} -std={std} -D_GNU_SOURCE" for cc in ("gcc", "clang") for std in ("c99", "c11", "c17")),
    *(f"{cc} -std={std}" for cc in ("g++", "clang++") for std in ("c++11", "c++14", "c++20")),
]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_header_and_examples_compile_without_warnings(compiler: str, tmp_path: Path) -> None:
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    source = EXAMPLES / ("hello_cpp.cpp" if "++" in compiler else "hello.c")
    subprocess.run(
        [*command, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-shared", INCLUDE,
         str(source), "-o", str(tmp_path / "hello.so")],
        check=True,
    )  # fmt: skip


def test_what_cffi_is_told_is_what_the_header_says(tmp_path: Path) -> None:
    ffi = native._ffi
    struct = ffi.typeof("kongps_plugin_table")
    fields = [name for name, _ in struct.fields]
    checks = "".join(
        f'_Static_assert(offsetof(kongps_plugin_table, {name}) == {field.offset}, "{name}");\n'
        f"_Static_assert(sizeof(((kongps_plugin_table *)0)->{name}) == {ffi.sizeof(field.type)}, "
        f'"{name}");\n'
        for name, field in struct.fields
    )
    compile_c(
        tmp_path / "check.so",
        "#include <kongps/plugin.h>\n"
        f"{checks}_Static_assert(sizeof(kongps_plugin_table) == {ffi.sizeof(struct)}, \"size\");\n"
        f"_Static_assert(KONGPS_PLUGIN_API == {PLUGIN_API}, \"api\");\n"
        f"_Static_assert(KONGPS_OK == {native._OK}, \"ok\");\n"
        f"_Static_assert(KONGPS_ERROR_SIZE == {native._ERROR_SIZE}, \"error size\");\n",
        flags=["-std=c11", INCLUDE],
    )  # fmt: skip
    # And no member is missing here: the header's text has the same names in the same order.
    header = (Path(get_include()) / "kongps" / "plugin.h").read_text()
    text = header[header.index("typedef struct kongps_plugin_table") :].partition("} kongps_plug")[
        0
    ]
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    members = [
        re.search(r"\(\*(\w+)\)|(\w+)$", each.strip()) for each in text.split(";") if each.strip()
    ]
    assert [each[1] or each[2] for each in members if each] == fields


def test_the_helpers_read_any_configuration(tmp_path: Path) -> None:
    library = ctypes.CDLL(
        str(
            compile_c(
                tmp_path / "config.so",
                "#include <kongps/plugin.h>\n"
                "long text(const char *c, const char *k, char *o, size_t n)"
                "{ return kongps_config_string(c, k, o, n); }\n"
                "int64_t whole(const char *c, const char *k, int64_t d)"
                "{ return kongps_config_integer(c, k, d); }\n"
                "int truth(const char *c, const char *k, int d)"
                "{ return kongps_config_boolean(c, k, d); }\n",
                flags=[INCLUDE],
            )
        )
    )
    library.whole.restype = ctypes.c_int64
    library.whole.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
    values: list[Any] = [
        "", "plain", 'a "quoted" \\ / \b\f\n\r\t', "ü€😀", "{\"x\": \"]\"}", 0, -5, 2**62, True,
        False, None, 2.5, [], {}, [1, {"k": "no"}, "]"], {"k": "no", "deep": [{}, "}"]},
    ]  # fmt: skip
    chosen = random.Random(6)
    for _ in range(300):
        config = {f"k{n}": chosen.choice(values) for n in range(chosen.randrange(5))}
        config["k"] = value = chosen.choice(values)
        items = list(config.items())
        chosen.shuffle(items)
        text = json.dumps(
            dict(items), ensure_ascii=chosen.random() < 0.5, indent=chosen.choice([None, 1])
        ).encode()
        out = ctypes.create_string_buffer(200)
        got = library.text(text, b"k", out, 200)
        assert (out.value.decode() if got >= 0 else None) == (
            value if isinstance(value, str) else None
        ), text
        whole = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert library.whole(text, b"k", 77) == (int(value) if whole else 77), text
        assert library.truth(text, b"k", 7) == (value if isinstance(value, bool) else 7), text
        assert library.text(text, b"missing", out, 200) == -1
    assert library.text(b'{"k": "12345"}', b"k", out, 6) == 5
    assert library.text(b'{"k": "12345"}', b"k", out, 5) == -1
    for broken in (b"", b"{", b'{"k', b'{"k"', b'{"k":', b'{"k": "', b"[1]", b'{"k": "\\u12'):
        library.text(broken, b"k", out, 200)
        library.whole(broken, b"k", 0)


# Examples


@pytest.mark.parametrize(
    ("source", "language", "header"),
    [("hello.c", "C", "c"), ("hello_cpp.cpp", "C++", "cpp"), ("hello_rust.rs", "Rust", "rust")],
)
def test_the_hello_examples_greet(
    source: str, language: str, header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"C": "cc", "C++": "c++", "Rust": "rustc"}[language]
    if shutil.which(needed) is None:
        pytest.skip(f"no {needed}")
    monkeypatch.setenv("RUSTFLAGS", "-C opt-level=0")
    (path,) = build(str(EXAMPLES / source), output=str(tmp_path), progress=lambda _: None)
    record = read_record(path)
    assert record is not None
    assert record["kind"] == "native"
    assert record["source"] == f".sources/{source}"
    name = Path(source).stem
    for config, said in (({}, "hello"), ({"message": "bye"}, "bye")):
        kong = Kong(plugins_directory=tmp_path, plugins={name: config})
        result = kong.request("GET", "/", headers={"host": "example.com"})
        greeting = f"{language} says {said} to example.com"
        assert result.headers[f"x-hello-from-{header}"] == greeting
        assert result.headers[f"x-{header}-pid"].isdigit()
    assert [each.problem for each in rebuild(str(tmp_path), check=True)] == [None]


# What a handler can do


def ask(plugins: Path, wish: str, **headers: str) -> Any:
    kong = Kong(plugins_directory=plugins, plugins={"probe": {}})
    given = {f"x-{name}": value for name, value in headers.items()}
    return kong.request("GET", "/?n=1", headers={"x-do": wish, **given})


def test_the_table_says_what_the_plugin_is(plugins: Path, probe: ctypes.CDLL) -> None:
    plugin = load_plugin(plugins, "probe")
    assert plugin.info() == {
        "Name": "probe", "Version": "1.2.3", "Priority": -5, "Phases": ["access", "log"],
        "Schema": {"name": "probe", "fields": [
            {"config": {"type": "record", "fields": [{"refuse": {"type": "string"}}]}},
        ]},
    }  # fmt: skip
    assert plugin.path == str(plugins / "probe.so")


def test_values_of_every_type_go_both_ways(plugins: Path, probe: ctypes.CDLL) -> None:
    result = ask(plugins, "values")
    assert result.status == 200, result.server_log
    assert json.loads(result.headers["x-json"]) == [1, 2.5, False, None, "t"]
    assert result.logged("notice") == ["the log phase"]
    result = ask(plugins, "headers", one="1", two="2")
    assert sorted(result.headers["x-names"].split(";")) == ["", "x-do", "x-one", "x-two"]


def test_exit_ends_the_event_and_every_further_call(plugins: Path, probe: ctypes.CDLL) -> None:
    result = ask(plugins, "exit")
    assert result.status == 403
    assert result.json() == {"message": "no", "list": [1, True, None]}
    after = (ctypes.c_int * 4).in_dll(probe, "probe_after_end")
    assert list(after) == [-2, -2, -2, -2]
    assert result.server_log == []
    assert "x-after" not in result.headers
    # A handler that says it is fine after an exit is.
    result = ask(plugins, "exit and forget")
    assert (result.status, result.server_log) == (204, [])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("fail", "NativeError: I don't want to"),
        ("code", "NativeError: the handler returned 42"),
        ("wrong", "kong.response.get_status: cannot be called in the access phase"),
    ],
)
def test_a_handler_that_fails_ends_the_request_with_a_500(
    wish: str, said: str, plugins: Path, probe: ctypes.CDLL
) -> None:
    result = ask(plugins, wish)
    assert result.status == 500
    assert any(said in line for line in result.server_log)
    assert any("plugin probe, access handler" in line for line in result.server_log)


def test_an_error_of_a_call_can_be_read_and_handled(plugins: Path, probe: ctypes.CDLL) -> None:
    result = ask(plugins, "recover")
    assert result.status == 200
    assert re.match(r"-1 .*Expecting property name", result.headers["x-error"])


def test_a_handle_is_of_no_use_elsewhere(plugins: Path, probe: ctypes.CDLL) -> None:
    assert ask(plugins, "thread").status == 200
    assert number(probe, "from_thread") == -1
    assert ask(plugins, "keep").status == 200
    assert number(probe, "late") in (1, -1)  # the log phase's own handle, or refused


def test_instances_are_made_and_closed(plugins: Path, probe: ctypes.CDLL) -> None:
    plugin = load_plugin(plugins, "probe")
    before = number(probe, "instances")
    handlers = plugin.new({"__key__": "é"})
    assert number(probe, "instances") == before + 1
    handlers["close"]()
    handlers["close"]()
    assert number(probe, "instances") == before
    with pytest.raises(NativeError, match="not today"):
        plugin.new({"refuse": "not today"})
    with pytest.raises(NativeError, match="new_instance returned -7"):
        plugin.new({"refuse": "silently"})
    assert number(probe, "instances") == before
    result = Kong(plugins_directory=plugins, plugins={"probe": {"refuse": "not today"}}).request()
    assert result.status == 500
    assert any(
        "plugin probe did not start" in line and "not today" in line for line in result.server_log
    )


# Many at once


class Driver:
    """Events of the probe under way at once, stepped in any order."""

    def __init__(self, plugins: Path) -> None:
        self.dispatcher = new_dispatcher()
        plugin = load_plugin(plugins, "probe")
        self.handlers = plugin.new({})
        self.dispatcher.add_instance(Instance(1, plugin, {}, 0.0, self.handlers))
        self.wire = Direct(self.dispatcher)

    def start(self, wish: str, seed: int = 0) -> dict[str, Any]:
        asked = self.wire.call("HandleEvent", {"InstanceId": 1, "EventName": "access"})
        assert asked["Data"]["Args"] == ["x-do"]
        return {"asked": asked, "wish": wish, "seed": seed, "steps": 0, "set": None}

    def step(self, event: dict[str, Any]) -> bool:
        """Answers what the event asked; whether it goes on."""
        data = event["asked"]["Data"]
        if data == "ret":
            return False
        args = data["Args"]
        value: Any = None
        if args[0] == "x-do":
            value = event["wish"]
        elif args[0] == "x-seed":
            value = str(event["seed"])
        elif data["Method"] == "kong.ctx.shared.get":
            event["steps"] += 1
            value = str(event["steps"] * 3)
        elif data["Method"] == "kong.response.set_header":
            event["set"] = args[1]
        elif data["Method"] == "kong.response.exit":
            event["set"] = args
            return False
        event["asked"] = self.wire.step(event["asked"], value)
        return event["asked"]["Data"] != "ret"

    def finish(self, event: dict[str, Any]) -> None:
        while self.step(event):
            pass


def test_hundreds_of_interleaved_events_keep_their_stacks(
    plugins: Path, probe: ctypes.CDLL
) -> None:
    driver = Driver(plugins)
    chosen = random.Random(1)
    returned = number(probe, "returned")
    done = 0
    live: list[dict[str, Any]] = []
    started = 0
    while started < 1500 or live:
        if started < 1500 and (len(live) < 100 or chosen.random() < 0.2) and len(live) < 300:
            started += 1
            live.append(driver.start(chosen.choice(["deep", "deep", "exit", ""]), started))
            continue
        place = chosen.randrange(len(live))
        event = live[place]
        if driver.step(event):
            continue
        live[place] = live[-1]
        live.pop()
        done += 1
        if event["wish"] == "deep":
            depth = event["seed"] % 12
            assert event["steps"] == depth + 1
            assert event["set"] == str(sum(3 * n for n in range(1, depth + 2)))
        elif event["wish"] == "exit":
            assert event["set"][0] == 403
    assert done == 1500
    assert number(probe, "returned") == returned + 1500
    assert driver.dispatcher.live_events == 0


def test_events_that_kong_gives_up_have_their_handlers_return(
    plugins: Path, probe: ctypes.CDLL
) -> None:
    driver = Driver(plugins)
    live = [driver.start("deep", seed) for seed in range(120)]
    chosen = random.Random(2)
    for _ in range(300):
        driver.step(chosen.choice(live[60:]))
    running = number(probe, "running")
    assert running >= 60
    given_up = driver.dispatcher.abandon_all_events()
    assert given_up == running
    assert number(probe, "running") == 0
    # The handles are as new: the next events find nothing left of the old ones.
    for seed in range(50):
        event = driver.start("deep", seed)
        driver.finish(event)
        assert event["set"] is not None


def test_an_error_from_kong_is_a_code_for_the_plugin(plugins: Path, probe: ctypes.CDLL) -> None:
    driver = Driver(plugins)
    event = driver.start("deep", 5)
    driver.step(event)
    logged = driver.wire.step(event["asked"], "no luck", method="StepError")
    assert logged["Data"]["Method"] == "kong.log.err"
    failed = driver.wire.step(logged)
    assert failed["Data"]["Method"] == "kong.response.exit"
    assert failed["Data"]["Args"][0] == 500


def test_no_memory_is_left_behind(plugins: Path, probe: ctypes.CDLL) -> None:
    driver = Driver(plugins)

    def run(count: int) -> None:
        for seed in range(count):
            driver.finish(driver.start("deep", seed))

    run(200)
    before = sys.getallocatedblocks()
    run(1000)
    assert sys.getallocatedblocks() - before < 200


# What does not load


TABLE = """
#include <kongps/plugin.h>
static int handler(void *instance, kongps_kong *kong) { (void)instance; (void)kong; return 0; }
KONGPS_EXPORT const kongps_plugin_table kongps_plugin = {
    .api = KONGPS_PLUGIN_API, .size = sizeof(kongps_plugin_table), .version = "1.0.0",
    .phases = KONGPS_PHASE_BIT(KONGPS_ACCESS), .schema = "[]", .access = handler,
};
"""


@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        (".access = handler", ".access = 0", "its handler for access is NULL"),
        (".access = handler", ".access = handler, .log = handler", "KONGPS_PHASE_BIT(KONGPS_LOG)"),
        ("(KONGPS_ACCESS)", "(9) | 4", "some that Kong does not have"),
        (".phases = KONGPS_PHASE_BIT(KONGPS_ACCESS)", ".phases = 0", "add KONGPS_PHASE_BIT"),
        (".phases = KONGPS_PHASE_BIT(KONGPS_ACCESS), .schema = \"[]\", .access = handler",
         ".schema = \"[]\"", "it has no handler"),
        ('.schema = "[]"', '.schema = "{"', "its schema is not JSON"),
        ('.schema = "[]"', '.schema = "[5]"', "Schema[0]: expected a field"),
        ('.schema = "[]"', ".schema = 0", "its schema is NULL"),
        ('.schema = "[]"', '.schema = "[{\\"a\\": {\\"type\\": \\"text\\"}}]"', "Kong's types are"),
        ("sizeof(kongps_plugin_table),", "8,", "its table has 8 bytes"),
        (".api = KONGPS_PLUGIN_API", ".api = 99", "plugin API 99"),
        ("kongps_plugin = {", "kongps_plugins = {", "exports PyInit_broken or kongps_plugin"),
    ],
)  # fmt: skip
def test_a_library_with_a_fault_is_refused_and_others_load(
    change: str, to: str, said: str, plugins: Path, tmp_path: Path
) -> None:
    assert change in TABLE
    compile_c(tmp_path / "broken.so", TABLE.replace(change, to), flags=[INCLUDE])
    shutil.copy(plugins / "probe.so", tmp_path)
    loaded = load_directory(tmp_path)
    assert list(loaded.plugins) == ["probe"]
    (error,) = loaded.errors
    assert said in str(error)
    assert str(tmp_path / "broken.so") in str(error)


def test_a_library_with_an_undefined_symbol_is_refused(tmp_path: Path) -> None:
    compile_c(
        tmp_path / "broken.so",
        TABLE.replace("return 0", "extern int no_such(void); return no_such()"),
        flags=[INCLUDE],
    )
    with pytest.raises(PluginError, match="undefined symbol: no_such"):
        load_plugin(tmp_path, "broken")


def test_a_library_that_was_built_again_is_the_new_one(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.0.1"):
        source = tmp_path / "again.c"
        source.write_text(TABLE.replace('"1.0.0"', f'"{version}"'))
        build(str(source), progress=lambda _: None)
        assert load_plugin(tmp_path, "again").version == version
    source.write_text(TABLE + "/* changed */")
    (result,) = rebuild(str(tmp_path), check=True)
    assert result.problem is not None
    with pytest.raises(SourceChanged):
        load_plugin(tmp_path, "again")


def test_the_server_answers_after_msgpack(plugins: Path) -> None:
    assert msgpack.packb(load_plugin(plugins, "probe").info())


SAME_IN_PYTHON = """
import os

class Plugin:
    message: str = "hello"

    def access(self, kong):
        host = kong.request.get_header("host")
        kong.response.set_header("x-hello-from-c", f"C says {self.message} to {host}")
        kong.response.set_header("x-c-pid", str(os.getpid()))
"""


def test_hello_in_c_says_what_python_says_over_both_protocols(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "hello.py").write_text(SAME_IN_PYTHON)
    build(str(EXAMPLES / "hello.c"), output=str(tmp_path / "c"), progress=lambda _: None)

    def frame(name: str, value: dict[str, Any]) -> bytes:
        message = encode_message(name, value)
        return len(message).to_bytes(4, sys.byteorder) + message

    def msgpack_step(answer: bytes) -> bytes:
        event = msgpack.unpackb(answer)[3]["EventId"]
        return msgpack.packb([0, 2, "plugin.Step", [{"EventId": event, "Data": "a.b"}]])

    begin = msgpack.packb([0, 1, "plugin.HandleEvent", [{"InstanceId": 1, "EventName": "access"}]])
    event = {"sequence": 1, "cmd_handle_event": {"instance_id": 1, "event_name": "access"}}
    said: dict[str, list[bytes]] = {}
    for kind in ("python", "c"):
        plugin = load_plugin(tmp_path / kind, "hello")
        said[kind] = []
        for start, step in (
            (begin, msgpack_step),
            (frame("RpcCall", event), lambda _: frame("String", {"v": "a.b"})),
        ):
            dispatcher = new_dispatcher()
            handlers = plugin.new({"message": "bye"})
            dispatcher.add_instance(Instance(1, plugin, {}, 0.0, handlers))
            wire = Direct(dispatcher)
            answer = wire.exchange(start)
            answers = [answer, wire.exchange(step(answer))]
            if start is begin:  # the event's number is another one each time
                answers = [msgpack.packb(msgpack.unpackb(each)[3]["Data"]) for each in answers]
            said[kind] += answers
    assert said["c"] == said["python"]
    assert b"kong.request.get_header" in said["c"][2]
    assert b"C says bye to a.b" in said["c"][3]
