"""The servers that can be measured: the floor, kongps, and what people would use instead.

A further peer is a module here with a subclass of ``Peer`` and a line in ``all_peers``.
"""

from __future__ import annotations

from pathlib import Path

from peers.base import Launch, MissingPeer, Peer
from peers.floor import Floor
from peers.go_pdk import GoPdk
from peers.go_pluginserver import GoPluginserver
from peers.kong_js_pdk import KongJsPdk
from peers.kong_python_pdk import KongPythonPdk
from peers.kongps_server import Kongps

__all__ = ["Kongps", "Launch", "MissingPeer", "Peer", "all_peers", "home_of"]


def all_peers(tools: Path) -> dict[str, Peer]:
    """Every peer by name, in the order of the table; ``tools`` holds the compiled C programs."""
    peers: list[Peer] = [
        Floor(tools / "floor", "msgpack"),
        Kongps("msgpack"),
        Kongps("msgpack", "threads", ("--handlers", "thread")),
        GoPluginserver(),
        KongPythonPdk("gevent", "--gevent"),
        KongPythonPdk("threads", None),
        KongPythonPdk("multiprocessing", "--multiprocessing"),
        KongJsPdk(),
        Floor(tools / "floor", "protobuf"),
        Kongps("protobuf"),
        Kongps("protobuf", "threads", ("--handlers", "thread")),
        GoPdk(),
    ]
    return {peer.name: peer for peer in peers}


def home_of(peer: Peer, root: Path) -> Path:
    """The directory that a peer's set-up lives in; modes of one server share it."""
    home = root / "peers" / (peer.family or peer.name)
    home.mkdir(parents=True, exist_ok=True)
    return home
