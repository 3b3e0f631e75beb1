"""Contents: the immutable bytes of sealed versions, known by SHA-256, numbered in order of arrival.

The contents that are at home in one pack have consecutive numbers. A content's recipe stays in its home pack; the
row says where. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import ContentNumber, Inode, PackNumber, RepositoryId, Sha256, Span, Version
from vnafs.index import condemned, counts, keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORD = struct.Struct(">B32sQQQQI")
_VERSION = 1
_NUMBER = struct.Struct(">Q")


class Content(NamedTuple):
    """One C row."""

    number: ContentNumber
    sha256: Sha256
    size_bytes: int
    repository: RepositoryId
    """Its key domain: contents are shared only inside one repository."""
    home: PackNumber
    recipe: Span
    """Of the recipe record inside the home pack."""
    leans_on: tuple[PackNumber, ...]
    """Other packs that hold some of its pieces."""

    def packs(self) -> tuple[PackNumber, ...]:
        """Every pack that a copy needs."""
        return (self.home, *self.leans_on)


def add(tx: Transaction, content: Content) -> None:
    """Store a new content and make it findable by hash and by the packs it leans on."""
    tx.put(
        keys.content(content.number),
        _RECORD.pack(
            _VERSION,
            content.sha256,
            content.size_bytes,
            content.repository,
            content.home,
            content.recipe.offset,
            content.recipe.length or 0,
        )
        + b"".join(_NUMBER.pack(pack) for pack in content.leans_on),
    )
    make_findable(tx, content)
    counts.add(tx, counts.CONTENTS, 1, content.size_bytes)


def make_findable(tx: Transaction, content: Content) -> None:
    """Write the rows that derive from a content's own."""
    add_hash(tx, keys.Hashed.CONTENT, content.sha256, content.number)
    for pack in content.leans_on:
        tx.put(keys.leaning(pack, content.number), b"")


def remove(tx: Transaction, content: Content) -> None:
    """Forget a content, and which files are it."""
    tx.delete(keys.content(content.number))
    drop_hash(tx, keys.Hashed.CONTENT, content.sha256, content.number)
    for pack in content.leans_on:
        tx.delete(keys.leaning(pack, content.number))
    for inode, version in list(uses(tx, content.number)):
        drop_use(tx, content.number, inode, version)
    counts.add(tx, counts.CONTENTS, -1, -content.size_bytes)


def get(reader: Reader, number: ContentNumber) -> Content | None:
    """The content with that number."""
    row = reader.get(keys.content(number))
    return None if row is None else decode(number, row)


def decode(number: ContentNumber, row: bytes) -> Content:
    """The content of a row. Raises FormatUnknown for one that a newer program wrote."""
    if row[0] > _VERSION:
        raise FormatUnknown(what="a content record", found=row[0], known=_VERSION)
    _, sha256, size, repository, home, offset, length = _RECORD.unpack_from(row)
    leans_on: tuple[PackNumber, ...] = ()
    if len(row) > _RECORD.size:
        leans_on = tuple(PackNumber(n) for (n,) in _NUMBER.iter_unpack(row[_RECORD.size :]))
    return Content(number, sha256, size, repository, home, Span(offset, length), leans_on)


def find(reader: Reader, sha256: Sha256, repository: RepositoryId) -> Content | None:
    """The repository's content with exactly that hash: where there are several, one whose packs nobody gave up.

    While a pack is emptied (`pipeline.repack`) that is the one in it, until the files have moved to the other.
    """
    numbers = hash_numbers(reader, keys.Hashed.CONTENT, sha256)
    if len(numbers) == 1:  # nearly always
        only = get(reader, ContentNumber(numbers[0]))
        return only if only is not None and only.sha256 == sha256 and only.repository == repository else None
    found = twins(reader, sha256, repository)
    return min(found, key=lambda content: _rank(reader, content), default=None)


def twins(reader: Reader, sha256: Sha256, repository: RepositoryId) -> list[Content]:
    """All of the repository's contents with exactly that hash, the oldest first. There is more than one seldom."""
    found = (get(reader, ContentNumber(number)) for number in hash_numbers(reader, keys.Hashed.CONTENT, sha256))
    return [
        content
        for content in found
        if content is not None and content.sha256 == sha256 and content.repository == repository
    ]


