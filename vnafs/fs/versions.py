"""Versions: what there was under a path, and how to have it again.

A path is resolved through the past as well: each part may be a directory that is gone. Nothing here overwrites what
has a name, unless told to. One thread; a call may look at as many rows as a name has a past.
"""

from __future__ import annotations

import dataclasses
import itertools

from vnafs.domain.actors import SYSTEM, Actor
from vnafs.domain.errors import AlreadyExists, IsADirectory, NotFound, Refused
from vnafs.domain.events import EventKind
from vnafs.domain.ids import ROOT, Inode, Sha256, Version
from vnafs.fs import auditing, guard, retention
from vnafs.fs.core import Change, Core
from vnafs.fs.names import check_name, refuse_in_root
from vnafs.fs.removal import unname
from vnafs.fs.revival import revive
from vnafs.index import entries, inodes, past, unpacked
from vnafs.index.engine import Reader
from vnafs.index.entries import Entry, kind_of
from vnafs.index.inodes import InodeRow
from vnafs.index.past import PastName

FOLDERS_MAX = 256
"""That one path may have led to in its past; more are not looked into."""
SHOWN_MAX = 10_000
"""Of one name; the youngest."""
DELETED_AT_ONCE_MAX = 1000
NEVER_PACKED = "its bytes were not in packs yet when it ended"


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """One version of what a path led to. Times are nanoseconds since 1970 UTC."""

    name: bytes
    inode: Inode
    version: Version
    since_ns: int
    """When this came to be at this path."""
    ended_ns: int | None
    """None: it still is."""
    mode: int
    size_bytes: int
    mtime_ns: int
    sha256: Sha256 | None
    is_kept: bool
    """It can be had again; or it is what is there now."""

    @property
    def label(self) -> str:
        """Names it for `vna undelete --version`."""
        return f"{self.inode}.{self.version}"


