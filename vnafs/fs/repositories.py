"""Repositories: the top-level directories, their rules, and the only way to make or remove one. One thread."""

from __future__ import annotations

import dataclasses
import enum
import logging
import stat
from collections.abc import Callable

from vnafs.domain.actors import SYSTEM, Actor
from vnafs.domain.errors import AlreadyExists, Busy, InvalidArgument, NotFound, Refused
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import NO_VERSION, ROOT, Inode, RepositoryId
from vnafs.domain.repositories import TRIPWIRE_PER_MINUTE, VERSIONS_KEPT_SECONDS, Acknowledgement, OnTrip, Repository
from vnafs.domain.retention import SECONDS_MAX, RetentionMode, weakens
from vnafs.fs import auditing
from vnafs.fs.core import Change, Core
from vnafs.fs.names import Names, check_name
from vnafs.index import entries, repositories
from vnafs.index.entries import Entry, kind_of
from vnafs.index.inodes import NOT_QUEUED, InodeRow

_LOG = logging.getLogger(__name__)

RETENTION_CLASS_MAX = 255
COPIES_MAX = 16
LIMIT_MAX = 2**53 - 1
"""Of a day's recall budget and of quotas: what every JSON reader keeps exactly."""
KEPT_SECONDS_MAX = 100 * 365 * 86400


class Repositories:
    """Makes, changes and removes repositories; each call survives loss of power when it returns."""

    def __init__(
        self, core: Core, names: Names, rules_change: Callable[[Change, Repository, Repository], None]
    ) -> None:
        """*rules_change* is told of rules before and after, within the change."""
        self._core = core
        self._names = names
        self._rules_change = rules_change

    def add(  # noqa: PLR0913 - the rules, each by its name
        self,
        name: str,
        *,
        acknowledgement: Acknowledgement = Acknowledgement.DURABLE,
        copies_min: int = 1,
        retention_class: int = 0,
        encrypted: bool = False,
        versions_kept_seconds: int = VERSIONS_KEPT_SECONDS,
        tripwire: OnTrip = OnTrip.ALERT,
        tripwire_per_minute: int = TRIPWIRE_PER_MINUTE,
        quota_bytes: int = 0,
        quota_files: int = 0,
        retention: RetentionMode = RetentionMode.OFF,
        retention_seconds: int = 0,
        autocommit_seconds: int = 0,
        mode: int = 0o755,
        uid: int = 0,
        gid: int = 0,
    ) -> Repository:
        """Make a repository and its directory. Raises AlreadyExists, NameTooLong, InvalidArgument."""
        core = self._core
        raw = name.encode("utf-8", "surrogateescape")
        check_name(raw)
        inode, cookie, now = core.new_inode(), core.new_cookie(), core.clock.now()
        repository = Repository(
            RepositoryId(inode),
            name,
            acknowledgement,
            copies_min,
            retention_class,
            versions_kept_seconds,
            tripwire,
            tripwire_per_minute,
            encrypted=encrypted,
            quota_bytes=quota_bytes,
            quota_files=quota_files,
            retention=retention,
            retention_seconds=retention_seconds,
            autocommit_seconds=autocommit_seconds,
            was_guarded=retention is not RetentionMode.OFF,
        )
        _check_rules(repository)
        with core.change() as change:
            root = change.row(ROOT)
            if entries.find(change.tx, ROOT, raw) is not None:
                raise AlreadyExists(what=f"repository {name}")
            row = InodeRow(
                stat.S_IFDIR | mode & 0o7777, uid, gid, 2, 0, 0, now, now, now, now,
                repository.id, ROOT, cookie, NO_VERSION, FileState.OPEN, NOT_QUEUED,
            )  # fmt: skip
            change.new(inode, row)
            change.set(ROOT, root._replace(nlink=root.nlink + 1, mtime_ns=now, ctime_ns=now))
            entries.put(change.tx, ROOT, raw, Entry(inode, cookie, kind_of(row.mode)))
            repositories.put(change.tx, repository)
            if repository.is_guarded:
                core.time.begin(change.tx)
            change.event(EventKind.CREATED, inode, NO_VERSION, ROOT, raw)
        core.repositories[repository.id] = repository
        core.repositories_changed()
        self._finish(raw)
        return repository

    def set(
        self, repository: Repository, *, reset_tripwire: bool = False, reason: str = "", by: Actor = SYSTEM
    ) -> Repository:
        """Replace the rules of the repository with that id; its name stays, and where it stands.

        Whether it is encrypted stays too. With *reset_tripwire* the tripwire was not touched. Retention that becomes
        weaker needs a *reason*, which is kept; compliance never does. Raises NotFound, InvalidArgument, Refused.
        """
        core = self._core
        known = self.get(repository.id)
        standing = {name: getattr(known, name) for name in repositories.STANDING}
        if reset_tripwire:
            standing |= {"tripped_ns": 0, "tripped_why": ""}
        standing["was_guarded"] = known.is_guarded or repository.retention is not RetentionMode.OFF
        repository = dataclasses.replace(repository, name=known.name, encrypted=known.encrypted, **standing)
        _check_rules(repository)
        is_weaker = _check_retention(known, repository, reason)
        inode = Inode(repository.id)
        with core.change() as change:
            change.put_rules(repository)
            self._rules_change(change, known, repository)
            if repository.is_guarded:
                core.time.begin(change.tx)
            if is_weaker:
                before, rules = _retention_of(known), _retention_of(repository)
                auditing.note(change, by, "weakened", inode, reason=reason, before=before, rules=rules)
            if changed := _changed(known, repository):
                auditing.note(change, by, "rules changed", inode, changed=changed, reason=reason)
            if reset_tripwire and known.tripped_ns:
                auditing.note(change, by, "tripwire reset", inode, tripped_ns=known.tripped_ns, reason=reason)
        core.repositories[repository.id] = repository
        core.repositories_changed()
        core.engine.sync(core.engine.position)
        if is_weaker:
            _LOG.warning("retention.weakened", extra={"repository": repository.id})
        return repository

    def save_tripped(self) -> None:
        """Write down whose tripwire was touched. Raises NoSpace."""
        core = self._core
        if not core.tripped or core.failure is not None:
            return
        with core.change() as change:
            for number in core.tripped:
                if number in core.repositories:
                    tripped = core.repositories[number]
                    change.put_rules(tripped)
                    auditing.note(change, SYSTEM, "tripwire touched", Inode(number), reason=tripped.tripped_why)
        core.tripped.clear()

    def remove(self, number: RepositoryId) -> None:
        """Remove an empty repository. Raises NotFound, DirectoryNotEmpty, Busy."""
        found = self.get(number)
        if found.limbo or found.rolling_to_ns:
            raise Busy(what=f"Repository {found.name}", why="what was rolled back there is still being copied")
        raw = found.name.encode("utf-8", "surrogateescape")
        self._names.remove_directory(ROOT, raw)
        del self._core.repositories[number]
        self._core.repositories_changed()
        self._finish(raw)

    def get(self, number: RepositoryId) -> Repository:
        """One repository. Raises NotFound."""
        found = self._core.repositories.get(number)
        if found is None:
            raise NotFound(what=f"repository {number}")
        return found

    def named(self, name: str) -> Repository:
        """The repository of that name. Raises NotFound."""
        for repository in self._core.repositories.values():
            if repository.name == name:
                return repository
        raise NotFound(what=f"repository {name}")

    def list(self) -> list[Repository]:
        """All of them, oldest first."""
        return sorted(self._core.repositories.values(), key=lambda repository: repository.id)

    def _finish(self, name: bytes) -> None:
        core = self._core
        core.engine.sync(core.engine.position)
        core.watcher.entry_changed(ROOT, name)
        core.watcher.attributes_changed(ROOT)


