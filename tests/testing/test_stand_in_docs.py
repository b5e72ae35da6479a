"""The examples of docs/testing.md work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT


def test_examples_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    plugin, *tests = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "door.py").write_text(plugin)
    (tmp_path / "test_door.py").write_text("\n".join(tests))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_door.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # One of them runs for three versions, one for two protocols.
    assert f"{len(re.findall('def test_', page)) + 3} passed" in done.stdout
