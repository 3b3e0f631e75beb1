"""Which files have all their copies now: answers from rows, as proposals to the tree. Decides nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vnafs.domain.files import FileState, Proposal
from vnafs.domain.ids import ContentNumber, PackNumber
from vnafs.domain.repositories import Repository
from vnafs.index import contents, copies, packs, targets
from vnafs.index.engine import Reader


def by_pack(reader: Reader, repositories: Iterable[Repository], number: PackNumber) -> list[Proposal]:
    """The files that need a pack, which was just verified on one more target."""
    pack = packs.get(reader, number)
    repository = None if pack is None else next((r for r in repositories if r.id == pack.repository), None)
    if pack is None or repository is None:
        return []
    counted = targets.current(reader).keys()
    proposals: list[Proposal] = []
    leaning = (contents.get(reader, ContentNumber(n)) for n in contents.leaning_on(reader, number))
    for content in (*contents.of_pack(reader, pack.contents_first, pack.contents_count), *leaning):
        if content is not None and _enough(reader, content, repository, counted):
            proposals.extend(
                Proposal(inode, version, FileState.REPLICATED, sha256=content.sha256)
                for inode, version in contents.uses(reader, content.number)
            )
    return proposals


def by_packing(reader: Reader, repositories: Sequence[Repository], packed: Iterable[Proposal]) -> list[Proposal]:
    """What is to be said of versions just *packed*.

    All copies are there already, where their content was known; or their pack was given up meanwhile.
    """
    counted = targets.current(reader).keys()
    proposals = []
    for version in packed:
        sha256 = version.content
        is_known = False
        for repository in repositories:
            same = [] if sha256 is None else contents.twins(reader, sha256, repository.id)
            is_known |= bool(same)
            used = (one for one in same if contents.has_use(reader, one.number, version.inode, version.version))
            content = next(used, None)
            if content is None:
                continue
            if _enough(reader, content, repository, counted):
                proposals.append(Proposal(version.inode, version.version, FileState.REPLICATED, sha256=sha256))
            break
        if not is_known:
            proposals.append(Proposal(version.inode, version.version, FileState.SEALED, sha256=sha256))
    return proposals


def _enough(reader: Reader, content: contents.Content, repository: Repository, counted: Iterable[int]) -> bool:
    held = copies.verified_on(reader, content.packs())
    return len(held.keys() & set(counted)) >= max(1, repository.copies_min)
