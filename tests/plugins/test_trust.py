"""Plugins that anyone but root and the server's user can write are not loaded."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import EXAMPLES
from server_process import run, serving

from kongps.errors import PluginError, ServerError
from kongps.plugins import trust
from kongps.plugins.loader import load_directory, load_plugin

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
    with pytest.raises(PluginError, match="can be written by everybody"):
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


@pytest.mark.parametrize("sticky", [False, True])
def test_a_linked_file_that_others_may_replace_is_refused(
    plugins: Path, short_path: Path, sticky: bool
) -> None:
    elsewhere = short_path / "elsewhere"
    (elsewhere / "inside").mkdir(parents=True)
    elsewhere.chmod(0o755)
    target = elsewhere / "inside" / "target.py"
    shutil.copy(EXAMPLES / "hello.py", target)
    target.chmod(0o644)
    target.parent.chmod(0o755)
    (plugins / "linked.py").symlink_to(target)
    assert set(load_directory(plugins, checked=True).plugins) == {"hello", "linked"}
    target.parent.chmod(0o1777 if sticky else 0o777)
    loaded = load_directory(plugins, checked=True)
    assert set(loaded.plugins) == {"hello"}
    (error,) = loaded.errors
    fix = "use another directory" if sticky else f"chmod go-w {target.parent}"
    assert f"{fix}, or allow it" in str(error)
    assert "linked" in load_directory(plugins).plugins
    target.parent.chmod(0o755)
    elsewhere.chmod(0o1777 if sticky else 0o777)
    loaded = load_directory(plugins, checked=True)
    assert ("linked" in loaded.plugins) is sticky  # nobody renames what another has in such a one
    assert sticky or f"chmod o-w {elsewhere}" in str(loaded.errors[0])


def test_a_link_that_others_may_replace_is_refused(plugins: Path, short_path: Path) -> None:
    """However many links there are, each counts."""
    public = short_path / "public"
    public.mkdir(mode=0o755)
    for name in ("target.py", "_package/__init__.py", "package/__init__.py"):
        (short_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / "hello.py", short_path / name)
        (short_path / name).chmod(0o644)
        (short_path / name).parent.chmod(0o755)
    (public / "link.py").symlink_to("../target.py")
    (public / "package").symlink_to(short_path / "package")
    (plugins / "linked.py").symlink_to("../public/link.py")
    (plugins / "package").symlink_to("../public/package")
    assert set(load_directory(plugins, checked=True).plugins) == {"hello", "linked", "package"}
    writable(public)
    loaded = load_directory(plugins, checked=True)
    assert set(loaded.plugins) == {"hello"}
    assert len(loaded.errors) == 2
    for error in loaded.errors:
        assert f"chmod o-w {public}" in str(error)


@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_in_one_that_others_may_write_is_refused(
    plugins: Path, short_path: Path, linked: bool
) -> None:
    directory = plugins
    writers = short_path
    if linked:
        writers = short_path / "public"
        writers.mkdir(mode=0o755)
        (writers / "plugins").symlink_to(plugins)
        directory = writers / "plugins"
    assert load_directory(directory, checked=True).plugins
    writable(writers)
    with pytest.raises(ServerError, match=rf"chmod o-w {writers}, or allow it"):
        load_directory(directory, checked=True)
    with pytest.raises(ServerError):
        load_plugin(directory, "hello", checked=True)
    assert load_directory(directory).plugins
    writers.chmod(writers.stat().st_mode | 0o1000)
    assert load_directory(directory, checked=True).plugins


@as_root
def test_whose_the_directories_further_up_are_does_not_count(
    plugins: Path, short_path: Path
) -> None:
    os.chown(short_path, 12345, 12345)
    short_path.chmod(0o775)
    assert load_directory(plugins, checked=True).plugins


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


def test_a_file_that_others_may_replace_is_not_run(plugins: Path, short_path: Path) -> None:
    """By its directory, by the one of a link to it, by one that they are in."""
    file = plugins / "hello.py"
    links = short_path / "links"
    links.mkdir(mode=0o755)
    (links / "hello.py").symlink_to(file)
    assert run("run", str(file), "--dump").returncode == 0
    assert run("run", str(links / "hello.py"), "--dump").returncode == 0
    for path, named, fix in (
        (file, plugins, "go-w"),
        (links / "hello.py", plugins, "go-w"),
        (links / "hello.py", links, "go-w"),
        (file, short_path, "o-w"),
    ):
        mode = named.stat().st_mode
        writable(named)
        refused = run("run", str(path), "--dump")
        assert refused.returncode == 1
        assert f"chmod {fix} {named}, or allow it with".encode() in refused.stderr
        assert refused.stderr.count(b"\n") == 1
        assert run("run", str(path), "--dump", FLAG).returncode == 0
        named.chmod(mode)


def test_no_remedy_changes_a_directory_that_has_to_be_everybodys(plugins: Path) -> None:
    plugins.chmod(0o1777)
    with pytest.raises(ServerError, match=r"everybody.*use another directory, or allow it"):
        load_directory(plugins, checked=True)
