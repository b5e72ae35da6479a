"""``kong.vault``: secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk.entities import VaultReference

__all__ = ["Vault"]


class Vault(Namespace):
    """``kong.vault``: secrets that are stored outside Kong.

    Fields of a configuration that are marked ``referenceable`` reach the plugin with the secret
    already in them; these functions are for references from elsewhere.
    """

    __slots__ = ()

    def get(self, reference: str) -> str | None:
        """The secret that a reference stands for.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.8.

        :param reference: such as ``"{vault://env/my-secret}"``.
        :returns: the secret; None when Kong (3.x) cannot get it.
        :raises PDKError: when Kong 2.x cannot get it.
        """
        return self._call("kong.vault.get", reference)

    def is_reference(self, reference: str) -> bool:
        """Whether a text has the form of a reference.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.8.

        :param reference: any text.
        """
        return self._call("kong.vault.is_reference", reference)

    def parse_reference(self, reference: str) -> VaultReference | None:
        """The parts of a reference.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.8.

        :param reference: such as ``"{vault://env/my-secret}"``.
        :returns: its parts; None when Kong (3.x) finds it wrong.
        :raises PDKError: when Kong 2.x finds it wrong.
        """
        return self._call("kong.vault.parse_reference", reference)

    def update(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with its secrets fetched again.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.4.

        :param options: a dict whose ``$refs`` names the reference of each field.
        :returns: the dict with the present secrets; Kong sends a copy, `options` stays as it is.
        """
        return self._call("kong.vault.update", options) or {}

    def flush(self) -> None:
        """Makes Kong forget the secrets it has cached, and their rotation.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.3.
        """
        self._call("kong.vault.flush")

    def warmup(self, input: Mapping[str, Any]) -> None:
        """Fetches the secrets of all references in a dict into Kong's cache.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.5.

        Kong has it for its own use; it may change.

        :param input: a dict, nested or not, with references among its values.
        """
        self._call("kong.vault.warmup", input)

    def try_(self, callback: Any, options: Mapping[str, Any]) -> Any:
        """Cannot be called from a plugin server: ``kong.vault.try`` takes a Lua function.

        Phases: none. Since Kong 3.0.

        :raises PDKError: always.
        """
        return self._call("kong.vault.try", callback, options)

    def init_worker(self) -> None:
        """Cannot be called from a plugin server: Kong calls it when a worker starts.

        Phases: none. Since Kong 3.4.

        :raises PDKError: always.
        """
        self._call("kong.vault.init_worker")
