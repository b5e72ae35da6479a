"""Refuses plugins that anyone but root and the server's user can write.

Whoever can write a plugin can do what the server can: read requests, and the secrets in
configurations. So can whoever can replace the file, or a directory on the way to it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator

__all__ = ["refused", "refused_entries", "refused_file"]

# What Python imports; other files of a plugins directory are data.
_CODE = (".py", ".pyc", ".so")


def refused(path: str) -> str | None:
    """Why plugins must not be loaded from a file or directory, and the fix; None when they may be.

    :param path: a link stands for what it leads to.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        who, fix = f"its owner {_user(found.st_uid)}", f"chown {_user(os.geteuid())} {path}"
    elif mode & 0o002 and mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode):
        who, fix = "everybody", "use another directory"  # /tmp has to stay as it is
    elif mode & 0o002:
        who, fix = "everybody", f"chmod go-w {path}"
    elif mode & 0o020 and not _is_private(found.st_gid):
        who, fix = f"the group {_name(grp.getgrgid, found.st_gid, 'gr_name')}", f"chmod g-w {path}"
    else:
        return None
    trusted = " and ".join(dict.fromkeys(("root", _user(os.geteuid()))))
    return f"{path} can be written by {who}, not only by {trusted}; {_fix(fix)}"


def refused_file(path: str) -> str | None:
    """As :func:`refused`, for a file that is run by itself: the directories around it count too."""
    return (
        refused(path)
        or refused(os.path.dirname(os.path.abspath(path)))
        or refused(os.path.dirname(os.path.realpath(path)))
        or _refused_above(path)
    )


def refused_entries(directory: str) -> Iterator[tuple[str, str]]:
    """The entries of a plugins directory that must not be loaded, and why.

    :param directory: the plugins directory; its own entry is "".
    :raises OSError: when it cannot be read.
    """
    reason = refused(directory) or _refused_above(directory)
    if reason is not None:
        yield "", reason
    for name in sorted(os.listdir(directory)):
        for reason in _refused_below(os.path.join(directory, name), set()):
            yield name, reason


def _refused_above(path: str) -> str | None:
    """Why someone else could replace a directory on the way to a path; None when nobody could.

    Only directories that everybody can write count: in many containers, owners and groups further
    up are unusual.
    """
    for place in _on_the_way(path):
        try:
            mode = os.stat(place).st_mode
        except OSError as error:
            return f"{place} cannot be read: {error.strerror}"
        if mode & 0o002 and not mode & stat.S_ISVTX:
            return (
                f"{place}, on the way to {path}, can be written by everybody; "
                f"{_fix(f'chmod o-w {place}')}"
            )
    return None


def _on_the_way(path: str) -> dict[str, None]:
    """The directories that the system goes through to open a path, links followed."""
    places: dict[str, None] = {}
    here = os.sep
    parts = os.path.abspath(path).split(os.sep)[::-1]
    while parts:
        part = parts.pop()
        places[here] = None
        following = os.path.normpath(os.path.join(here, part))
        if os.path.islink(following):
            link = os.readlink(following)
            parts += link.split(os.sep)[::-1]
            here = os.sep if os.path.isabs(link) else here
        else:
            here = following
    return places


def _fix(command: str) -> str:
    return f"{command}, or allow it with --allow-unsafe-plugins"


def _refused_below(path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    if os.path.basename(path).startswith("."):
        return
    if not os.path.isdir(path):
        if path.endswith(_CODE):
            reason = refused(path)
            if reason is None and os.path.islink(path):
                reason = refused(os.path.dirname(os.path.realpath(path))) or _refused_above(path)
            if reason is not None:
                yield reason
        return
    found = os.stat(path)
    if (found.st_dev, found.st_ino) in seen:  # a link to a directory around it
        return
    seen.add((found.st_dev, found.st_ino))
    reason = refused(path) or (_refused_above(path) if os.path.islink(path) else None)
    if reason is not None:
        yield reason
    for name in sorted(os.listdir(path)):
        yield from _refused_below(os.path.join(path, name), seen)


def _is_private(group: int) -> bool:
    """Whether a group exists for one user alone: root, or the server's own.

    Systems that give each user such a group let it write the user's files by default.
    """
    try:
        entry = grp.getgrgid(group)
        owner = pwd.getpwnam(entry.gr_name)
    except KeyError:
        return False
    return (
        owner.pw_gid == group
        and owner.pw_uid in (0, os.geteuid())
        and set(entry.gr_mem) <= {entry.gr_name}
    )


def _user(number: int) -> str:
    return _name(pwd.getpwuid, number, "pw_name")


def _name(find: Callable[[int], object], number: int, attribute: str) -> str:
    """The name of a user or group; the number without one."""
    try:
        return str(getattr(find(number), attribute))
    except KeyError:
        return str(number)