class Versions:
    """Looks into the past of names."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- looking --------------------------------------------------------------------------------------------

    def history(self, path: bytes) -> list[Shown]:
        """Every version that was at *path*, which lies below the mount, oldest first. Raises NotFound."""
        parents, name = self._resolve(path)
        found: list[Shown] = []
        with self._core.engine.read() as reader:
            for parent in parents:
                found += self._of_name(reader, parent, name)
        if not found:
            raise NotFound(what=f"{path.decode(errors='replace')}, now or in the time that is kept,")
        return sorted(found, key=lambda shown: shown.since_ns)[-SHOWN_MAX:]

    def deleted_in(
        self, path: bytes, after: bytes = b"", limit: int = DELETED_AT_ONCE_MAX
    ) -> tuple[list[Shown], bytes]:
        """What was deleted or renamed in the directory at *path* and has no such name now, the last of each name.

        In order of names, at most *limit* of them past *after*; and the name to go on after, empty when there are no
        more. Raises NotFound.
        """
        last: dict[bytes, PastName] = {}
        with self._core.engine.read() as reader:
            for parent in self._folders(path):
                found = 0
                for _, names in itertools.groupby(past.names_in(reader, parent, after), key=lambda one: one.name):
                    *_, youngest = names
                    if entries.find(reader, parent, youngest.name) is None:
                        last.setdefault(youngest.name, youngest)
                        found += 1
                    if found >= limit:
                        break
            names_found = sorted(last.values(), key=lambda one: one.name)[:limit]
            shown = [self._within(reader, one.name, one.inode, one.since_ns, one.ended_ns)[-1:] for one in names_found]
        go_on = names_found[-1].name if len(names_found) == limit else b""
        return list(itertools.chain.from_iterable(shown)), go_on

    def is_directory(self, path: bytes) -> bool:
        """Whether a path leads to a directory now, or led to nothing but directories. Raises NotFound."""
        parents, name = self._resolve(path)
        kinds: set[int] = set()
        with self._core.engine.read() as reader:
            for parent in parents:
                entry = entries.find(reader, parent, name)
                if entry is not None:
                    return entry.is_directory
                kinds.update(found.kind for found in past.names_of(reader, parent, name))
        if not kinds:
            raise NotFound(what=f"{path.decode(errors='replace')}, now or in the time that is kept,")
        return kinds == {entries.DIRECTORY}

    def _of_name(self, reader: Reader, parent: Inode, name: bytes) -> list[Shown]:
        found: list[Shown] = []
        for one in past.names_of(reader, parent, name):
            found += self._within(reader, name, one.inode, one.since_ns, one.ended_ns)
        entry = entries.find(reader, parent, name)
        if entry is not None:
            found += self._within(reader, name, entry.inode, past.since_of(reader, entry), None)
        return found

    def _within(self, reader: Reader, name: bytes, inode: Inode, since: int, ended: int | None) -> list[Shown]:
        """The versions that an inode had while it had a name."""
        found = []
        before: int | None = None
        for one in past.versions_of(reader, inode):
            before = one.ended_ns
            if one.ended_ns > since and (ended is None or one.since_ns < ended):
                begin = max(since, one.since_ns)
                end = one.ended_ns if ended is None else min(ended, one.ended_ns)
                found.append(_shown(name, inode, one.row, begin, end, is_kept=one.is_kept))
        row = inodes.find(reader, inode)
        if row is not None and row.nlink:
            begin = max(since, row.birth_ns if before is None else before)
            if ended is None or begin < ended:
                found.append(_shown(name, inode, row, begin, ended, is_kept=True))
        return found

    # -- paths ----------------------------------------------------------------------------------------------

    def _resolve(self, path: bytes) -> tuple[list[Inode], bytes]:
        above, _, name = path.strip(b"/").rpartition(b"/")
        check_name(name)
        return self._folders(above), name

    def _folders(self, path: bytes) -> list[Inode]:
        """The directories that a path leads or led to, those that are there now first. Raises NotFound."""
        found = [ROOT]
        with self._core.engine.read() as reader:
            for name in path.strip(b"/").split(b"/") if path.strip(b"/") else ():
                below: dict[Inode, None] = {}
                for parent in found:
                    entry = entries.find(reader, parent, name)
                    if entry is not None and entry.is_directory:
                        below[entry.inode] = None
                for parent in found:
                    gone = [one.inode for one in past.names_of(reader, parent, name) if one.kind == entries.DIRECTORY]
                    below.update(dict.fromkeys(reversed(gone)))
                found = list(below)[:FOLDERS_MAX]
        if not found:
            raise NotFound(what=f"The directory {path.decode(errors='replace')}, now or in the time that is kept,")
        return found

    # -- having it again ------------------------------------------------------------------------------------

    def undelete(
        self,
        path: bytes,
        *,
        at_ns: int | None = None,
        label: str | None = None,
        to: bytes | None = None,
        replace: bool = False,
        by: Actor = SYSTEM,
    ) -> Shown:
        """Bring back what *path* led to: at a moment, a certain version, or the last that is not there any more.

        It gets the name it had, or *to*, and is a stub; a directory comes back empty. Survives loss of power when
        it returns. Raises NotFound, Refused when that version is not kept, AlreadyExists when something has the name
        and not *replace*, IsADirectory when that is a directory.
        """
        core = self._core
        if core.superseded is not None:
            raise core.superseded
        parent, name = self._place(path if to is None else to)
        if core.frozen:
            core.refuse_frozen(parent)
        wanted = self._choose(self.history(path), path, at_ns, label)
        inode, cookie, now = core.new_inode(), core.new_cookie(), core.clock.now()
        with core.change() as change:
            above = change.row(parent)
            if not above.is_directory:
                raise NotFound(what="The directory it goes to")
            source = past.find_version(change.tx, wanted.inode, wanted.version)
            live = core.find(wanted.inode, change.tx)
            repository = (source.row if source is not None else change.row(wanted.inode)).repository
            if repository != above.repository:
                raise Refused(what="Bringing it back into another repository", why="its copies belong to its own")
            self._make_room(change, parent, name, now, replace=replace)
            if source is not None and source.is_kept:
                row = revive(change, source, parent, name, inode, cookie, now)
            elif live is not None and live.nlink and live.version == wanted.version and not live.is_directory:
                inode, row = wanted.inode, self._link(change, wanted.inode, parent, name, cookie, now)
            else:
                is_coming = unpacked.find(change.tx, wanted.inode, wanted.version) is not None
                why = "its bytes are on their way into packs; try again in a minute" if is_coming else NEVER_PACKED
                raise Refused(what=f"Version {wanted.label}", why=why)
            auditing.note(change, by, "undeleted", inode, version=row.version)
        core.sync()
        core.watcher.entry_changed(parent, name)
        core.watcher.attributes_changed(parent)
        return _shown(name, inode, row, now, None, is_kept=True)

    def _choose(self, found: list[Shown], path: bytes, at_ns: int | None, label: str | None) -> Shown:
        what = path.decode(errors="replace")
        if label is not None:
            chosen = [shown for shown in found if label in {shown.label, str(shown.version)}]
            if len({shown.label for shown in chosen}) > 1:
                raise Refused(what=f"Version {label} of {what}", why="there are several; see `vna versions`")
        elif at_ns is not None:
            chosen = [s for s in found if s.since_ns <= at_ns and (s.ended_ns is None or at_ns < s.ended_ns)]
        else:
            chosen = [shown for shown in found if shown.ended_ns is not None and shown.is_kept]
        if not chosen:
            raise NotFound(what=f"Such a version of {what}")
        return chosen[-1]

    def _place(self, path: bytes) -> tuple[Inode, bytes]:
        """Where something goes: only into directories that are there."""
        above, _, name = path.strip(b"/").rpartition(b"/")
        check_name(name)
        with self._core.engine.read() as reader:
            folder = entries.follow(reader, above.split(b"/") if above else ())
        if folder is None or not folder.is_directory:
            raise NotFound(what=f"The directory {above.decode(errors='replace')}")
        refuse_in_root(folder.inode)
        return folder.inode, name

    def _make_room(self, change: Change, parent: Inode, name: bytes, now: int, *, replace: bool) -> None:
        entry = entries.find(change.tx, parent, name)
        if entry is None:
            return
        if not replace:
            raise AlreadyExists(what=f"{name.decode(errors='replace')} has a newer version there, which")
        if entry.is_directory:
            raise IsADirectory(what=name.decode(errors="replace"))
        guard.refuse_leaving(self._core, change.tx, entry.inode, change.row(entry.inode), place=parent)
        entries.delete(change.tx, parent, name, entry)
        unname(change, entry, parent=parent, name=name, is_open=entry.inode in self._core.handles.files, now=now)

    def _link(self, change: Change, inode: Inode, parent: Inode, name: bytes, cookie: int, now: int) -> InodeRow:
        """It is still there under another name."""
        above, row = change.row(parent), change.row(inode)
        retention.named(change, inode, row, parent)
        row = row._replace(nlink=row.nlink + 1, ctime_ns=now, parent=parent, cookie=cookie)
        change.set(inode, row)
        change.set(parent, above._replace(mtime_ns=now, ctime_ns=now))
        entries.put(change.tx, parent, name, Entry(inode, cookie, kind_of(row.mode), now))
        change.event(EventKind.NAMED, inode, row.version, parent, name)
        return row


def _shown(name: bytes, inode: Inode, row: InodeRow, since: int, ended: int | None, *, is_kept: bool) -> Shown:
    return Shown(
        name=name,
        inode=inode,
        version=row.version,
        since_ns=since,
        ended_ns=ended,
        mode=row.mode,
        size_bytes=row.size_bytes,
        mtime_ns=row.mtime_ns,
        sha256=None if row.seal is None else row.seal.sha256,
        is_kept=is_kept,
    )
