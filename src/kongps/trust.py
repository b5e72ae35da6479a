"""Whether files may be run as plugins: nobody but root and the server's user may write them.

Whoever writes a plugin is the server: sees its requests, and the secrets in its configurations.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

__all__ = ["refused", "refused_entries"]

# What Python imports; other files of a plugins directory are data.
_CODE = (".py", ".pyc", ".so")


def refused(path: str) -> str | None:
    """Why a file or a directory may not be run, and the command that mends it; None when it may.

    :param path: what it links to is what counts.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        who, mend = f"its owner {_user(found.st_uid)}", f"chown {_user(os.geteuid())}"
    elif mode & 0o002:
        who, mend = "everybody", "chmod go-w"
    elif mode & 0o020 and not _is_private(found.st_gid):
        who, mend = f"the group {_group(found.st_gid)}", "chmod g-w"
    else:
        return None
    trusted = " and ".join(dict.fromkeys(("root", _user(os.geteuid()))))
    return (
        f"{path} may be written by {who}, not only by {trusted}; "
        f"{mend} {path}, or allow it with --allow-unsafe-plugins"
    )


def refused_entries(directory: str) -> Iterator[tuple[str, str]]:
    """What may not be run of a plugins directory: the entry that it is or is in, and why.

    :param directory: the plugins directory; its own entry is "".
    :raises OSError: when it cannot be read.
    """
    reason = refused(directory)
    if reason is not None:
        yield "", reason
    for name in sorted(os.listdir(directory)):
        for reason in _refused_below(os.path.join(directory, name), set()):
            yield name, reason


def _refused_below(path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    if os.path.basename(path).startswith("."):
        return
    if not os.path.isdir(path):
        if path.endswith(_CODE):
            reason = refused(path)
            if reason is not None:
                yield reason
        return
    found = os.stat(path)
    if (found.st_dev, found.st_ino) in seen:  # a link to a directory that it is in
        return
    seen.add((found.st_dev, found.st_ino))
    reason = refused(path)
    if reason is not None:
        yield reason
    for name in sorted(os.listdir(path)):
        yield from _refused_below(os.path.join(path, name), seen)


def _is_private(group: int) -> bool:
    """Whether a group is only there for one user: root, or the server's own.

    Systems that give each user such a group let it write the user's files by default.
    """
    import grp
    import pwd

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
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
