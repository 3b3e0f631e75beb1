"""Which targets hold what: the answers every door gives, from rows alone and in any process that can read them."""

from __future__ import annotations

from collections.abc import Iterator

from vnafs.domain.copies import Copy, CopyState
from vnafs.domain.errors import NotFound
from vnafs.domain.files import FileState
from vnafs.domain.ids import ContentNumber, Inode, PackNumber, RepositoryId, Sha256, Version
from vnafs.domain.recipes import EMPTY
from vnafs.index import contents, copies, counts, packs, targets, unreadable
from vnafs.index.engine import Engine, Reader
from vnafs.pipeline.namespace import Namespace


def copies_of_content(store: Engine, sha256: Sha256, repository: RepositoryId) -> list[Copy]:
    """Targets that hold every byte of a content verified, from any process that can read the store."""
    with store.read() as reader:
        content = contents.find(reader, sha256, repository)
        if content is None:
            return []
        current = targets.current(reader)
        held = copies.verified_on(reader, content.packs())
        return [Copy(current[number].name, when) for number, when in sorted(held.items()) if number in current]


def lacking(reader: Reader, copies_wanted: int) -> counts.Count:
    """Packs that keep some content from having so many copies; none exactly when every content has them.

    Answers from counts, except where each pack has enough copies, not all of them on the same targets: then from the
    transfers that wait.
    """
    counted = targets.current(reader).keys()
    known = counts.get(reader, counts.PACKS)
    if sum(1 for target in counted if counts.get(reader, counts.verified(target)) == known) >= copies_wanted:
        return counts.NONE
    few = [counts.get(reader, counts.held(number)) for number in range(copies_wanted)]
    if any(count.rows for count in few):
        return counts.Count(sum(count.rows for count in few), sum(count.size_bytes for count in few))
    found = {pack.number: pack for pack in _apart(reader, set(counted), copies_wanted)}.values()
    return counts.Count(len(found), sum(pack.size_bytes for pack in found))


def _apart(reader: Reader, counted: set[int], copies_wanted: int) -> Iterator[packs.Pack]:
    """Packs that do not have enough copies together with those they lean on."""
    for number in _behind(reader, counted):
        homes = {number}
        for leaning in contents.leaning_on(reader, number):
            content = contents.get(reader, leaning)
            if content is not None:
                homes.add(content.home)
        for home in homes:
            pack = packs.get(reader, home)
            if pack is None:
                continue
            if len(copies.verified_on(reader, (home, *pack.leans_on)).keys() & counted) < copies_wanted:
                yield pack
                break


def _behind(reader: Reader, counted: set[int]) -> set[PackNumber]:
    """Packs that are not everywhere yet."""
    return {transfer.pack for target in counted for transfer in copies.transfers(reader, target)}


def is_unreadable(store: Engine, namespace: Namespace, inode: Inode, version: Version) -> bool:
    """Whether a version that came back without bytes is still there and still has none: no content has them."""
    try:
        facts = namespace.facts(inode)
    except NotFound:
        return False
    if facts.version != version or facts.state is not FileState.STUB or facts.sha256 is None or facts.sha256 == EMPTY:
        return False
    with store.read() as reader:
        return contents.find(reader, facts.sha256, facts.repository) is None


def unreadable_stubs(store: Engine, namespace: Namespace) -> Iterator[tuple[Inode, Version]]:
    """Files that came back from manifests although nobody knows a content of their bytes, in order."""
    with store.read() as reader:
        noted = list(unreadable.every(reader))
    for inode, version in noted:
        if is_unreadable(store, namespace, inode, version):
            yield inode, version


def stubs_without_copy(store: Engine, namespace: Namespace) -> Iterator[tuple[Inode, Version]]:
    """Files whose bytes are nowhere whole, as far as is known. There should be none; takes as long as there are."""
    yield from unreadable_stubs(store, namespace)
    with store.read() as reader:
        if not counts.get(reader, counts.held(0)).rows:
            return
        counted = set(targets.current(reader))
        numbers = [
            number
            for number in sorted(_behind(reader, counted))
            if not any(c.state is CopyState.VERIFIED and c.target in counted for c in copies.of_pack(reader, number))
        ]
    for number in numbers:
        with store.read() as reader:
            pack = packs.get(reader, number)
            if pack is None:
                continue
            own = [c.number for c in contents.of_pack(reader, pack.contents_first, pack.contents_count)]
            needing: list[ContentNumber] = [*own, *contents.leaning_on(reader, number)]
            versions = [version for content in needing for version in contents.uses(reader, content)]
        for inode, version in versions:
            try:
                facts = namespace.facts(inode)
            except NotFound:
                continue
            if facts.version == version and facts.state is FileState.STUB:
                yield inode, version