def _rank(reader: Reader, content: Content) -> int:
    """0 for a content that is good or, while its pack is emptied, still in use; more for those that are worse."""
    if not condemned.any_of(reader, content.packs()):
        return 0
    if condemned.any_given_up(reader, content.packs()):
        return 2
    return 0 if is_used(reader, content.number) else 1


def of_pack(reader: Reader, first: ContentNumber, count: int) -> Iterator[Content]:
    """The contents at home in a pack, by the run of numbers its row names."""
    for key, row in reader.scan(keys.content(first), keys.content(ContentNumber(first + count))):
        yield decode(ContentNumber(keys.number_of(key)), row)


def every(reader: Reader) -> Iterator[Content]:
    """All contents, in order of number."""
    for key, row in reader.scan(keys.CONTENTS, prefix_stop(keys.CONTENTS)):
        yield decode(ContentNumber(keys.number_of(key)), row)


def leaning_on(reader: Reader, pack: PackNumber) -> Iterator[ContentNumber]:
    """Contents at home elsewhere that need *pack*."""
    prefix = keys.leanings(pack)
    for key, _ in reader.scan(prefix, prefix_stop(prefix)):
        yield ContentNumber(keys.number_of(key))


# -- the files that are a content ----------------------------------------------------------------------------


def add_use(tx: Transaction, number: ContentNumber, inode: Inode, version: Version) -> None:
    """Note that a file's version is this content."""
    tx.put(keys.use(number, inode, version), b"")


def drop_use(tx: Transaction, number: ContentNumber, inode: Inode, version: Version) -> None:
    """Forget that a file's version is this content."""
    tx.delete(keys.use(number, inode, version))


def has_use(reader: Reader, number: ContentNumber, inode: Inode, version: Version) -> bool:
    """Whether it was noted that a file's version is this content."""
    return reader.get(keys.use(number, inode, version)) is not None


def uses(reader: Reader, number: ContentNumber) -> Iterator[tuple[Inode, Version]]:
    """The files that are this content, as far as the store has heard."""
    prefix = keys.uses(number)
    for key, _ in reader.scan(prefix, prefix_stop(prefix)):
        _, inode, version = keys.use_of(key)
        yield inode, version


def is_used(reader: Reader, number: ContentNumber) -> bool:
    """Whether any file is this content, as far as the store has heard."""
    return next(uses(reader, number), None) is not None


def used_of_run(reader: Reader, first: ContentNumber, count: int) -> set[ContentNumber]:
    """Which of the contents with consecutive numbers some file is; one scan."""
    start, stop = keys.uses(first), keys.uses(ContentNumber(first + count))
    return {keys.use_of(key)[0] for key, _ in reader.scan(start, stop)}


def uses_from(
    reader: Reader, start: tuple[ContentNumber, Inode, Version], limit: int
) -> list[tuple[ContentNumber, Inode, Version]]:
    """At most *limit* uses of any content from *start* on, in order."""
    rows = itertools.islice(reader.scan(keys.use(*start), prefix_stop(keys.USES)), limit)
    return [keys.use_of(key) for key, _ in rows]


# -- hashes to numbers ---------------------------------------------------------------------------------------


def hash_numbers(reader: Reader, kind: keys.Hashed, digest: Sha256) -> list[int]:
    """The numbers filed under the first bytes of a hash; the caller compares the whole hash."""
    row = reader.get(keys.hashed(kind, digest))
    if row is None:
        return []
    if len(row) == _NUMBER.size:  # nearly always
        return [int.from_bytes(row, "big")]
    return [number for (number,) in _NUMBER.iter_unpack(row)]


def add_hash(tx: Transaction, kind: keys.Hashed, digest: Sha256, number: int) -> None:
    """File a number under a hash; several may share the first bytes."""
    key = keys.hashed(kind, digest)
    row = tx.get(key) or b""
    tx.put(key, row + _NUMBER.pack(number))


def drop_hash(tx: Transaction, kind: keys.Hashed, digest: Sha256, number: int) -> None:
    """Take a number out from under a hash."""
    key = keys.hashed(kind, digest)
    left = [other for other in hash_numbers(tx, kind, digest) if other != number]
    if left:
        tx.put(key, b"".join(map(_NUMBER.pack, left)))
    else:
        tx.delete(key)
