"""POSIX ACLs as Linux gives them to file systems: what one says, and what it does to a mode.

Pure: bytes and modes in, bytes and modes out. The bytes are those of include/uapi/linux/posix_acl_xattr.h: a version,
then entries of tag, permissions and id, all little-endian. What follows from them is acl(5) and fs/posix_acl.c.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vnafs.domain.errors import InvalidArgument, TooBig

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
"""Of a directory: what is made in it begins with that."""
NAMES = (ACCESS, DEFAULT)
ACL_BYTES_MAX = 4096
"""Linux asks FUSE for no more (fuse_get_acl in fs/fuse/acl.c)."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_TAGS = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
"""In the order that they come in. Those of _MANY may come any number of times, those of _ONE once."""
_MANY = (_USER, _GROUP)
_ONE = (_USER_OBJ, _GROUP_OBJ, _OTHER)
_RWX = 7
_NO_ID = (1 << 32) - 1
_PERMISSIONS = 0o777


class Entry(NamedTuple):
    """What one of them may do."""

    tag: int
    permissions: int
    id: int


def entries_of(value: bytes) -> list[Entry]:
    """The entries of an ACL; none of one that says nothing. Raises InvalidArgument, TooBig."""
    if len(value) > ACL_BYTES_MAX:
        raise TooBig(what="An ACL", limit_bytes=ACL_BYTES_MAX)
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise InvalidArgument(why="an ACL is a header and whole entries")
    if _HEADER.unpack_from(value) != (_VERSION,):
        raise InvalidArgument(why=f"only version {_VERSION} of ACLs is known")
    found = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if found:
        _check(found)
    return found


def _check(found: list[Entry]) -> None:
    """As posix_acl_valid in fs/posix_acl.c."""
    tags = [entry.tag for entry in found]
    if not set(tags) <= set(_TAGS) or sorted(tags) != tags:
        raise InvalidArgument(why="entries of an ACL come in the order of their tags")
    if any(tags.count(tag) != 1 for tag in _ONE) or tags.count(_MASK) > 1:
        raise InvalidArgument(why="an ACL has one entry for the owner, one for the group, one for others")
    if _MASK not in tags and any(tag in tags for tag in _MANY):
        raise InvalidArgument(why="an ACL that names somebody has a mask")
    if any(entry.permissions & ~_RWX for entry in found):
        raise InvalidArgument(why="an ACL knows of reading, writing and executing")
    if any(entry.id == _NO_ID for entry in found if entry.tag in _MANY):
        raise InvalidArgument(why="an ACL names users and groups that are some")


def packed(entries: list[Entry]) -> bytes:
    """The bytes again; ids of entries that name nobody are all ones, as Linux writes them."""
    shown = (entry if entry.tag in _MANY else entry._replace(id=_NO_ID) for entry in entries)
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in shown)


def says_more(entries: list[Entry]) -> bool:
    """Whether it says anything that a mode could not."""
    return any(entry.tag in (*_MANY, _MASK) for entry in entries)


def mode_of(entries: list[Entry], mode: int) -> int:
    """The mode of what has this ACL; its group bits are the mask, where there is one."""
    bits = {entry.tag: entry.permissions for entry in entries}
    group = bits.get(_MASK, bits[_GROUP_OBJ])
    return mode & ~_PERMISSIONS | bits[_USER_OBJ] << 6 | group << 3 | bits[_OTHER]


def with_mode(value: bytes, mode: int) -> bytes:
    """The ACL after chmod(2): owner, others, and the mask or else the group follow."""
    entries = entries_of(value)
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    follows = {_USER_OBJ: mode >> 6 & _RWX, group: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    return packed([entry._replace(permissions=follows.get(entry.tag, entry.permissions)) for entry in entries])


def inherited(default: bytes, mode: int) -> tuple[int, bytes]:
    """The mode of what is made with *mode* where *default* is inherited, and its ACL; empty if its mode says it all.

    What the program that makes it does not want is masked; its umask is not asked (umask(2)).
    """
    entries = entries_of(default)
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    wanted = {_USER_OBJ: mode >> 6 & _RWX, group: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    entries = [entry._replace(permissions=entry.permissions & wanted.get(entry.tag, _RWX)) for entry in entries]
    return mode_of(entries, mode), packed(entries) if says_more(entries) else b""
