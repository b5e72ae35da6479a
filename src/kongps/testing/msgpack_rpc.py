"""MsgPack:1 from Kong's side: one call at a time on each connection, a step for each PDK call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.testing.entities import Event
from kongps.testing.exchange import Exchange
from kongps.testing.functions import Answer, answer
from kongps.testing.rpc import Asked, Exchanger, Pending
from kongps.testing.values import LuaError, pack
from kongps.testing.wire import RpcError


class MsgPackExchanger(Exchanger):
    """Calls of MsgPack:1. The steps of an event travel on any connection."""

    name = "MsgPack:1"

    def begin(self, method: str, args: list[Any]) -> Pending:
        return self._begin(method, args, None)

    def _begin(self, method: str, args: list[Any], event: Event | None) -> Pending:
        self._sequence += 1
        number = self._sequence
        connection = self.pool.take()
        try:
            data = pack([0, number, method, args])
        except (TypeError, ValueError, OverflowError) as error:
            connection.close()
            raise LuaError(f"pack: {error}", drops_connection=True) from None
        self._send(connection, data)
        return Pending(connection, number, event)

    def plugin_names(self, timeout: float) -> list[str]:
        status = self.end(self.begin("plugin.GetStatus", [0]), timeout)
        return sorted((status or {}).get("Plugins") or {})

    def begin_event(self, event: Event, instance: int | None) -> Pending:
        handled: dict[str, Any] = {"EventName": event.phase}
        if instance is not None:
            handled["InstanceId"] = instance
        return self._begin("plugin.HandleEvent", [handled], event)

    def run(self, exchange: Exchange, asked: Asked) -> Answer:
        return answer(exchange, asked.function, asked.args)

    def reply(self, asked: Asked, given: Answer) -> Pending:
        step: dict[str, Any] = {"EventId": asked.event_id}
        if given.has_data:
            step["Data"] = given.data
        return self._begin(given.method, [step], asked.pending.event)

    def refused(self, exchange: Exchange, asked: Asked, error: Exception) -> None:
        # The connection of the last step is back in the pool; one was taken to send the next.
        if isinstance(error, LuaError) and error.drops_connection and self.pool.idle:
            self.pool.take().close()

    def ended(self, exchange: Exchange, asked: Asked) -> None:
        pass

    def starts_again(self, error: RpcError) -> bool:
        if error.kind != "answer":
            return False
        if self._version.oldest:
            return "No plugin instance" in error.message
        return "no plugin instance" in error.message.lower()

    def _answer(self, pending: Pending, timeout: float) -> Any:
        result = self._result(pending, timeout)
        if pending.event is None:
            return result
        if not isinstance(result, Mapping) or "EventId" not in result:
            raise LuaError(f"the plugin server's answer to an event is not one: {result!r}")
        data = result.get("Data")
        if not isinstance(data, Mapping):
            return None
        args = data.get("Args")
        listed = list(args) if isinstance(args, (list, tuple)) else []
        return Asked(str(data.get("Method")), listed, pending, event_id=result["EventId"])

    def _result(self, pending: Pending, timeout: float) -> Any:
        connection = pending.connection
        while True:
            try:
                message = self._receive(connection, timeout)
            except RpcError as error:
                if error.kind == "timeout":
                    # It goes back all the same; a late answer then breaks the next call on it.
                    self.pool.put(connection)
                raise
            if not isinstance(message, list) or not message:
                connection.close()
                raise LuaError(f"RPC response expected from the plugin server, got {message!r}")
            if message[0] == 2 and len(message) == 3:
                self._notify(str(message[1]), message[2])
                continue
            if message[0] != 1 or len(message) != 4:
                connection.close()
                raise LuaError(f"RPC response expected from the plugin server, got {message!r}")
            if message[1] != pending.number:
                connection.close()
                raise LuaError(
                    f"unexpected response id: expected {pending.number}, got {message[1]}"
                )
            self.pool.put(connection)
            if message[2] is not None:
                raise RpcError("answer", str(message[2]))
            return message[3]
