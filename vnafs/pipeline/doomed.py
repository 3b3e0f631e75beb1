"""Doomed: what cannot be without a pack, and how all of it is forgotten in one transaction.

Rows only; whoever calls has made sure that nobody needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vnafs.domain.ids import ContentNumber
from vnafs.index import contents, copies, packs, pieces
from vnafs.index.engine import Reader, Transaction
from vnafs.index.packs import Pack


def contents_of(reader: Reader, pack: Pack) -> Iterator[contents.Content]:
    """The contents at home in a pack, and those elsewhere that lean on it."""
    yield from contents.of_pack(reader, pack.contents_first, pack.contents_count)
    leaning: Sequence[ContentNumber] = list(contents.leaning_on(reader, pack.number))
    for number in leaning:
        content = contents.get(reader, number)
        if content is not None:
            yield content


def used(reader: Reader, pack: Pack) -> list[ContentNumber]:
    """Those of them that some file or kept version has, by number; cheap where there are none."""
    own = sorted(contents.used_of_run(reader, pack.contents_first, pack.contents_count))
    return own + [one for one in list(contents.leaning_on(reader, pack.number)) if contents.is_used(reader, one)]


def forget(tx: Transaction, pack: Pack) -> None:
    """Remove a pack's row with those of its contents, pieces and copies, and of the contents that lean on it."""
    for content in list(contents_of(tx, pack)):
        contents.remove(tx, content)
        home = packs.get(tx, content.home)
        if home is not None and pack.number in home.leans_on:
            left = tuple(number for number in home.leans_on if number != pack.number)
            packs.put(tx, dataclasses.replace(home, leans_on=left))
            packs.changed(tx, home.number)
    pieces.remove_run(tx, pack.pieces_first, pack.pieces_count)
    for copy in copies.of_pack(tx, pack.number):
        copies.remove(tx, pack.number, copy.target)
    packs.remove(tx, packs.get(tx, pack.number) or pack)
