"""Uses: forget which versions were which content once those versions are no more.

Follows the namespace's feed with a cursor of its own, kept in the store with what it led to. An event of a version
that ended names the first bytes of its hash, which lead to the content. What the feed cannot tell (a crash between
a row and the tree's answer, a cursor that fell behind the trimmed feed) a sweep over all uses finds: one at each
start, a few rows at a time. Contents that nobody uses stay; collecting them is somebody else's decision.

A version that is over and remembered (`vnafs.index.past`) keeps its use until it is forgotten. So whoever wants to
remove a content asks `is_named`, which looks at its uses alone.

One thread calls `step`; `refused` may be called from any.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable

from vnafs.domain.errors import CursorAhead, CursorBehind, NoSpace, NotFound
from vnafs.domain.events import Event, EventKind
from vnafs.domain.files import Proposal
from vnafs.domain.ids import ContentNumber, Inode, Sha256, Version
from vnafs.index import contents, feeds, keys, unreadable
from vnafs.index.engine import Engine, Reader
from vnafs.index.inodes import InodeRow
from vnafs.pipeline.held import is_unreadable
from vnafs.pipeline.namespace import Namespace

log = logging.getLogger(__name__)

FOLLOWER = "uses"
EVENTS_AT_ONCE = 4096
EVENTS_AGAIN_MAX = 4096
"""Read again at most after a restart: a cursor is not worth a commit for each event of which nothing follows."""
ROWS_AT_ONCE = 256
UNDECIDED_MAX = 100_000

Use = tuple[ContentNumber, Inode, Version]
FIRST: Use = (ContentNumber(0), Inode(0), Version(0))
"""Before all others."""


class Uses:
    """See the module."""

    def __init__(self, store: Engine, namespace: Namespace) -> None:
        self._store = store
        self._namespace = namespace
        self._sweep_from: Use | None = FIRST
        """None when no sweep is under way."""
        self._undecided: collections.deque[Use] = collections.deque(maxlen=UNDECIDED_MAX)
        """Of versions that were refused, or are open: it is not settled which bytes they will be sealed with."""
        with store.read() as reader:
            self._cursor = self._stored = feeds.cursor_of(reader, FOLLOWER)

    def step(self) -> bool:
        """Do a little; whether there was anything to do."""
        try:
            return self._follow() or self._sweep() or self._look_again()
        except NoSpace as problem:
            log.warning("uses.later", extra={"why": str(problem)})
            return False

    def refused(self, proposals: Iterable[Proposal]) -> None:
        """The tree said of these that they are not, or not any more, what was packed for them.

        It may have taken the same for true a moment later, so the rows decide.
        """
        ended = [(p.inode, p.version, p.content[:8]) for p in proposals if p.content is not None]
        with self._store.read() as reader:
            self._undecided.extend(_uses(reader, ended))

    def _follow(self) -> bool:
        try:
            events = self._namespace.events(self._cursor, EVENTS_AT_ONCE)
        except (CursorBehind, CursorAhead) as problem:
            log.warning("uses.swept_anew", extra={"why": str(problem)})
            # what ends from here on is told by the feed, what ended before is seen by the sweep
            self._drop([], cursor=self._namespace.feed_end())
            self._sweep_from = FIRST
            return True
        if not events:
            return False
        ended = [end for _, event in events if (end := _ended(event)) is not None]
        with self._store.read() as reader:
            gone = list(_uses(reader, ended))
        cursor = events[-1][0] + 1
        if gone or cursor - self._stored >= EVENTS_AGAIN_MAX:
            self._drop(gone, cursor=cursor)
        self._cursor = cursor
        return True

    def _sweep(self) -> bool:
        if self._sweep_from is None:
            return False
        if self._sweep_from == FIRST:  # once a sweep: it looks at all of them
            self._forget_readable()
        with self._store.read() as reader:
            rows = contents.uses_from(reader, self._sweep_from, ROWS_AT_ONCE)
            hashes = {}
            for number, _, _ in rows:
                content = contents.get(reader, number)
                hashes[number] = None if content is None else content.sha256
        self._settle([(row, hashes[row[0]]) for row in rows])
        self._sweep_from = None
        if len(rows) == ROWS_AT_ONCE:
            number, inode, version = rows[-1]
            self._sweep_from = (number, inode, Version(version + 1))
        return True

    def _forget_readable(self) -> None:
        """Drop the rows of versions that came back without bytes, and that are no more or have bytes now."""
        with self._store.read() as reader:
            noted = list(unreadable.every(reader))
        gone = [use for use in noted if not is_unreadable(self._store, self._namespace, *use)]
        if gone:
            with self._store.write() as tx:
                for inode, version in gone:
                    unreadable.remove(tx, inode, version)

    def _look_again(self) -> bool:
        again = [self._undecided.popleft() for _ in range(min(len(self._undecided), ROWS_AT_ONCE))]
        with self._store.read() as reader:
            found = [(use, contents.get(reader, use[0])) for use in again]
        return self._settle([(use, None if content is None else content.sha256) for use, content in found])

    def _settle(self, uses: list[tuple[Use, Sha256 | None]]) -> bool:
        """Drop those that are no more; whether there were any."""
        gone = []
        for use, sha256 in uses:
            _, inode, version = use
            row: InodeRow | None
            try:
                row = self._namespace.row(inode)
            except NotFound:
                row = None
            if row is None or row.version > version:
                past = self._namespace.past(inode, version)
                if past is None or past.row.seal is None or past.row.seal.sha256 != sha256:
                    gone.append(use)
            elif row.seal is not None and row.version == version and row.seal.sha256 != sha256:
                gone.append(use)
            elif row.seal is None or row.version < version:  # loss of power took that version back; it comes anew
                self._undecided.append(use)
        self._drop(gone)
        return bool(gone)

    def _drop(self, gone: list[Use], *, cursor: int | None = None) -> None:
        if not gone and cursor is None:
            return
        with self._store.write() as tx:
            for use in gone:
                contents.drop_use(tx, *use)
            if cursor is not None:
                feeds.set_cursor(tx, FOLLOWER, cursor)
        if cursor is not None:
            self._cursor = self._stored = cursor


def is_named(reader: Reader, namespace: Namespace, number: ContentNumber) -> bool:
    """Whether any file or kept version may have this content. *reader* is a view of the store.

    Ask after a barrier of the tree (`Tree.fold`) and what it knew then is true; a version that comes back later comes
    from one that is kept now.
    """
    content = contents.get(reader, number)
    if content is None:
        return False
    if namespace.returned(1):
        return True  # of some version the use is not noted yet
    for inode, version in contents.uses(reader, number):
        past = namespace.past(inode, version)
        if past is not None and past.row.seal is not None and past.row.seal.sha256 == content.sha256:
            return True
        try:
            row = namespace.row(inode)
        except NotFound:
            continue
        if row.version == version and (row.seal is None or row.seal.sha256 == content.sha256):
            return True
        if row.before == content.sha256:
            return True
    return False


def _ended(event: Event) -> tuple[Inode, Version, bytes] | None:
    """The version that an event says is no more, with the first bytes of its hash; None if it was never sealed."""
    if not event.detail:
        return None
    if event.kind is EventKind.VERSION:
        return event.inode, Version(event.version - 1), event.detail.to_bytes(8, "big")
    if event.kind in {EventKind.REMOVED, EventKind.VERSION_EXPIRED}:
        return event.inode, event.version, event.detail.to_bytes(8, "big")
    return None


def _uses(reader: Reader, ended: Iterable[tuple[Inode, Version, bytes]]) -> Iterable[Use]:
    for inode, version, digest in ended:
        for number in contents.hash_numbers(reader, keys.Hashed.CONTENT, Sha256(digest)):
            if contents.has_use(reader, ContentNumber(number), inode, version):
                yield ContentNumber(number), inode, version
