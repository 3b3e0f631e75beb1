"""What a plain mirror says of a folder: lines of JSON, first the folder's own, then one for each name in it.

README, "Plain mirrors", has the fields. A line tells of the object that is on the mirror, with the name's attributes as
they are in the tree now. Reads rows, writes nothing.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from vnafs.domain.ids import Inode
from vnafs.domain.plainnames import escaped, object_name
from vnafs.index import keys, mirrored, xattrs
from vnafs.index.engine import Reader
from vnafs.index.inodes import InodeRow
from vnafs.index.mirrored import Kind, Mirrored
from vnafs.upkeep.mirrortree import Name, View

FORMAT_VERSION = 1
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def lines(view: View, rows: Reader, parts: Sequence[bytes], folder: Inode) -> Iterator[bytes]:
    """The lines of one folder."""
    own = view.row(folder)
    head: dict[str, Any] = {"vnafs_mirror": FORMAT_VERSION, "path": "/".join(map(escaped, parts))}
    if own is not None:
        head |= _attributes(view, folder, own)
    yield _line(head)
    for leaf, name, there in merged(view.names(folder), mirrored.every_in(rows, mirrored.folder_of(parts), b"")):
        row = None if name is None else view.row(name.inode)
        if name is None or row is None:
            if there is not None and there.is_left:
                yield _line({"name": escaped(leaf), "type": "file", "removed": True, **_object(parts, leaf, there)})
            continue
        found: dict[str, Any] = {"name": escaped(leaf), "type": _TYPES[stat.S_IFMT(row.mode)]}
        if not row.is_directory:
            found |= _attributes(view, name.inode, row)
        if row.is_file:
            is_there = there is not None and there.kind is Kind.FILE and there.is_present and not there.is_in_doubt
            if is_there and there is not None:
                found |= _object(parts, leaf, there)
            if row.seal is None or not is_there or there is None or there.sha256 != row.seal.sha256:
                found["pending"] = True
        yield _line(found)


def merged(
    names: Iterator[Name], there: Iterator[tuple[bytes, Mirrored]]
) -> Iterator[tuple[bytes, Name | None, Mirrored | None]]:
    """What the tree has and what the mirror has, side by side in byte order."""
    name, row = next(names, None), next(there, None)
    while name is not None or row is not None:
        if row is None or (name is not None and name.leaf < row[0]):
            yield name.leaf, name, None  # type: ignore[union-attr]  # one of the two is there
            name = next(names, None)
        elif name is None or row[0] < name.leaf:
            yield row[0], None, row[1]
            row = next(there, None)
        else:
            yield name.leaf, name, row[1]
            name, row = next(names, None), next(there, None)


def _object(parts: Sequence[bytes], leaf: bytes, there: Mirrored) -> dict[str, Any]:
    return {
        "object": object_name([*parts, leaf]),
        "size": there.size_bytes,
        "sha256": "" if there.sha256 is None else there.sha256.hex(),
    }


def _attributes(view: View, inode: Inode, row: InodeRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mode": f"{stat.S_IMODE(row.mode):04o}",
        "uid": row.uid,
        "gid": row.gid,
        "mtime_ns": row.mtime_ns,
    }
    if row.nlink > 1 and not row.is_directory:
        found["inode"] = inode
    if row.rdev:
        found["rdev"] = row.rdev
    if row.is_symlink:
        found["target"] = escaped_whole(bytes(view.reader.get(keys.symlink(inode)) or b""))
    if row.has_xattrs:
        found["xattrs"] = {
            escaped_whole(name): base64.b64encode(xattrs.find(view.reader, inode, name) or b"").decode()
            for name in xattrs.names(view.reader, inode)
        }
    return found


def escaped_whole(text: bytes) -> str:
    """A path or a name of something else: `%XX` for a `%` and for bytes that are not UTF-8, nothing else."""
    decoded = text.decode("utf-8", "surrogateescape")
    return "".join(
        f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else "%25" if c == "%" else c for c in decoded
    )


def _line(found: dict[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
