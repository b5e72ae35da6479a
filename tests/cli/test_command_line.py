"""The kongps command: its subcommands, and the flags of the servers it replaces."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import msgpack
import pytest
from client import Socket
from server_process import Process, run, serving

from kongps import __version__

DIRECTORY = "--plugins-directory"


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


def ended_well(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def one_line(text: bytes) -> str:
    assert text.count(b"\n") == 1, text.decode()
    return text.decode()


def check_info(info: dict[str, Any]) -> None:
    assert set(info) == {"Name", "Phases", "Version", "Priority", "Schema"}
    assert info["Phases"] == ["access"]
    (config,) = [field["config"] for field in info["Schema"]["fields"] if "config" in field]
    assert config["type"] == "record"
    assert isinstance(config["fields"], list)


def test_version_names_kongps_and_python() -> None:
    out = one_line(ended_well(run("--version")))
    assert __version__ in out
    assert platform.python_version() in out


def test_go_version_ends_in_the_line_that_kong_2_0_reads() -> None:
    out = ended_well(run("-version")).decode()
    assert re.search(r"^Version: ", out)
    found = re.search(r"Runtime Version: go(.+)\n$", out)
    assert found
    assert platform.python_version() in found[1]


def dump(plugins: Path, *words: str) -> list[dict[str, Any]]:
    done = json.loads(ended_well(run("dump", DIRECTORY, str(plugins), *words)))
    infos: list[dict[str, Any]] = done["Plugins"]
    return infos


def test_dump_names_protocol_socket_and_all_plugins(plugins: Path) -> None:
    done = json.loads(ended_well(run("dump", DIRECTORY, str(plugins), "--socket", "/k.sock")))
    assert (done["Protocol"], done["SocketPath"]) == ("ProtoBuf:1", "/k.sock")
    (info,) = done["Plugins"]
    check_info(info)


def test_dump_for_msgpack_is_a_json_array_of_all_plugins(plugins: Path) -> None:
    words = ["dump", DIRECTORY, str(plugins), "--protocol", "msgpack"]
    (info,) = json.loads(ended_well(run(*words)))
    check_info(info)


def test_dump_of_names_prints_those(plugins: Path) -> None:
    write(plugins, "second", "class Plugin:\n    def log(self, kong): ...\n")
    assert [info["Name"] for info in dump(plugins)] == ["hello", "second"]
    assert [info["Name"] for info in dump(plugins, "second")] == ["second"]


def test_dump_plugin_info_is_one_messagepack_map(plugins: Path) -> None:
    out = ended_well(run("-plugins-directory", str(plugins), "-dump-plugin-info", "hello"))
    check_info(msgpack.unpackb(out))


@pytest.mark.parametrize("flags", [["-d"], ["-plugins-directory"], ["--plugins-directory"]])
def test_dump_all_plugins_is_a_json_array(plugins: Path, flags: list[str]) -> None:
    (info,) = json.loads(ended_well(run(*flags, str(plugins), "--dump-all-plugins")))
    check_info(info)


def test_a_dump_of_a_plugin_that_is_not_there_fails_in_one_line(plugins: Path) -> None:
    for words in (
        ["dump", DIRECTORY, str(plugins), "missing"],
        ["-plugins-directory", str(plugins), "-dump-plugin-info", "missing"],
        ["-plugins-directory", str(plugins), "-dump-plugin-info", "../hello"],
    ):
        done = run(*words)
        assert done.returncode == 1
        assert one_line(done.stderr).startswith("kongps: plugin ")
        assert not done.stdout or json.loads(done.stdout)["Plugins"] == []


def test_what_a_plugin_prints_while_it_is_imported_does_not_spoil_a_dump(plugins: Path) -> None:
    write(
        plugins,
        "talks",
        """
        import os, sys
        print("from print")
        sys.stdout.write("no newline")
        os.write(1, b"from C\\n")
        os.system("echo from a child")
        class Plugin:
            def access(self, kong): ...
        """,
    )
    done = run("dump", DIRECTORY, str(plugins))
    infos = json.loads(ended_well(done))["Plugins"]
    assert [info["Name"] for info in infos] == ["hello", "talks"]
    for text in (b"from print", b"no newline", b"from C", b"from a child"):
        assert text in done.stderr
    out = ended_well(run("-plugins-directory", str(plugins), "-dump-plugin-info", "talks"))
    assert msgpack.unpackb(out)["Name"] == "talks"


def test_a_broken_plugin_is_told_of_and_the_others_are_dumped(plugins: Path) -> None:
    write(plugins, "broken", "\n\nraise RuntimeError('at import')\n")
    done = run("dump", DIRECTORY, str(plugins))
    assert done.returncode == 1
    assert [info["Name"] for info in json.loads(done.stdout)["Plugins"]] == ["hello"]
    line = one_line(done.stderr)
    assert "'broken'" in line
    assert "broken.py:3" in line
    assert "RuntimeError: at import" in line


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["serve", "--socket-mode", "rw", DIRECTORY, "x", "--socket", "y"],
        ["serve", "--shutdown-timeout", "-1"],
        ["serve", "--log-level", "loud"],
        ["--no-such-flag"],
        ["-m", "-g"],
        ["run"],
        ["dump", "--protocol", "soap"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["dump", DIRECTORY, "/no/such/place"], "does not exist"),
        (["serve", DIRECTORY, "/no/such/place", "--socket", "x"], "does not exist"),
        (["run", "/no/such/file.py"], "there is no file"),
        (["conf", DIRECTORY, "."], "there is no plugin in"),
    ],
)
def test_what_cannot_be_done_exits_with_1_and_one_line(
    words: list[str], text: str, short_path: Path
) -> None:
    done = run(*words, cwd=short_path)
    assert done.returncode == 1
    assert text in one_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["serve"], "give --plugins-directory, or set KONGPS_PLUGINS_DIRECTORY"),
        (["serve", DIRECTORY, "."], "give --socket, or set KONGPS_SOCKET"),
        (["-kong-prefix", "/tmp"], "--plugins-directory"),
        (["dump"], "--plugins-directory"),
    ],
)
def test_what_is_missing_exits_with_2_and_one_line(words: list[str], text: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert text in one_line(done.stderr)


def test_help_tells_of_every_subcommand() -> None:
    out = ended_well(run("--help")).decode()
    for word in ("serve", "dump", "conf", "demo", "-kong-prefix"):
        assert word in out
    for command in ("serve", "dump", "conf", "compatible"):
        assert b"--plugins-directory" in ended_well(run(command, "--help"))


def test_settings_come_from_the_environment_and_flags_win(plugins: Path, short_path: Path) -> None:
    from_environment = {
        "KONGPS_PLUGINS_DIRECTORY": str(plugins),
        "KONGPS_SOCKET": str(short_path / "environment.sock"),
        "KONGPS_SOCKET_MODE": "0640",
    }
    server = Process(short_path / "environment.sock", "serve", **from_environment)
    try:
        assert server.socket_path.stat().st_mode & 0o777 == 0o640
    finally:
        server.process.kill()
        server.end()
    flag = ["--socket-mode", "0600", "--socket", str(short_path / "flag.sock")]
    server = Process(short_path / "flag.sock", "serve", *flag, **from_environment)
    try:
        assert server.socket_path.stat().st_mode & 0o777 == 0o600
    finally:
        server.process.kill()
        server.end()


def test_a_wrong_environment_variable_is_named() -> None:
    done = run("serve", KONGPS_SHUTDOWN_TIMEOUT="soon")
    assert done.returncode == 2
    assert "KONGPS_SHUTDOWN_TIMEOUT='soon'" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "socket"),
    [
        (["-kong-prefix", "{prefix}", "-plugins-directory", "{plugins}"], "go_pluginserver.sock"),
        (["--kong-prefix", "{prefix}", "-d", "{plugins}", "-v"], "go_pluginserver.sock"),
        (
            ["-p", "{prefix}", "-d", "{plugins}", "--socket-name", "py.sock", "-g",
             "--listen-queue-size", "8", "--no-lua-style"],
            "py.sock",
        ),
        (["-p", "{prefix}", "-d", "{plugins}", "--socket-name", "py.sock", "-m"], "py.sock"),
    ],
)  # fmt: skip
def test_the_flags_of_older_servers_serve_below_the_prefix(
    plugins: Path, short_path: Path, words: list[str], socket: str
) -> None:
    given = [word.format(prefix=short_path, plugins=plugins) for word in words]
    server = Process(short_path / socket, *given)
    try:
        wire = Socket(short_path / socket)
        answer = wire.event(wire.start("hello"))
        assert answer["Data"]["Method"] == "kong.request.get_header"
        server.process.send_signal(signal.SIGTERM)
    finally:
        server.process.kill()
        server.end()


def test_without_a_name_the_socket_of_kong_python_pluginserver_is_there_too(
    plugins: Path, short_path: Path
) -> None:
    """A kong.conf for it names <prefix>/python_pluginserver.sock, its default."""
    server = Process(
        short_path / "python_pluginserver.sock",
        *("-kong-prefix", str(short_path), "-plugins-directory", str(plugins)),
    )
    try:
        for name in ("go_pluginserver.sock", "python_pluginserver.sock"):
            assert Socket(short_path / name).call("GetStatus", 0)["Pid"] == server.process.pid
        server.process.terminate()
        assert server.end() == 0
        assert not list(short_path.glob("*.sock"))
    finally:
        server.process.kill()


def conf(plugins: Path, *words: str) -> dict[str, str]:
    out = ended_well(run("conf", DIRECTORY, str(plugins), *words)).decode()
    rows = [line for line in out.splitlines() if not line.startswith("#")]
    return dict(row.split(" = ", 1) for row in rows)


def test_conf_for_kong_2_0_to_2_2_names_the_executable(plugins: Path) -> None:
    for version in ("2.0", "2.2.1"):
        settings = conf(plugins, "--kong", version)
        assert settings["plugins"] == "bundled,hello"
        assert settings["go_plugins_dir"] == str(plugins)
        assert settings["go_pluginserver_exe"].endswith("kongps")


def test_conf_for_kong_2_3_to_3_8_names_one_server(plugins: Path, short_path: Path) -> None:
    for version in ("2.3", "2.8.5", "3.0", "3.8"):
        settings = conf(plugins, "--kong", version, "--socket", str(short_path / "k.sock"))
        assert settings["pluginserver_names"] == "kongps"
        assert settings["pluginserver_kongps_socket"] == str(short_path / "k.sock")
        protocol = "msgpack" if version == "2.3" else "protobuf"
        assert settings["pluginserver_kongps_query_cmd"].endswith(f"--protocol {protocol}")


def test_conf_for_kong_3_9_names_each_plugin(plugins: Path, short_path: Path) -> None:
    write(plugins, "key-gate", "class Plugin:\n    def access(self, kong): ...\n")
    settings = conf(plugins, "--socket", str(short_path / "k.sock"))
    assert settings["plugins"] == "bundled,hello,key-gate"
    assert settings["pluginserver_names"] == "hello,key-gate"
    assert (
        settings["pluginserver_hello_socket"]
        == settings["pluginserver_key_gate_socket"]
        == str(short_path / "k.sock")
    )
    assert [name for name in settings if name.endswith("_start_cmd")] == [
        "pluginserver_hello_start_cmd"
    ]


def test_conf_refuses_plugins_whose_settings_would_be_the_same(plugins: Path) -> None:
    for name in ("key-gate", "key_gate"):
        write(plugins, name, "class Plugin:\n    def access(self, kong): ...\n")
    done = run("conf", DIRECTORY, str(plugins))
    assert done.returncode == 1
    assert "key-gate and key_gate" in one_line(done.stderr)


def test_the_commands_of_conf_work(plugins: Path, short_path: Path) -> None:
    write(plugins, "key-gate", "class Plugin:\n    def access(self, kong): ...\n")
    settings = conf(plugins, "--socket", str(short_path / "k.sock"))
    for plugin in ("hello", "key-gate"):
        _, *words = shlex.split(settings[f"pluginserver_{plugin.replace('-', '_')}_query_cmd"])
        (info,) = json.loads(ended_well(run(*words)))["Plugins"]
        assert info["Name"] == plugin
    _, *words = shlex.split(settings["pluginserver_hello_start_cmd"])
    server = Process(short_path / "k.sock", *words)
    server.process.kill()
    server.end()


def test_conf_refuses_what_is_no_version_with_plugin_servers(plugins: Path) -> None:
    for version in ("1.5", "latest"):
        done = run("conf", DIRECTORY, str(plugins), "--kong", version)
        assert done.returncode == 1
        assert version in one_line(done.stderr)


def test_lua_style_can_be_turned_off(short_path: Path) -> None:
    directory = short_path / "plugins"
    directory.mkdir()
    write(
        directory,
        "styled",
        """
        Schema = ()
        version = "1.0"
        priority = 0
        class Plugin(object):
            def __init__(self, config):
                self.config = config
            def access(self, kong):
                kong.log.notice(repr(kong.request.get_method()))
        """,
    )
    for number, (words, expected) in enumerate(
        ([[], "('GET', None)"], [["--no-lua-style"], "'GET'"])
    ):
        with serving(directory, short_path / f"{number}.sock", *words) as server:
            wire = server.connect()
            answer = wire.step(wire.event(wire.start("styled")), "GET")
            assert answer["Data"]["Args"] == [expected]


def test_output_into_a_closed_pipe_is_no_traceback(plugins: Path) -> None:
    from server_process import environment

    done = subprocess.run(
        f"{shlex.quote(os.sys.executable)} -m kongps dump {DIRECTORY} {plugins} | true",
        shell=True, env=environment(), capture_output=True, timeout=30,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
