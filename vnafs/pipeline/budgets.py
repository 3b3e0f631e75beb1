"""Budgets: how much a repository may have brought back from targets in a day, in bytes and in requests.

What a repository has used stands in one row of the store, written before the request is made: it survives restarts and
kill -9, and may be some requests behind after loss of power. A day is a day in UTC, by the clock that is given. A
repository without a budget costs nothing and is not counted. Any thread.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.errors import Damaged, NotFound, RecallBudgetSpent
from vnafs.domain.ids import RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.index import meta
from vnafs.index.engine import Engine, Reader

_RECORD = struct.Struct(">QQQ")  # day, bytes, requests
_PREFIX = "recalled."
DAY_SECONDS = 86_400
AHEAD_SHARE = 0.5
"""What nobody has asked for yet is fetched only while less than this share of a day's budget is used."""


@dataclasses.dataclass(frozen=True, slots=True)
class Used:
    """What one repository has used of today."""

    size_bytes: int = 0
    requests: int = 0


class Budgets:
    """*rules* gives a repository's rules; it raises NotFound."""

    def __init__(self, store: Engine, rules: Callable[[RepositoryId], Repository], clock: Clock) -> None:
        self._store = store
        self._rules = rules
        self._clock = clock

    def charge(self, number: RepositoryId, size_bytes: int) -> None:
        """One request for so many bytes is about to be made. Raises RecallBudgetSpent, and nothing is counted then."""
        repository = self._limited(number)
        if repository is None:
            return
        with self._store.write() as tx:
            used = self._used(tx, number)
            _check(repository, used, size_bytes)
            record = _RECORD.pack(self._today(), used.size_bytes + size_bytes, used.requests + 1)
            meta.set_bytes(tx, _name(number), record)

    def give_back(self, number: RepositoryId, size_bytes: int) -> None:
        """The request that was charged brought nothing; it was made all the same."""
        if self._limited(number) is None:
            return
        with self._store.write() as tx:
            used = self._used(tx, number)
            record = _RECORD.pack(self._today(), max(0, used.size_bytes - size_bytes), used.requests)
            meta.set_bytes(tx, _name(number), record)

    def check(self, number: RepositoryId, size_bytes: int) -> None:
        """Whether so much would still be let through today. Raises RecallBudgetSpent."""
        repository = self._limited(number)
        if repository is not None:
            _check(repository, self.used(number), size_bytes)

    def may_run_ahead(self, number: RepositoryId, size_bytes: int) -> bool:
        """Whether what nobody has asked for yet may be fetched."""
        repository = self._limited(number)
        if repository is None:
            return True
        used = self.used(number)
        return (
            not repository.recall_bytes_per_day
            or used.size_bytes + size_bytes <= repository.recall_bytes_per_day * AHEAD_SHARE
        ) and (
            not repository.recall_requests_per_day
            or used.requests + 1 <= repository.recall_requests_per_day * AHEAD_SHARE
        )

    def used(self, number: RepositoryId) -> Used:
        """What a repository has used of today."""
        with self._store.read() as reader:
            return self._used(reader, number)

    def _limited(self, number: RepositoryId) -> Repository | None:
        try:
            repository = self._rules(number)
        except NotFound:
            return None  # it was removed: nothing of it can be opened
        return repository if repository.recall_bytes_per_day or repository.recall_requests_per_day else None

    def _used(self, reader: Reader, number: RepositoryId) -> Used:
        raw = meta.get_bytes(reader, _name(number))
        if raw is None:
            return Used()
        if len(raw) != _RECORD.size:
            raise Damaged(what="a recall budget")
        day, size_bytes, requests = _RECORD.unpack(raw)
        return Used(size_bytes, requests) if day == self._today() else Used()

    def _today(self) -> int:
        return self._clock.now() // (DAY_SECONDS * NANOSECONDS)


def _check(repository: Repository, used: Used, size_bytes: int) -> None:
    for limit, unit, so_far, wanted in (
        (repository.recall_bytes_per_day, "bytes", used.size_bytes, size_bytes),
        (repository.recall_requests_per_day, "requests", used.requests, 1),
    ):
        if limit and so_far + wanted > limit:
            raise RecallBudgetSpent(repository=repository.name, limit=limit, unit=unit, used=so_far, wanted=wanted)


def _name(number: RepositoryId) -> str:
    return f"{_PREFIX}{number:x}"
