"""``kong.tracing``: Kong's own spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.core.dispatch.namespace import Namespace

__all__ = ["Tracing"]


class Tracing(Namespace):
    """``kong.tracing``: Kong's own spans.

    A span is a Lua object with methods. A plugin server cannot hold one, so nothing here can
    start or change a span; to trace a plugin, use a tracing library in it.
    """

    __slots__ = ()

    def active_span(self) -> dict[str, Any] | None:
        """The span that Kong is in.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.3.

        Only recorded with tracing switched off. With tracing on, a span holds Lua functions,
        which Kong cannot send: expect it to abandon the event.

        :returns: None while Kong does not trace.
        """
        return self._call("kong.tracing.active_span")

    def get_root_span(self) -> dict[str, Any] | None:
        """The request's first span; see :meth:`active_span` before you use it.

        Phases: certificate, rewrite, access, response, preread, log. Seen in Kong 3.9.

        :returns: None while Kong does not trace.
        """
        return self._call("kong.tracing.get_root_span")

    def get_spans(self) -> list[dict[str, Any]] | None:
        """The request's spans so far; see :meth:`active_span` before you use it.

        Phases: certificate, rewrite, access, response, preread, log. Seen in Kong 3.9.

        :returns: None while Kong does not trace.
        """
        return self._call("kong.tracing.get_spans")

    def new_span(self) -> None:
        """Cannot be called from a plugin server: it returns a Lua object.

        Phases: none. In Kong 3.0 alone.

        :raises PDKError: always.
        """
        self._call("kong.tracing.new_span")

    def start_span(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Cannot be called from a plugin server: it returns a Lua object.

        Phases: none. Since Kong 3.3.

        :raises PDKError: always.
        """
        self._call("kong.tracing.start_span", name, options)

    def set_active_span(self, span: Any) -> None:
        """Cannot be called from a plugin server: it takes a Lua object.

        Phases: none. Since Kong 3.3.

        :raises PDKError: always.
        """
        self._call("kong.tracing.set_active_span", span)

    def process_span(self, processor: Any) -> None:
        """Cannot be called from a plugin server: it takes a Lua function.

        Phases: none. Since Kong 3.0.

        :raises PDKError: always.
        """
        self._call("kong.tracing.process_span", processor)

    def set_should_sample(self, should_sample: bool) -> None:
        """Cannot be called from a plugin server: it is a method of a Lua object.

        Phases: none. Since Kong 3.4.

        :raises PDKError: always.
        """
        self._call("kong.tracing.set_should_sample", should_sample)

    def get_sampling_decision(self, parent_should_sample: bool, sampling_rate: float) -> None:
        """Cannot be called from a plugin server: it is a method of a Lua object.

        Phases: none. Since Kong 3.6.

        :raises PDKError: always.
        """
        self._call("kong.tracing.get_sampling_decision", parent_should_sample, sampling_rate)
