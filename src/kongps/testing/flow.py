"""A request's way through the gateway: its phases, the plugins in each, the calls of each event."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from kongps.testing.entities import Event
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Exit, Hang
from kongps.testing.values import LuaError
from kongps.testing.wire import RpcError

if TYPE_CHECKING:
    from kongps.testing.gateway import Kong
    from kongps.testing.tasks import Steps
    from kongps.testing.worker import ConfiguredPlugin, Worker

#: How often an event is started again in a row before the stand-in reports a request that hangs.
RESTARTS = 100

# The phases that Kong ends with a 500 when its Lua code raises.
_ENDS_REQUEST = ("rewrite", "access", "response", "preread")


class RequestFlow:
    """What the gateway does for one request, as steps of a :class:`kongps.testing.tasks.Task`."""

    def __init__(self, kong: Kong, worker: Worker, exchange: Exchange) -> None:
        self._kong = kong
        self._version = kong.version
        self._worker = worker
        self._exchange = exchange

    # --- the phases -------------------------------------------------------------------------------

    def http(self) -> Steps:
        """An HTTP request: every phase from the TLS handshake to the log."""
        x = self._exchange
        try:
            if x.request.scheme == "https":
                outcome = yield from self._phase("certificate")
                if outcome == "refused":
                    x.log("err", "the TLS handshake was aborted")
                    x.collect()
                    return
            yield from self._until_response()
            x.finish()
        except Hang as error:
            self._hung(error)
            return
        try:
            yield from self._phase("log")
        except Hang as error:
            x.log("err", str(error))
        x.collect()

    def _until_response(self) -> Steps:
        x = self._exchange
        yield from self._phase("rewrite")
        if x.ended:
            return
        if not x.find_route():
            x.phase = ""
            message = "no Route matched with those values"
            if self._version.number >= (3, 0):
                x.error(404, message, None, source="error")
            else:
                x.exit(404, {"message": message}, None)
            return
        yield from self._phase("access")
        if x.ended:
            return
        # Kong buffers the response for a plugin that has a response handler.
        x.buffered = x.buffered or (
            self._version.has_response_phase
            and any("response" in item.phases for item in self._kong.plugins if self._applies(item))
        )
        x.send_to_service()
        if not x.ended and self._version.has_response_phase:
            yield from self._phase("response")

    def tcp(self) -> Steps:
        """A TCP or TLS connection: preread, then log."""
        x = self._exchange
        x.routed = True
        x.target = (self._kong.service.host, self._kong.service.port)
        x.status = 200
        try:
            yield from self._phase("preread")
            x.result.status = x.status
            if not x.ended:
                x.result.source = "service"
            yield from self._phase("log")
        except Hang as error:
            self._hung(error)
        x.collect()

    def _hung(self, error: Exception) -> None:
        x = self._exchange
        x.log("err", str(error))
        x.result.hung = True
        x.result.status = 0
        x.collect()

    def _applies(self, plugin: ConfiguredPlugin) -> bool:
        x = self._exchange
        entity = plugin.entity
        if entity.scope == "global":
            return True
        if x.phase in ("certificate", "rewrite") or self._kong.route is None:
            return False
        if entity.scope == "consumer":
            return x.consumer is not None and x.consumer.get("username") == entity.consumer
        return True

    def _phase(self, phase: str) -> Steps:
        x = self._exchange
        x.phase = phase
        outcome = "done"
        # A copy: a plugin that is configured meanwhile starts with the next request.
        for plugin in list(self._kong.plugins):
            if phase not in plugin.phases or not self._applies(plugin):
                continue
            x.plugin = plugin.entity
            before = time.perf_counter()
            event = Event(plugin.entity.name, phase)
            x.result.events.append(event)
            try:
                event.outcome = yield from self._event(plugin, event)
            except LuaError as error:
                event.outcome = "refused"
                x.log("err", str(error))
                if phase in _ENDS_REQUEST:
                    x.unexpected()
            finally:
                event.seconds = time.perf_counter() - before - event.start_seconds
                x.plugin = None
            if event.outcome in ("exit", "refused"):
                outcome = event.outcome
            if phase != "log" and (x.ended or event.outcome in ("exit", "refused")):
                break
        return outcome

    # --- one event --------------------------------------------------------------------------------

    def _event(self, plugin: ConfiguredPlugin, event: Event) -> Steps:
        x = self._exchange
        worker = self._worker
        for _ in range(RESTARTS):
            before = time.perf_counter()
            try:
                instance = yield from worker.instance(plugin)
            except RpcError as error:
                x.log("err", error.message)
                # 2.3 to 2.8 let a request pass whose instance could not be started.
                closed = self._version.oldest or self._version.number >= (3, 0)
                if closed and x.phase != "log":
                    x.unexpected()
                    return "exit"
                return "timeout" if error.kind == "timeout" else "error"
            finally:
                event.start_seconds += time.perf_counter() - before
            try:
                yield from self._calls(event, instance)
            except RpcError as error:
                if worker.rpc.starts_again(error) and instance is not None:
                    worker.forget(plugin)
                    continue
                return self._failed(error)
            except Exit:
                return "exit"
            return "done"
        raise Hang(f"Kong starts instances of {plugin.entity.name} again and again, without end")

    def _failed(self, error: RpcError) -> str:
        x = self._exchange
        outcome = "timeout" if error.kind == "timeout" else "error"
        if self._kong.protocol == "msgpack" or not self._version.lost_again:
            x.log("err", error.message)
            return outcome
        x.log("err", f"pluginserver error: {error.message}")
        if x.phase in _ENDS_REQUEST:
            x.unexpected()
        # The handshake, too, ends where Kong's error cannot be sent.
        return "refused" if error.kind == "method" or x.phase == "certificate" else outcome

    def _calls(self, event: Event, instance: int | None) -> Steps:
        x = self._exchange
        rpc = self._worker.rpc
        asked = yield partial(rpc.begin_event, event, instance)
        while asked is not None:
            arrived = time.perf_counter()
            call = x.add_call(asked.function, asked.args)
            try:
                given = rpc.run(x, asked)
            except (LuaError, RpcError) as error:
                call.error = str(error)
                rpc.refused(x, asked, error)
                raise
            except (Exit, Hang):
                rpc.ended(x, asked)
                raise
            finally:
                call.args = asked.args
                call.seconds = time.perf_counter() - arrived
            call.step = given.method.partition(".")[2] or given.method
            if call.step == "StepError":
                call.error = str(given.data)
            else:
                call.answer = given.data
            try:
                asked = yield partial(rpc.reply, asked, given)
            finally:
                call.seconds = time.perf_counter() - arrived