def _retention_of(repository: Repository) -> list[object]:
    return [repository.retention.value, repository.retention_seconds, repository.autocommit_seconds]


def _changed(before: Repository, now: Repository) -> dict[str, list[object]]:
    """The rules that are others now, each with what it was and is."""
    found: dict[str, list[object]] = {}
    for field in dataclasses.fields(now):
        if field.name in {*repositories.STANDING, "was_guarded"}:
            continue
        values = [getattr(one, field.name) for one in (before, now)]
        if values[0] != values[1]:
            found[field.name] = [value.value if isinstance(value, enum.Enum) else value for value in values]
    return found


def _check_retention(before: Repository, now: Repository, reason: str) -> bool:
    """Whether the rules of retention become weaker. Raises Refused when they may not."""
    rules = [(one.retention, one.retention_seconds, one.autocommit_seconds) for one in (before, now)]
    why = weakens(rules[0], rules[1])
    if why:
        raise Refused(what=f"Weaker retention in repository {now.name}", why=why)
    is_weaker = (
        now.retention.strength < before.retention.strength
        or now.retention_seconds < before.retention_seconds
        or (before.autocommit_seconds > 0 and not 0 < now.autocommit_seconds <= before.autocommit_seconds)
    )
    if is_weaker and not reason.strip():
        raise Refused(what=f"Weaker retention in repository {now.name}", why="it needs a reason (--reason)")
    return is_weaker


def _check_rules(repository: Repository) -> None:
    for seconds in (repository.retention_seconds, repository.autocommit_seconds):
        if not 0 <= seconds <= SECONDS_MAX:
            raise InvalidArgument(why=f"a retention or autocommit time is 0 to {SECONDS_MAX} seconds, not {seconds}")
    is_off = repository.retention is RetentionMode.OFF
    if is_off and (repository.retention_seconds or repository.autocommit_seconds):
        raise InvalidArgument(why="default retention and autocommit need retention governance or compliance")
    if repository.autocommit_seconds and not repository.retention_seconds:
        raise InvalidArgument(why="autocommit needs a default retention")
    if not 1 <= repository.copies_min <= COPIES_MAX:
        raise InvalidArgument(why=f"copies_min is 1 to {COPIES_MAX}, not {repository.copies_min}")
    budgets = (repository.recall_bytes_per_day, repository.recall_requests_per_day)
    quotas = (repository.quota_bytes, repository.quota_files)
    for what, limits, unit in (("recall budget", budgets, " a day"), ("quota", quotas, "")):
        for limit in limits:
            if not 0 <= limit <= LIMIT_MAX:
                raise InvalidArgument(why=f"a {what} is 0 (none) to {LIMIT_MAX}{unit}, not {limit}")
    if not 0 <= repository.retention_class <= RETENTION_CLASS_MAX:
        raise InvalidArgument(why=f"retention_class is 0 to {RETENTION_CLASS_MAX}, not {repository.retention_class}")
    if not 0 <= repository.versions_kept_seconds <= KEPT_SECONDS_MAX:
        raise InvalidArgument(
            why=f"versions_kept_seconds is 0 to {KEPT_SECONDS_MAX}, not {repository.versions_kept_seconds}"
        )
    if repository.tripwire_per_minute < 1:
        raise InvalidArgument(why=f"tripwire_per_minute is 1 or more, not {repository.tripwire_per_minute}")
