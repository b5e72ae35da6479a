"""Every error that kongps raises, in one tree.

``KongpsError`` is the base. What reaches a plugin's code is a :class:`PDKError`; what keeps a
plugin from being served is a :class:`PluginError` (:class:`CompatError` when a compiled file does
not fit what is running), or for one instance a :class:`ConfigError`; what keeps the server from
running is a :class:`ServerError`. Two are no errors and stand beside the tree, as ``SystemExit``
stands beside ``Exception``: :class:`HandlerExit` and :class:`HandlerTimeout` end a handler.

This module imports nothing of kongps, so that everything else can import it.
"""

from __future__ import annotations

from typing import ClassVar, Optional


class KongpsError(Exception):
    """Base of all errors of kongps."""


# A plugin's code


class PDKError(KongpsError):
    """A PDK function failed: Kong answered with an error, or the call could not be made.

    :ivar function: the PDK function's full name, such as ``kong.request.get_header``.
    :ivar reason: what Kong answered, or why the call was not sent.
    """

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(function, reason)
        self.function = function
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.function}: {self.reason}"


class NativeError(KongpsError):
    """A native plugin's handler or constructor reported that it failed, and why."""


class HandlerExit(BaseException):
    """Ends a handler whose event is over: after ``kong.response.exit``, or abandoned by Kong.

    It derives from BaseException, so that a handler's ``except Exception`` does not catch it.
    """


class HandlerTimeout(BaseException):
    """Ends a handler that has held the loop's thread for longer than ``--handler-timeout``.

    It derives from BaseException, so that a handler's ``except Exception`` does not catch it.
    """


# What Kong sends, and what is sent to it


class ProtocolError(KongpsError):
    """What a peer sent is not the protocol; its connection has to be closed."""


class PackError(KongpsError, ValueError):
    """A value cannot be written as MessagePack; the message says which and why."""


class UnpackError(KongpsError, ValueError):
    """Bytes are not MessagePack, or exceed one of the codec's limits."""


class AnswerError(KongpsError):
    """Kong answered a PDK function with an error; the text is its message."""


class NoInstance(KongpsError):
    """Kong names an instance that the server does not have.

    Kong starts the instance again when an answer begins with these words, and only then.

    :ivar id: the instance's id; None when the call has none that could be an instance's.
    """

    def __init__(self, id: Optional[int] = None, reason: str = "") -> None:
        number = "" if id is None else f" {id}"
        super().__init__(f"No plugin instance{number}{reason and f': {reason}'}")
        self.id = id


class FieldError(KongpsError):
    """The base of what concerns one field of a configuration.

    :ivar path: the field, such as ``config.limits[0].minute``; never its value.
    :ivar reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ConfigError(FieldError):
    """A plugin's structure refused a configuration; the reason says what was expected there."""


# Loading plugins


class PluginError(KongpsError):
    """A plugin cannot be loaded.

    :ivar plugin: the plugin's name.
    :ivar reason: one sentence: what is wrong, where (file and line), and how to fix it.
    """

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(plugin, reason)
        self.plugin = plugin
        self.reason = reason

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}: {self.reason}"


class PluginNameError(PluginError):
    """A plugin's name breaks Kong's rules for plugin names."""


class SchemaError(KongpsError, ValueError):
    """A plugin's own schema is not a schema of Kong's."""


class UnsupportedType(FieldError, TypeError):
    """A structure has a field that a configuration of Kong's cannot fill.

    The path is in the datastore's names; the reason says what to do, too.
    """


# Compiled files


class BuildError(KongpsError):
    """A plugin cannot be compiled; the compiler's messages are on stderr."""


class NotELF(KongpsError, ValueError):
    """The file is neither an ELF library nor an ELF program."""


class Truncated(KongpsError, ValueError):
    """The file ends before what its headers promise."""


class CompatError(PluginError):
    """A compiled file and what runs do not match.

    :ivar plugin: the plugin's name; ``kongps`` for the core itself.
    :ivar what: what the file is.
    :ivar built_for: what it was built for, or what it holds.
    :ivar running: what is running, or what is needed.
    :ivar problem: all of that in one sentence.
    :ivar remedy: the command that fixes it, or what to do.

    The subclasses have two class attributes, from which the table of ``docs/versions.md`` is
    made: ``must_match``, what the check is about, and ``fixed_by``.
    """

    must_match: ClassVar[str] = ""
    fixed_by: ClassVar[str] = ""
    form: ClassVar[str] = "{what}: it is built for {built_for}; running is {running}"
    remedy_form: ClassVar[str] = "fix it with"

    def __init__(self, plugin: str, what: str, built_for: str, running: str, remedy: str) -> None:
        self.problem = self.form.format(what=what, built_for=built_for, running=running)
        self.what = what
        self.built_for = built_for
        self.running = running
        self.remedy = remedy
        super().__init__(plugin, f"{self.problem}; {self.remedy_form}: {remedy}")


