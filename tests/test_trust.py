"""Plugins that others may write are not loaded."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import EXAMPLES
from wire import run, serving

from kongps import trust
from kongps.errors import PluginError, ServerError
from kongps.loader import load_directory, load_plugin

FLAG = "--allow-unsafe-plugins"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def closed(plugins: Path) -> None:
    """Whatever the umask and the checkout are: nobody else may write the plugins."""
    for path in (plugins, *plugins.iterdir()):
        path.chmod(path.stat().st_mode & ~0o022)


def writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: directory,
        lambda directory: directory / "_shared.py",
        lambda directory: directory / "_shared",
        lambda directory: directory / "data",
        lambda directory: directory / "__pycache__",
        lambda directory: directory / "__pycache__" / "hello.cpython-311.pyc",
    ],
    ids=["itself", "a shared module", "a shared package", "a directory", "caches", "a cache"],
)
def test_a_directory_that_others_may_write_is_refused(
    plugins: Path, make: Callable[[Path], Path]
) -> None:
    path = make(plugins)
    path.parent.mkdir(exist_ok=True, mode=0o755)
    if not path.exists():
        path.touch() if path.suffix else path.mkdir(mode=0o755)
    assert load_directory(plugins, checked=True).plugins
    writable(path)
    with pytest.raises(ServerError, match=rf"everybody.*chmod go-w {path}, or allow it"):
        load_directory(plugins, checked=True)
    with pytest.raises(ServerError):
        load_plugin(plugins, "hello", checked=True)
    assert load_directory(plugins).plugins
    path.chmod(path.stat().st_mode & ~0o022)
    assert load_directory(plugins, checked=True).plugins


@pytest.mark.parametrize("inside", ["", "__init__.py", "sub/module.py", "sub"])
def test_a_plugin_that_others_may_write_is_refused_and_others_are_loaded(
    plugins: Path, inside: str
) -> None:
    package = plugins / "package"
    (package / "sub").mkdir(parents=True)
    shutil.copy(EXAMPLES / "hello.py", package / "__init__.py")
    (package / "sub" / "module.py").touch()
    for each in (package, package / "sub", package / "__init__.py", package / "sub" / "module.py"):
        each.chmod(each.stat().st_mode & ~0o022)
    assert set(load_directory(plugins, checked=True).plugins) == {"hello", "package"}
    writable(package / inside)
    loaded = load_directory(plugins, checked=True)
    assert set(loaded.plugins) == {"hello"}
    (error,) = loaded.errors
    assert f"chmod go-w {package / inside}" in str(error).replace(f"{package}/ ", f"{package} ")
    with pytest.raises(PluginError, match="may be written by everybody"):
        load_plugin(plugins, "package", checked=True)
    assert load_plugin(plugins, "hello", checked=True).name == "hello"


def test_what_is_no_code_may_be_anybodys(plugins: Path) -> None:
    for name in ("notes.txt", ".hidden.py"):
        (plugins / name).touch()
        writable(plugins / name)
    assert load_directory(plugins, checked=True).plugins


def test_what_a_link_leads_to_is_what_counts(plugins: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.py"
    shutil.copy(EXAMPLES / "hello.py", target)
    target.chmod(0o644)
    (plugins / "linked.py").symlink_to(target)
    (plugins / "_around").symlink_to(plugins)
    assert set(load_directory(plugins, checked=True).plugins) == {"hello", "linked"}
    (plugins / "_around").unlink()
    writable(target)
    assert set(load_directory(plugins, checked=True).plugins) == {"hello"}


@as_root
def test_a_file_of_another_user_is_refused(plugins: Path) -> None:
    os.chown(plugins / "hello.py", 12345, 0)
    (error,) = load_directory(plugins, checked=True).errors
    assert "its owner 12345" in str(error)
    assert f"chown root {plugins / 'hello.py'}" in str(error)
    os.chown(plugins, 12345, 0)
    with pytest.raises(ServerError, match="its owner 12345"):
        load_directory(plugins, checked=True)


@pytest.mark.parametrize(
    ("members", "group", "fine"),
    [
        ([], "kong", True),  # the user's own group
        (["kong"], "kong", True),
        (["kong", "eve"], "kong", False),
        ([], "staff", False),
        ([], None, False),
    ],
)
def test_a_group_may_write_when_it_is_the_users_own(
    plugins: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: list[str],
    group: str | None,
    fine: bool,
) -> None:
    file = plugins / "hello.py"
    file.chmod(0o664)
    own = file.stat()

    def getgrgid(number: int) -> object:
        if group is None:
            raise KeyError(number)
        return SimpleNamespace(gr_name=group, gr_mem=members)

    def getpwnam(name: str) -> object:
        if name != "kong":
            raise KeyError(name)
        return SimpleNamespace(pw_uid=os.geteuid(), pw_gid=own.st_gid)

    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    reason = trust.refused(str(file))
    assert (reason is None) is fine
    if reason is not None:
        assert f"chmod g-w {file}" in reason


def test_every_command_refuses_such_a_directory_unless_told_otherwise(
    plugins: Path, short_path: Path
) -> None:
    writable(plugins)
    path = str(short_path / "k.sock")
    where = ("--plugins-directory", str(plugins))
    for words in (
        ("serve", *where, "--socket", path),
        ("dump", *where),
        ("dump", *where, "hello"),
        ("conf", *where),
        ("-plugins-directory", str(plugins), "-dump-plugin-info", "hello"),
        ("-plugins-directory", str(plugins), "-dump-all-plugins"),
    ):
        refused = run(*words)
        assert refused.returncode == 1
        assert f"chmod go-w {plugins}".encode() in refused.stderr
        assert refused.stderr.count(b"\n") == 1
        if words[0] != "serve":
            assert run(*words, FLAG).returncode == 0
            assert run(*words, KONGPS_ALLOW_UNSAFE_PLUGINS="1").returncode == 0
    with serving(plugins, Path(path), FLAG) as server:
        assert server.connect().event(server.connect().start("hello"))


def test_a_plugin_that_others_may_write_fails_its_requests(plugins: Path, short_path: Path) -> None:
    writable(plugins / "hello.py")
    with serving(plugins, short_path / "k.sock") as server:
        assert f"chmod go-w {plugins / 'hello.py'}" in server.text()
        wire = server.connect()
        assert wire.event(wire.start("hello"))["Data"]["Method"] == "kong.response.exit"


def test_a_file_that_others_may_write_is_not_run(plugins: Path) -> None:
    file = plugins / "hello.py"
    writable(file)
    refused = run("run", str(file), "--dump")
    assert refused.returncode == 1
    assert b"chmod go-w" in refused.stderr
    assert run("run", str(file), "--dump", FLAG).returncode == 0
