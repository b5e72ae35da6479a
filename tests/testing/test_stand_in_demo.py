"""``kongps demo`` shows the examples at work and notices when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import EXAMPLES

from kongps.cli import demo


@pytest.mark.parametrize("version", ["2.0", "2.8", "3.9"])
def test_demo(version: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = demo.main(["--examples", str(EXAMPLES), "--kong", version])
    output, errors = capfd.readouterr()
    assert code == 0, errors
    assert errors == ""
    assert "\x1b" not in output
    assert 'kong.request.get_header("host")' in output
    assert "x-hello-from-python: Python says good morning to example.test" in output
    assert "401 Unauthorized" in output
    assert "7 requests, " in output
    compared = "The same requests over both protocols" in output
    assert compared == (version != "2.0")
    assert ("ProtoBuf:1" in output) == compared
    assert all(len(line) < 140 for line in output.splitlines())


def test_demo_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--examples", str(tmp_path)]) == 1
    assert "hello" in capfd.readouterr().err

    for path in EXAMPLES.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wrong = (tmp_path / "hello.py").read_text().replace("Python says", "Nobody says")
    (tmp_path / "hello.py").write_text(wrong)
    assert demo.main(["--examples", str(tmp_path)]) == 1
    error = capfd.readouterr().err
    assert error == "kongps demo: hello, GET /greet: expected a header x-hello-from-python\n"
    assert demo.main(["--examples", str(tmp_path / "nothing")]) == 1
    assert demo.main(["--kong", "new"]) == 1
