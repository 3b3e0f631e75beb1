"""Needs: how much of a pack somebody needs, as far as rows say. Decides nothing, changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.ids import PackId, RepositoryId, Sha256
from vnafs.domain.repositories import Repository
from vnafs.index import condemned, contents, protections
from vnafs.index.contents import Content
from vnafs.index.engine import Reader
from vnafs.index.packs import Pack
from vnafs.pipeline import doomed
from vnafs.pipeline.namespace import Namespace

Name = tuple[RepositoryId, Sha256]
"""A content, as the tree names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What a look at one pack came to."""

    total_bytes: int
    """Of its contents, decoded; of the pack where that is more, as some of its contents may be forgotten."""
    live_bytes: int
    """Of those that somebody has, and of contents elsewhere that lean on it."""
    is_dead: bool

    def is_below(self, percent: float) -> bool:
        """Whether a smaller part than that is needed."""
        return self.live_bytes * 100 < percent * self.total_bytes


ALL = Need(total_bytes=1, live_bytes=1, is_dead=False)


class Needs:
    """*in_hand* names the packs that files lean on which are being packed and have no rows yet."""

    def __init__(
        self, namespace: Namespace, in_hand: Callable[[], Set[PackId]], *, young_seconds: float, clock: Clock
    ) -> None:
        self._namespace = namespace
        self._in_hand = in_hand
        self._young_ns = int(young_seconds * NANOSECONDS)
        self._clock = clock

    def rules(self) -> Mapping[RepositoryId, Repository]:
        """Of all repositories, by number."""
        return {repository.id: repository for repository in self._namespace.repositories()}

    def of(self, reader: Reader, pack: Pack, rules: Mapping[RepositoryId, Repository]) -> Need | None:
        """None while that may not be asked: the pack is young, in hand, frozen, or a file that stays open has it."""
        rule = rules.get(pack.repository)
        if self._clock.now() - pack.closed < self._young_ns or (rule is not None and rule.loses_nothing):
            return None
        used = contents.used_of_run(reader, pack.contents_first, pack.contents_count)
        if pack.contents_count and len(used) == pack.contents_count:
            return ALL
        if pack.id in self._in_hand():
            return None
        needing = list(doomed.contents_of(reader, pack))
        names = protected(reader)
        if any((content.repository, content.sha256) in names for content in needing):
            return None
        own = [content for content in needing if content.home == pack.number]
        live = [content for content in needing if _is_live(reader, content)]
        total_bytes = max(pack.size_bytes, sum(content.size_bytes for content in own))
        return Need(total_bytes, sum(content.size_bytes for content in live), is_dead=not live)


def protected(reader: Reader) -> set[Name]:
    """The contents that are copies of files that stay open; no use tells of them."""
    return {(row.repository, copy.sha256) for row in protections.every(reader) for copy in row.copies()}


def _is_live(reader: Reader, content: Content) -> bool:
    """Whether somebody has it, or is about to: it was packed again for files that have not moved over yet."""
    if contents.is_used(reader, content.number):
        return True
    twins = contents.twins(reader, content.sha256, content.repository)
    return any(
        twin.number != content.number
        and condemned.any_of(reader, twin.packs())
        and contents.is_used(reader, twin.number)
        for twin in twins
    )
