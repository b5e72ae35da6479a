"""What is fuzzed: one function per target, bytes in, an exception for what must not happen.

They use what Python sees of the core, so that the suite runs them over the corpus with the core
as it is installed; ``run.py`` passes them to libFuzzer with a core that is instrumented.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import sys
from collections.abc import Iterator
from typing import Any, Callable

import msgpack
from codec_targets import msgpack_codec, protobuf_codec
from core_defaults import MAX_MESSAGE, new_dispatcher, new_session

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.dispatch.instance import Instance
from kongps.core.wire.function import registered
from kongps.core.wire.msgpack_rpc import MsgPackRPC
from kongps.core.wire.protobuf import encode_message
from kongps.core.wire.protobuf_rpc import ProtobufRPC
from kongps.core.wire.protocol import Protocol
from kongps.core.wire.tables import RPCS
from kongps.errors import PackError, PDKError, ProtocolError
from kongps.plugins.layouts import TYPED
from kongps.plugins.plugin import Placed, Plugin
from kongps.server.commands import Commands
from kongps.server.instances import Instances
from kongps.server.placement import Placement
from kongps.settings import Settings

# Set by run.py: moves received bytes to memory that ends where they end, so that the address
# sanitizer sees a read behind them.
exact: Callable[[Protocol], object] = id

# Most bytes that one input may make the server send, per byte that came, beyond a constant: an
# input that costs more than it is has found a way to make the server work for it.
MOST_PER_BYTE, MOST_PER_INPUT = 64, 1 << 20

FUNCTION_NAMES = tuple(sorted(RPCS))


# --- the protocols ----------------------------------------------------------------------------


def msgpack_protocol(data: bytes) -> None:
    """The same calls, however the bytes are cut; every answer is a message."""
    if not data:
        return
    whole, how = _calls(MsgPackRPC(MAX_MESSAGE), (data[1:],))
    assert _calls(MsgPackRPC(MAX_MESSAGE), _cut(data[1:], data[0])) == (whole, how)
    protocol = MsgPackRPC(MAX_MESSAGE)
    for kind, sequence, target, _, _, value in whole:
        if kind == "handle_event":
            protocol.send_return(sequence, target)
        elif kind == "invalid":
            protocol.send_error(sequence, value)
        else:
            with contextlib.suppress(PackError, RecursionError):
                protocol.send_result(sequence, value)
    count = _count_messages(protocol.data_to_send())
    assert count <= len(whole), (count, whole)


def protobuf_protocol(data: bytes) -> None:
    """The same calls, however the bytes are cut: as calls, and as answers to a PDK function."""
    if len(data) < 2:
        return
    asked = data[1]
    for unanswered in (False, True):

        def fresh(unanswered: bool = unanswered) -> ProtobufRPC:
            protocol = ProtobufRPC(MAX_MESSAGE)
            if unanswered:
                _ask(protocol, asked)
            return protocol

        whole = _calls(fresh(), (data[2:],))
        assert _calls(fresh(), _cut(data[2:], data[0])) == whole


def _ask(protocol: ProtobufRPC, number: int) -> None:
    event = {"cmd_handle_event": {"instance_id": 1, "event_name": "access"}}
    protocol.receive_data(_frame(encode_message("RpcCall", event)))
    assert protocol.next() is not None
    name = FUNCTION_NAMES[number % len(FUNCTION_NAMES)]
    for args in (("a",), ("a", "b"), (1,), ({},), (["a"],), (200, "a", {}), ()):
        try:
            protocol.send_pdk_call(1, 7, name, args)
            return
        except (TypeError, ValueError, PDKError, AttributeError, IndexError):
            continue


def _cut(data: bytes, how: int) -> Iterator[bytes]:
    """Pieces of data; `how` is their length, if that makes few enough."""
    # At most sixteen: what is saved is spent on more inputs.
    step = max(1, how, len(data) // 16)
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _calls(protocol: Protocol, pieces: Any) -> tuple[list[tuple[Any, ...]], bool]:
    """The calls that some bytes make, and whether they end in a protocol error."""
    calls: list[tuple[Any, ...]] = []
    try:
        for piece in pieces:
            protocol.receive_data(piece)
            exact(protocol)
            while (call := protocol.next()) is not None:
                value = call.value
                calls.append(
                    (call.kind, call.sequence, call.target, call.phase, call.method,
                     repr(value) if isinstance(value, (dict, list, float)) else value)
                )  # fmt: skip
                if isinstance(protocol, ProtobufRPC):  # it has one call at a time
                    if call.kind == "command":
                        protocol.send_result(call.sequence, None)
                    else:
                        protocol.send_return(call.sequence, 1)
    except ProtocolError:
        return calls, True
    return calls, False


def _count_messages(data: bytes) -> int:
    """How many answers some bytes are; each is looked at, results as little as can be."""
    feed = msgpack.Unpacker(
        unicode_errors="surrogateescape", max_buffer_size=1 << 30, read_size=4096
    )
    feed.feed(data)
    count = 0
    while feed.tell() < len(data):
        assert feed.read_array_header() == 4
        assert feed.unpack() == 1
        feed.skip()
        assert isinstance(feed.unpack(), (str, type(None)))
        feed.skip()
        count += 1
    return count


# --- sessions: a dispatcher, plugins, several connections ---------------------------------------
#
# An input is pieces behind the mark: a byte with what is to happen and to which of four
# connections, and data. Before the first mark stands what the first connection gets.

MARK = b"\xc1\xc1"
SEND, FRAME, ANSWER, LOST, NEW, ABANDON = range(6)

# Answers to PDK calls go back into it: what Kong sends is what the plugin passes to Kong.
ECHOES = ("kong.ctx.shared.set", "kong.service.request.set_header", "kong.response.set_header")


class _SessionPlugin(Plugin):
    """A plugin of the sessions: each does something else."""

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        name = handler.__name__
        super().__init__(
            name, version="1", priority=1, schema={"name": name, "fields": []}, make=dict,
            handlers={"access": "access"}, pdk=TYPED, place=lambda: Placed("inline", ""),
        )  # fmt: skip
        self.handler = handler

    def new(self, config: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
        if "raises" in config:
            raise ValueError(config["raises"])
        return {"access": self.handler, "log": self.handler}


def _asks(kong: Any) -> None:
    for name, args in (
        ("kong.request.get_header", ("host",)),
        ("kong.request.get_headers", (5,)),
        ("kong.request.get_query", ()),
        ("kong.request.get_query_arg", ("a",)),
        ("kong.request.get_uri_captures", ()),
        ("kong.request.get_raw_body", ()),
        ("kong.client.load_consumer", ("a", True)),
        ("kong.ctx.shared.get", ("a",)),
        ("kong.router.get_service", ()),
        ("kong.node.get_memory_stats", ()),
    ):
        with contextlib.suppress(PDKError):
            value = kong._call(name, *args)
            with contextlib.suppress(TypeError):
                kong._call("kong.ctx.shared.set", "a", value)


def _sets(kong: Any) -> None:
    for name in ("kong.service.request.set_header", "kong.response.set_header"):
        with contextlib.suppress(PDKError, TypeError):
            kong._call(name, "x-a", kong._call("kong.request.get_method"))
    kong.log.notice("a", "b")
    kong._call("kong.response.get_status")


def _exits(kong: Any) -> None:
    try:
        kong._call("kong.service.request.set_header", "x", "y")
        kong._call("kong.response.exit", 403, kong._call("kong.request.get_raw_body"))
    finally:
        with contextlib.suppress(PDKError):
            kong._call("kong.request.get_path")


def _raises(kong: Any) -> None:
    kong._call("kong.request.get_path")
    raise RecursionError


def _forgets(kong: Any) -> None:
    """Keeps on asking whatever comes, for as long as it is allowed to."""
    for _ in range(50):
        try:
            kong._call("kong.request.get_headers", 3)
        except Exception:
            continue


HANDLERS = (_asks, _sets, _exits, _raises, _forgets)
_PLACEMENT = Placement(None, Settings(handlers="inline"))
_PLUGINS: Any = {handler.__name__: _SessionPlugin(handler) for handler in HANDLERS}


@contextlib.contextmanager
def _random_numbers(numbers: Iterator[int]) -> Iterator[None]:
    was = secrets.randbelow
    secrets.randbelow = lambda most: next(numbers)
    try:
        yield
    finally:
        secrets.randbelow = was


@contextlib.contextmanager
def _counted_ids() -> Iterator[None]:
    """Ids that an input can know: events count from 1, instances that Kong starts from 100."""
    with _random_numbers(itertools.count(99)):
        yield


def _dispatcher() -> Dispatcher:
    with _random_numbers(itertools.repeat(0)):
        dispatcher = new_dispatcher(_PLACEMENT.inline)
    instances = Instances(dispatcher, _PLUGINS, {}, _PLACEMENT, max_instances=1000, call_later=None)
    Commands(instances, int, "")
    for id, plugin in enumerate(_PLUGINS.values(), 1):
        dispatcher.add_instance(Instance(id, plugin, {}, 0.0, plugin.new({})))
    dispatcher.add_instance(Instance(6, plugin, {}, 0.0, {}, "it did not start"))
    return dispatcher


class _Peer:
    """One connection, and what it was sent."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.session = new_session(dispatcher)
        self.closed = False
        self.out = b""

    def send(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            self.session.receive_data(data)
        except ProtocolError:
            self.close()
            return
        self.out += self.session.data_to_send()
        if self.session.closing:
            self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.out += self.session.data_to_send()
            self.session.connection_lost()

    def check(self) -> None:
        protocol = self.session.protocol
        if protocol is None:
            assert self.out == b""
        elif protocol.name == "MsgPack:1":
            _count_messages(self.out)
        else:
            data = self.out
            while data:
                length = int.from_bytes(data[:4], sys.byteorder)
                assert 4 + length <= len(data), self.out
                data = data[4 + length :]


def sessions(data: bytes) -> None:
    """Nothing is raised but protocol errors, answers are well formed, and nothing stays behind."""
    pieces = data.split(MARK)
    with _counted_ids():
        dispatcher = _dispatcher()
        peers = [_Peer(dispatcher) for _ in range(4)]
        done = []
        peers[0].send(pieces[0])
        for piece in pieces[1:64]:
            if not piece:
                continue
            number, what = piece[0] & 3, (piece[0] >> 2) % 6
            peer = peers[number]
            if what == SEND:
                peer.send(piece[1:])
            elif what == FRAME:
                peer.send(_frame(piece[1:]))
            elif what == ANSWER:  # byte by byte, as a slow peer does
                for byte in _cut(_frame(piece[1:]), 1):
                    peer.send(byte)
            elif what == ABANDON:
                dispatcher.abandon_all_events()
            else:
                peer.close()
                if what == NEW:
                    done.append(peer)
                    peers[number] = _Peer(dispatcher)
        for peer in (*done, *peers):
            peer.close()
            peer.check()
        sent = sum(len(peer.out) for peer in (*done, *peers))
        assert sent <= MOST_PER_INPUT + MOST_PER_BYTE * len(data), (sent, len(data))
        dispatcher.abandon_all_events()
        assert dispatcher.live_events == 0


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, sys.byteorder) + data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "msgpack-codec": msgpack_codec,
    "protobuf-codec": protobuf_codec,
    "msgpack-protocol": msgpack_protocol,
    "protobuf-protocol": protobuf_protocol,
    "sessions": sessions,
}

# The table of PDK functions must be there before anything is asked.
assert all(plugin.kong for plugin in _PLUGINS.values())
assert registered()
