"""Recall, asked over tierd's control socket: what mount holds, and the calls tierd answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.control.client import ControlClient
from appliance.control.server import Method
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Span, Version

if TYPE_CHECKING:
    from vnafs.pipeline.recall import Recaller  # loads every codec, which mount has no use for


class RecallClient:
    """A Recaller in another process. Blocks until the bytes are there; any thread."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def recall(self, inode: Inode, version: Version, sha256: Sha256, repository: RepositoryId) -> str:
        """See Recaller.recall."""
        return str(
            self._client.call("recall.whole", inode=inode, version=version, sha256=sha256.hex(), repository=repository)
        )

    def ensure(
        self, inode: Inode, version: Version, sha256: Sha256, repository: RepositoryId, span: Span
    ) -> tuple[str, int]:
        """See Recaller.ensure."""
        path, stop = self._client.call(
            "recall.range",
            inode=inode,
            version=version,
            sha256=sha256.hex(),
            repository=repository,
            offset=span.offset,
            length=span.length,
        )
        return str(path), int(stop)


def recall_methods(recaller: Recaller) -> list[Method]:
    """What tierd answers for its recaller."""

    def whole(params: Mapping[str, Any], _: object) -> str:
        return recaller.recall(*_what(params))

    def part(params: Mapping[str, Any], _: object) -> tuple[str, int]:
        return recaller.ensure(*_what(params), Span(params["offset"], params["length"]))

    return [
        Method("recall.whole", whole, role="administrator"),
        Method("recall.range", part, role="administrator"),
    ]


def _what(params: Mapping[str, Any]) -> tuple[Inode, Version, Sha256, RepositoryId]:
    return (
        Inode(params["inode"]),
        Version(params["version"]),
        Sha256(bytes.fromhex(params["sha256"])),
        RepositoryId(params["repository"]),
    )
