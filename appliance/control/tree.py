"""The tree, asked over mount's control socket: what the pipeline holds in tierd, and the calls mount answers.

Both directions of each value stand beside each other, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from appliance.control import wire
from appliance.control.client import ControlClient
from appliance.control.server import Method
from vnafs.domain.clock import Instant
from vnafs.domain.files import Candidate, FileFacts, FileState, Fingerprint, Proposal, Seal, Verdict
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.pipeline.tree import Tree

Run = Callable[[Callable[[], Any]], Any]
"""Runs work where the tree may be touched, and returns its result."""


class TreeClient:
    """A Tree in another process."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def advance(self, proposals: Sequence[Proposal]) -> list[Verdict]:
        """See Tree."""
        rows = [[p.inode, p.version, p.state.value, _from_seal(p.seal), _from_sha256(p.sha256)] for p in proposals]
        return [Verdict(value) for value in self._client.call("tree.advance", proposals=rows)]

    def evict(self, inode: Inode, version: Version) -> Verdict:
        """See Tree."""
        return Verdict(self._client.call("tree.evict", inode=inode, version=version))

    def evict_many(self, requests: Sequence[tuple[Inode, Version]]) -> list[Verdict]:
        """See Tree."""
        rows = [[inode, version] for inode, version in requests]
        return [Verdict(value) for value in self._client.call("tree.evict_many", requests=rows)]

    def adopt(self, inode: Inode, version: Version, staged: str) -> Verdict:
        """See Tree."""
        return Verdict(self._client.call("tree.adopt", inode=inode, version=version, staged=staged))

    def hold(self, inode: Inode, version: Version) -> Verdict:
        """See Tree."""
        return Verdict(self._client.call("tree.hold", inode=inode, version=version))

    def let_go(self, inode: Inode, version: Version) -> Verdict:
        """See Tree."""
        return Verdict(self._client.call("tree.let_go", inode=inode, version=version))

    def facts(self, inode: Inode) -> FileFacts:
        """See Tree."""
        return to_facts(self._client.call("tree.facts", inode=inode))

    def postpone(self, candidates: Sequence[tuple[Candidate, Instant]]) -> None:
        """See Tree."""
        rows = [[c.inode, c.version, c.state.value, c.due, due] for c, due in candidates]
        self._client.call("tree.postpone", candidates=rows)

    def suspect(self, inode: Inode, version: Version) -> None:
        """See Tree."""
        self._client.call("tree.suspect", inode=inode, version=version)

    def heard(self, versions: Sequence[tuple[Inode, Version]]) -> None:
        """See Tree."""
        self._client.call("tree.heard", versions=[[inode, version] for inode, version in versions])

    def supersede(self, why: str) -> None:
        """See Tree."""
        self._client.call("tree.supersede", why=why)

    def fold(self) -> None:
        """See Tree."""
        self._client.call("tree.fold")


