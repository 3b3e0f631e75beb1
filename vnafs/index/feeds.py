"""The feed of one environment (F rows): every change in order, numbered from 1 without gaps.

An event is written in the transaction of the change it tells of, so that neither exists without the other. The
feed says where to look, not what is there. Followers keep a cursor: the number of the first event they have not
dealt with. The feed is trimmed from its old end; whoever fell behind that starts again from a snapshot.

`Feed` belongs to the environment's single writer and remembers both ends between transactions; all else are pure
functions of a reader.
"""

from __future__ import annotations

import itertools

from vnafs.domain.errors import CursorAhead, CursorBehind, Damaged, FormatUnknown
from vnafs.domain.events import Event, EventKind
from vnafs.domain.ids import Inode, Version
from vnafs.index import keys, meta
from vnafs.index.engine import Engine, Reader, Transaction, prefix_stop
from vnafs.index.records import sized, take_sized, take_varint, varint

_RECORD_VERSION = 1
_HAS_NAME = 0x40
_HAS_DETAIL = 0x80
_KIND_MASK = 0x3F
_FEED_STOP = prefix_stop(keys.FEED)


class Feed:
    """The writing end. Keep one for each environment, in the process that owns it."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._begin: int | None = None

    def append(self, tx: Transaction, event: Event) -> int:
        """Add an event to this transaction; returns its number.

        The number of the last event is learned from the feed once. A transaction that was rolled back is seen by
        its events not being there, so that its numbers are given again.
        """
        number = self._next
        if number is None or (number > 1 and tx.get(keys.feed(number - 1)) is None):
            number = end(tx)
        tx.put(keys.feed(number), encode(event))
        self._next = number + 1
        return number

    def trim(self, engine: Engine, feed_events_max: int, limit: int) -> int:
        """Remove the oldest events beyond *feed_events_max*, at most *limit*, in a transaction of its own.

        Returns how many. Costs nothing while there are not too many: both ends are remembered.
        """
        if self._next is None or self._begin is None:
            with engine.read() as reader:
                self._begin, self._next = begin(reader), end(reader)
        if self._next - self._begin <= max(feed_events_max, 1):
            return 0
        with engine.write() as tx:
            removed = trim(tx, feed_events_max, limit, oldest=self._begin)
        self._begin += removed
        return removed


def end(reader: Reader) -> int:
    """The number that the next event will get: the cursor of a follower that has seen everything."""
    for key, _ in reader.scan(keys.FEED, _FEED_STOP, reverse=True):
        return keys.number_of(key) + 1
    return 1


def begin(reader: Reader) -> int:
    """The number of the oldest event that is still there, or of the next one when there is none."""
    for key, _ in reader.scan(keys.FEED, _FEED_STOP):
        return keys.number_of(key)
    return 1


def read_from(reader: Reader, cursor: int, limit: int) -> list[tuple[int, Event]]:
    """At most *limit* events from number *cursor* on, with their numbers; empty when there are no more.

    Raises CursorBehind when the events at the cursor were trimmed, CursorAhead when the feed never came so far
    (the index was restored from an older state); after both the follower starts again from a snapshot.
    """
    cursor = max(cursor, 1)
    rows = itertools.islice(reader.scan(keys.feed(cursor), _FEED_STOP), limit)
    events = [(keys.number_of(key), decode(raw)) for key, raw in rows]
    if events and events[0][0] != cursor:
        raise CursorBehind(cursor=cursor, begin=events[0][0])
    if not events and limit > 0 and cursor > (reached := end(reader)):
        raise CursorAhead(cursor=cursor, end=reached)
    return events


def trim(tx: Transaction, feed_events_max: int, limit: int, *, oldest: int = 0) -> int:
    """Remove the oldest events beyond *feed_events_max*, at most *limit* in this transaction; returns how many.

    The newest event always stays: the next number is learned from it. No event before *oldest* is looked for.
    """
    keep_from = end(tx) - max(feed_events_max, 1)
    doomed = itertools.islice(tx.scan(keys.feed(oldest), keys.feed(max(keep_from, oldest))), limit)
    removed = 0
    for key, _ in doomed:
        tx.delete(key)
        removed += 1
    return removed


def cursor_of(reader: Reader, follower: str) -> int:
    """The cursor that *follower* stored here; 1, the beginning, when it never did."""
    return meta.get_int(reader, f"cursor.{follower}") or 1


def set_cursor(tx: Transaction, follower: str, cursor: int) -> None:
    """Store a cursor, in the same transaction as what the events led to."""
    meta.set_int(tx, f"cursor.{follower}", cursor)


def append(tx: Transaction, event: Event) -> None:
    """Add an event to this transaction, where there are few: the last number is looked up each time."""
    tx.put(keys.feed(end(tx)), encode(event))


def encode(event: Event) -> bytes:
    """One event; a change of state takes about ten bytes, a name some fifteen more than its own length."""
    head = int(event.kind)
    named = bool(event.parent or event.name)
    if named:
        head |= _HAS_NAME
    if event.detail:
        head |= _HAS_DETAIL
    parts = [bytes((_RECORD_VERSION, head)), varint(event.inode), varint(event.version)]
    if named:
        parts += (varint(event.parent), sized(event.name))
    if event.detail:
        parts.append(varint(event.detail))
    return b"".join(parts)


def decode(raw: bytes) -> Event:
    """What `encode` wrote. Raises FormatUnknown for a newer version or kind, Damaged for anything else."""
    if len(raw) < 2:
        raise Damaged(what="an event record")
    if raw[0] != _RECORD_VERSION:
        raise FormatUnknown(what="an event record", found=raw[0], known=_RECORD_VERSION)
    try:
        kind = EventKind(raw[1] & _KIND_MASK)
    except ValueError:
        raise FormatUnknown(what="the kind of an event", found=raw[1] & _KIND_MASK, known=max(EventKind)) from None
    inode, at = take_varint(raw, 2)
    version, at = take_varint(raw, at)
    parent, name, detail = 0, b"", 0
    if raw[1] & _HAS_NAME:
        parent, at = take_varint(raw, at)
        name, at = take_sized(raw, at)
    if raw[1] & _HAS_DETAIL:
        detail, at = take_varint(raw, at)
    if at != len(raw):
        raise Damaged(what="an event record")
    return Event(kind, Inode(inode), Version(version), Inode(parent), name, detail)