class WrongFile(CompatError):
    """A mismatch that is not about what a file was built for, but about what it is."""

    form = "{what}: {built_for}; {running}"


class OtherPython(CompatError):
    """It was compiled for another Python: another version, or another implementation."""

    must_match = "the Python version, such as 3.11, and the implementation, CPython"
    fixed_by = "`kongps rebuild DIR` with the Python that runs kongps"


class DebugBuild(CompatError):
    """It was compiled for a debug build of Python and this is none, or the other way round."""

    must_match = "debug build or not"
    fixed_by = "`kongps rebuild DIR` with the Python that runs kongps"


class FreeThreadedBuild(CompatError):
    """It was compiled for a free-threaded Python and this is none, or the other way round."""

    must_match = "free-threaded build or not"
    fixed_by = "`kongps rebuild DIR` with the Python that runs kongps"


class OtherArchitecture(CompatError):
    """It was compiled for another processor."""

    must_match = "the processor, such as x86_64 or aarch64"
    fixed_by = "`kongps rebuild DIR` on a machine of this architecture"


class OtherLibc(CompatError):
    """It was linked with another C library: glibc here, musl there."""

    must_match = "the C library, glibc or musl"
    fixed_by = "`kongps rebuild DIR` on the machine that runs kongps, or one like it"


class LibcTooOld(CompatError):
    """It needs a newer glibc than the one that is running."""

    must_match = "glibc, at least as new as where the plugin was built"
    fixed_by = "`kongps rebuild DIR` on the machine that runs kongps, or an older one"


class PluginAPITooOld(CompatError):
    """It was built against a plugin API that this kongps no longer has."""

    must_match = "the plugin API of kongps, not too old"
    fixed_by = "`kongps rebuild DIR`"


class PluginAPITooNew(CompatError):
    """It was built against a plugin API that this kongps does not have yet."""

    must_match = "the plugin API of kongps, not newer than kongps'"
    fixed_by = "`python -m pip install --upgrade kongps`, or `kongps rebuild DIR` with this one"


class NotALibrary(WrongFile):
    """It has the name of a compiled plugin, but is no shared library."""

    must_match = "the kind of file: an ELF shared library"
    fixed_by = "`kongps rebuild DIR` or `kongps build SOURCE`; copy the whole file again"


class TruncatedFile(WrongFile):
    """The file is cut off: a copy that was not finished."""

    must_match = "the whole file"
    fixed_by = "`kongps rebuild DIR`, or copying it again"


class NotAPlugin(WrongFile):
    """It exports neither what Python looks for in a module of its name nor a native plugin's table.

    A module has the name it was compiled with: renaming the file does not rename the plugin.
    """

    must_match = "the exported symbol: `PyInit_NAME`, or `kongps_plugin` of a native plugin"
    fixed_by = "`kongps build SOURCE`; giving the file the name that it was compiled with"


class LibraryMissing(WrongFile):
    """It needs a shared library that this machine does not have."""

    must_match = "the shared libraries that the plugin is linked with"
    fixed_by = "installing the library, or naming its directory in LD_LIBRARY_PATH"


class SourceChanged(WrongFile):
    """The source beside it is not the one that it was compiled from."""

    must_match = "a source in the plugins directory and what was compiled from it"
    fixed_by = "`kongps rebuild DIR`"


class SeveralFiles(WrongFile):
    """Two files are the same plugin."""

    must_match = "one file per plugin, or a compiled one and its source"
    fixed_by = "removing or renaming one of them"


class CoreMismatch(CompatError, ImportError):
    """The compiled core of kongps does not fit this interpreter; ``import kongps`` raises it."""

    must_match = "kongps' own compiled core and the interpreter"
    fixed_by = "installing kongps with the interpreter that is to run it"
    form = "{what} has no compiled core for this interpreter, {running}, only for {built_for}"
    remedy_form = "build it with"

    def __str__(self) -> str:
        return self.reason


# The server and its commands


class ServerError(KongpsError):
    """The server cannot start or go on: a socket in use, a directory missing, a bad setting."""


class DescriptorLost(KongpsError):
    """Raised by a call of the event loop: plugin code has closed what the process needs.

    The loop ends, and the process with it. The text names what was closed.
    """


class UsageError(KongpsError):
    """The command line or the environment asks for something that does not exist."""