def tree_methods(tree: Tree, run: Run) -> list[Method]:
    """What mount answers for its tree."""

    def advance(params: Mapping[str, Any], _: object) -> list[str]:
        proposals = [
            Proposal(Inode(inode), Version(version), FileState(state), _to_seal(seal), _to_sha256(sha256))
            for inode, version, state, seal, sha256 in params["proposals"]
        ]
        return [verdict.value for verdict in run(lambda: tree.advance(proposals))]

    def evict(params: Mapping[str, Any], _: object) -> str:
        return str(run(lambda: tree.evict(Inode(params["inode"]), Version(params["version"]))).value)

    def evict_many(params: Mapping[str, Any], _: object) -> list[str]:
        requests = [(Inode(inode), Version(version)) for inode, version in params["requests"]]
        return [verdict.value for verdict in run(lambda: tree.evict_many(requests))]

    def adopt(params: Mapping[str, Any], _: object) -> str:
        staged = str(params["staged"])
        return str(run(lambda: tree.adopt(Inode(params["inode"]), Version(params["version"]), staged)).value)

    def hold(params: Mapping[str, Any], _: object) -> str:
        return str(run(lambda: tree.hold(Inode(params["inode"]), Version(params["version"]))).value)

    def let_go(params: Mapping[str, Any], _: object) -> str:
        return str(run(lambda: tree.let_go(Inode(params["inode"]), Version(params["version"]))).value)

    def facts(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        return from_facts(run(lambda: tree.facts(Inode(params["inode"]))))

    def postpone(params: Mapping[str, Any], _: object) -> None:
        rows = [
            (Candidate(Inode(inode), Version(version), FileState(state), Instant(due)), Instant(later))
            for inode, version, state, due, later in params["candidates"]
        ]
        run(lambda: tree.postpone(rows))

    def suspect(params: Mapping[str, Any], _: object) -> None:
        run(lambda: tree.suspect(Inode(params["inode"]), Version(params["version"])))

    def heard(params: Mapping[str, Any], _: object) -> None:
        versions = [(Inode(inode), Version(version)) for inode, version in params["versions"]]
        run(lambda: tree.heard(versions))

    def supersede(params: Mapping[str, Any], _: object) -> None:
        run(lambda: tree.supersede(str(params["why"])))

    return [
        Method("tree.advance", advance, role="administrator"),
        Method("tree.evict", evict, role="operator"),
        Method("tree.evict_many", evict_many, role="operator"),
        Method("tree.adopt", adopt, role="administrator"),
        Method("tree.hold", hold, role="administrator"),
        Method("tree.let_go", let_go, role="administrator"),
        Method("tree.facts", facts, role="viewer"),
        Method("tree.postpone", postpone, role="administrator"),
        Method("tree.suspect", suspect, role="administrator"),
        Method("tree.heard", heard, role="administrator"),
        Method("tree.supersede", supersede, role="administrator", audit="tree:superseded"),
        Method("tree.fold", lambda _, __: tree.fold(), role="viewer"),
    ]


def _from_sha256(sha256: Sha256 | None) -> str | None:
    return None if sha256 is None else sha256.hex()


def _to_sha256(value: str | None) -> Sha256 | None:
    return None if value is None else Sha256(bytes.fromhex(value))


def _from_seal(seal: Seal | None) -> list[Any] | None:
    if seal is None:
        return None
    mark = seal.fingerprint
    return [seal.sha256.hex(), mark.size_bytes, mark.mtime_ns, mark.ctime_ns, seal.is_noise]


def _to_seal(value: Sequence[Any] | None) -> Seal | None:
    if value is None:
        return None
    sha256, size, mtime, ctime, is_noise = value
    return Seal(Sha256(bytes.fromhex(sha256)), Fingerprint(size, mtime, ctime), is_noise)


def from_facts(facts: FileFacts) -> dict[str, Any]:
    """Facts as the wire carries them."""
    mark = facts.fingerprint
    return {
        "inode": facts.inode,
        "version": facts.version,
        "repository": facts.repository,
        "state": facts.state.value,
        "size_bytes": facts.size_bytes,
        "sha256": _from_sha256(facts.sha256),
        "fingerprint": None if mark is None else [mark.size_bytes, mark.mtime_ns, mark.ctime_ns],
        "handles_open": facts.handles_open,
        "mtime_ns": facts.mtime_ns,
        "path_hint": wire.text(facts.path_hint),
        "is_suspect": facts.is_suspect,
    }


def to_facts(value: Mapping[str, Any]) -> FileFacts:
    """And back."""
    mark = value["fingerprint"]
    return FileFacts(
        inode=Inode(value["inode"]),
        version=Version(value["version"]),
        repository=RepositoryId(value["repository"]),
        state=FileState(value["state"]),
        size_bytes=value["size_bytes"],
        sha256=_to_sha256(value["sha256"]),
        fingerprint=None if mark is None else Fingerprint(*mark),
        handles_open=value["handles_open"],
        mtime_ns=value["mtime_ns"],
        path_hint=wire.name(value["path_hint"]),
        is_suspect=value["is_suspect"],
    )
