from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import protobuf_oracle
import pytest
from paths import EXAMPLES


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="kps"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def plugins(short_path: Path) -> Path:
    """A plugins directory with the hello example in it."""
    directory = short_path / "plugins"
    directory.mkdir()
    shutil.copy(EXAMPLES / "hello.py", directory)
    return directory


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Google's codec with the messages of ProtoBuf:1 compiled in."""
    protobuf_oracle.compile_messages(tmp_path_factory.mktemp("proto"))
    return protobuf_oracle
