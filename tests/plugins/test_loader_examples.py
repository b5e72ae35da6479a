"""The example plugins do what they say, run by the stand-in for Kong."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from paths import EXAMPLES

from kongps.errors import ConfigError
from kongps.plugins.loader import load_directory
from kongps.testing import Kong


def gateway(name: str, config: dict[str, Any] | None = None, **options: Any) -> Kong:
    return Kong(plugins_directory=EXAMPLES, plugins={name: config or {}}, **options)


def test_all_examples_load() -> None:
    loaded = load_directory(EXAMPLES)
    assert loaded.errors == []
    assert set(loaded.plugins) == {
        "async_gate",
        "hello",
        "hello_go",
        "hello_kong_pdk",
        "image",
        "key_gate",
        "log",
    }
    json.dumps([plugin.info() for plugin in loaded.plugins.values()])


@pytest.mark.parametrize("name", ["hello", "hello_go", "hello_kong_pdk"])
@pytest.mark.parametrize(("config", "said"), [({}, "hello"), ({"message": "bye"}, "bye")])
def test_hello_greets_in_every_layout(name: str, config: dict[str, Any], said: str) -> None:
    result = gateway(name, config).request("GET", "/", headers={"host": "example.com"})
    assert result.status == 200
    assert result.headers["x-hello-from-python"] == f"Python says {said} to example.com"
    assert result.headers["x-python-pid"] == str(os.getpid())


# log


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("reopen", [False, True])
def test_log_writes_each_request_and_follows_a_file_that_was_moved(
    reopen: bool, tmp_path: Path
) -> None:
    path = tmp_path / "requests.log"
    kong = gateway("log", {"path": str(path), "reopen": reopen})
    for uri in ("/one", "/two"):
        kong.request("GET", uri)
    assert [line["response"]["status"] for line in lines(path)] == [200, 200]
    assert "/one" in lines(path)[0]["request"]["uri"]
    path.rename(tmp_path / "moved.log")
    kong.request("GET", "/three")
    assert len(lines(path)) == 1
    assert len(lines(tmp_path / "moved.log")) == 2


def test_log_closes_its_file() -> None:
    plugin = load_directory(EXAMPLES).plugins["log"]
    handlers = plugin.new({"path": os.devnull})
    it = handlers["log"].__self__  # type: ignore[attr-defined]
    descriptor = it._opened()
    handlers["close"]()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    handlers["close"]()


# key_gate


def test_key_gate_asks_for_a_key() -> None:
    kong = gateway("key_gate", consumers=["alice"])
    for headers, message in (({}, "No key found"), ({"x-key": "bob"}, "Unauthorized")):
        result = kong.request("GET", "/", headers=headers)
        assert result.status == 401
        assert result.json() == {"message": message}
        assert result.headers["www-authenticate"] == 'Key realm="kong"'
        assert result.service_request is None
        assert result.consumer is None


def test_key_gate_lets_a_consumer_through() -> None:
    kong = gateway("key_gate", {"query_arg": "key"}, consumers=["alice"])
    for uri, headers in (("/", {"x-key": "alice"}), ("/?key=alice", {})):
        result = kong.request("GET", uri, headers=headers)
        assert result.status == 200
        assert result.consumer is not None
        assert result.consumer["username"] == "alice"
        assert result.service_request is not None
        assert result.service_request.headers["x-consumer-username"] == "alice"
    assert kong.request("GET", "/?key").status == 401


def test_key_gate_exempts_paths() -> None:
    kong = gateway("key_gate", {"exempt": ["/health"]})
    assert kong.request("GET", "/health").status == 200
    assert kong.request("GET", "/healthy").status == 401


# image


def test_image_answers_with_a_picture() -> None:
    result = gateway("image", {"size": 4, "colour": "red"}).request("GET", "/")
    assert result.status == 200
    assert result.headers["content-type"] == "image/png"
    assert result.body.startswith(b"\x89PNG\r\n\x1a\n")
    start = result.body.index(b"IDAT") + 4
    pixels = zlib.decompress(result.body[start:-16])
    assert pixels == (b"\x00" + b"\xd0\x20\x20" * 4) * 4


def test_image_refuses_a_size_out_of_bounds() -> None:
    plugin = load_directory(EXAMPLES).plugins["image"]
    with pytest.raises(ConfigError, match=r"config\.size: expected an integer between 1 and 512"):
        plugin.new({"size": 5000})
