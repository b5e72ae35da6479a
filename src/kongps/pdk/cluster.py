"""``kong.cluster``: the cluster this node belongs to."""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace

__all__ = ["Cluster"]


class Cluster(Namespace):
    """``kong.cluster``: the cluster this node belongs to."""

    __slots__ = ()

    def get_id(self) -> str | None:
        """The cluster's id.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.3.

        :returns: a UUID; None when Kong runs without a database.
        :raises PDKError: when Kong 2.x could not read its datastore.
        """
        return self._call("kong.cluster.get_id")
