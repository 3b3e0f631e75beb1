"""Repack: read a content from packs that are condemned and pack it again, as a content of its own with the same hash.

What was in the old packs is not leaned on, so nothing of it is found to be known. The files move over when the new
content is verified (`vnafs.upkeep.collect`). One thread.
"""

from __future__ import annotations

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, NotFound
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState
from vnafs.domain.ids import Inode, PackId, Version
from vnafs.index.contents import Content
from vnafs.index.engine import Engine
from vnafs.index.inodes import InodeRow
from vnafs.pipeline.hints import hints_of
from vnafs.pipeline.namespace import Described, Namespace
from vnafs.pipeline.pack import Packer
from vnafs.pipeline.recall import Recaller
from vnafs.pipeline.seal import Reading


class Repacker:
    """See the module."""

    def __init__(
        self,
        store: Engine,
        namespace: Namespace,
        recaller: Recaller,
        packer: Packer,
        faults: Faults,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._recaller = recaller
        self._packer = packer
        self._faults = faults

    def is_under_way(self, content: Content) -> bool:
        """Whether it was packed again already, in a pack that is not recorded yet."""
        return self._packer.has(content.sha256, content.repository)

    def leaned_on(self) -> set[PackId]:
        """See Packer."""
        return self._packer.leaned_on()

    def repack(self, content: Content, inode: Inode, version: Version) -> None:
        """Pack a content again that one version has. No recall is charged for it.

        Raises NotFound when that version is no more, RecallFailed, Rehydrating, Damaged, NoSpace, StorageFailed.
        """
        described = self._described(content, inode, version)
        repository = self._namespace.repository(content.repository)
        with self._recaller.staging(content.sha256, content.size_bytes, content.repository) as descriptor:
            candidate = Candidate(inode, version, FileState.STUB, Instant(0))
            reading = Reading(candidate, described.facts, descriptor, self._faults)
            seal = self._packer.keep(reading, repository, hints_of(described))
        if seal is None or seal.sha256 != content.sha256:
            raise Damaged(what=f"content {content.sha256.hex()}, while it was packed again")

    def _described(self, content: Content, inode: Inode, version: Version) -> Described:
        """What is known of the version, with its path while it is its file's. Raises NotFound."""
        try:
            found = self._namespace.described(inode)
        except NotFound:
            found = None
        if found is not None and found.facts.version == version:
            return found
        past = self._namespace.past(inode, version)
        if past is None:
            raise NotFound(what=f"version {version} of inode {inode}")
        return Described(_facts(inode, version, past.row, content), past.row, b"", {})


def _facts(inode: Inode, version: Version, row: InodeRow, content: Content) -> FileFacts:
    return FileFacts(
        inode=inode,
        version=version,
        repository=row.repository,
        state=row.state,
        size_bytes=content.size_bytes,
        sha256=content.sha256,
        fingerprint=None,
        handles_open=0,
        mtime_ns=row.mtime_ns,
        path_hint=b"",
    )
