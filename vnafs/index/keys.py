"""The key table: the only place where index keys are built or taken apart.

Numbers are big-endian and fixed-width, so that byte order is number order. In the tables below a digit after a
name is its width in bytes.

Namespace environment (sole writer: mount)

| key                  | value                     | why                                                              |
|----------------------|---------------------------|------------------------------------------------------------------|
| M name               | bytes                     | schema, epoch, fsid, reserved ranges, cursors, counts            |
| I inode8             | inode record              | attributes, repository, version, state, seal                     |
| E parent8 name       | inode, cookie, type       | lookup                                                           |
| K parent8 cookie8    | inode, type, name         | listing in order of creation; a cookie is never used twice       |
| X inode8 name        | value                     | extended attributes                                              |
| L inode8             | target                    | symbolic links                                                   |
| Q state1 due8 inode8 | version                   | what tiering works from; a file open for write waits at due max  |
| O inode8             | nothing                   | no name left, still open: purged at last close or next start     |
| D inode8 version8    | nothing                   | local bytes whose row is gone: removed after that commit         |
| P inode8 version8    | repository, place         | sealed, over and not in packs yet: its local bytes stay          |
| R inode8             | repository record         | the repository whose top directory this is                       |
| A parent8 name 0 ended8 | past name              | what a name led to before; `vnafs.index.past`                    |
| V inode8 version8    | past version              | what an inode was before                                         |
| B repository8 ended8 inode8 | keys               | the A and V rows that are removed once they were kept long enough |
| U inode8 version8    | repository, SHA-256       | came back from a kept version; the store has not heard of it yet |
| J repository8 kind1 inode8 | see `rollbacks`     | how far a rollback is                                            |
| W inode8             | retention                 | of a file that was committed                                     |
| G inode8             | until                     | a directory with committed files somewhere below; is not moved   |
| N inode8 parent8     | nothing                   | a directory that has, or had, one of the several names of a file |
| C due8 inode8        | version, ctime            | looked at then: committed by itself unless it was changed since  |
| H inode8 name        | hold                      | a legal hold on a file, a directory or a repository              |
| Y number8            | JSON                      | what was done about retention and holds, and why                 |
| S erasure8           | erasure                   | files that are erased for good: when, why, how far               |
| Z parent8 hash4 cookie8 | nothing                | names that are not in lower case, by it; `vnafs.index.caseless`  |
| T erasure8 inode8 version8 | erased version      | what was erased; names it by its hash, never by a path           |
| F seq8               | event                     | the feed                                                         |

Store environment (sole writer: tierd)

| key                        | value                  | why                                                           |
|----------------------------|------------------------|---------------------------------------------------------------|
| M name                     | bytes                  | schema, counts, cursors                                       |
| C content8                 | content record         | SHA-256, size, home pack, where its recipe lies, other packs  |
| H kind1 sha8               | numbers                | first 8 bytes of a hash to contents or pieces, checked after  |
| P piece8                   | piece record           | where a piece that may be shared is stored                    |
| N content8 inode8 version8 | nothing                | the files that are this content                               |
| K pack8                    | pack record            | id, size, digest, repository, packs it leans on, life         |
| U packid16                 | pack8                  | pack id to number                                             |
| V pack8 target8            | copy record            | what is known of a pack on a target                           |
| B pack8 content8           | nothing                | contents at home elsewhere that need this pack                |
| T target8 due8 pack8       | attempts, removes      | transfers to do; those that remove say so                     |
| G target8                  | target record          | name, identity, capabilities                                  |
| W inode8                   | protection record      | copies of a file that stays open, as it was at some moment    |
| Z pack8                    | condemned record       | packs nobody has whole; given up, their objects are removed   |
| Y inode8 version8          | nothing                | restored versions of whose bytes no content is known          |
| X inode8 version8          | nothing                | versions that the disk did not keep; the tree does not know   |
| E pack8 erasure8           | pack id                | packs that go because erased bytes are in them                |
| S public32                 | signer record          | each key that receipts were ever signed with, and when        |
| D erasure8                 | erasing record         | how far an erasure is behind the tree                         |
| D erasure8 target4         | when, and why not yet  | whether a target has been seen without it                     |
| F seq8                     | event                  | the feed                                                      |

Environment of one plain mirror (sole writer: tierd). A folder is the first 16 bytes of its path's SHA-256; an empty
leaf stands for the folder itself.

| key                        | value                  | why                                                           |
|----------------------------|------------------------|---------------------------------------------------------------|
| M name                     | bytes                  | schema, cursor, what was chosen, counts                       |
| P folder16                 | path                   | where a folder is                                             |
| O folder16 leaf            | mirrored record        | what the mirror has there                                     |
| R inode8 folder16 leaf     | nothing                | the names of an inode that the mirror knows                   |
| Q due8 folder16 leaf       | nothing                | what is to be looked at, soonest first                        |
| D folder16 leaf            | errand record          | the same by name                                              |
| H repository8 folder16 leaf | since                 | what waits until a tripwire is reset                          |
"""

from __future__ import annotations

import enum
import struct

from vnafs.domain.clock import Instant
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import (
    ContentNumber,
    Inode,
    PackId,
    PackNumber,
    PieceNumber,
    RepositoryId,
    Sha256,
    Version,
)

NAMESPACE_TABLES = b"EFIKLQX"
STORE_TABLES = b"BCFHKNPTUV"
MIRROR_TABLES = b"DOQR"
"""The tables with many rows, which an engine may keep apart; part of an environment's schema."""

NAME_BYTES_MAX = 255
DUE_NEVER = Instant((1 << 63) - 1)

_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">cQQ")
_THREE = struct.Struct(">cQQQ")
_QUEUE = struct.Struct(">cBQQ")


class Hashed(enum.IntEnum):
    """What a short hash prefix leads to."""

    CONTENT = 1
    PIECE = 2


def _one(table: bytes, number: int) -> bytes:
    return table + _U64.pack(number)


def number_of(key: bytes) -> int:
    """The last eight bytes of any key that ends in a number."""
    return int.from_bytes(key[-8:], "big")


# -- both environments ---------------------------------------------------------------------------------------


def meta(name: str) -> bytes:
    """M: one named value."""
    return b"M" + name.encode("ascii")


def feed(sequence: int) -> bytes:
    """F: one event."""
    return _one(b"F", sequence)


FEED = b"F"

# -- namespace -----------------------------------------------------------------------------------------------


def inode(number: Inode) -> bytes:
    """I: one inode."""
    return _one(b"I", number)


INODES = b"I"


def entry(parent: Inode, name: bytes) -> bytes:
    """E: one name in a directory."""
    return _one(b"E", parent) + name


def entry_of(key: bytes) -> tuple[Inode, bytes]:
    """The parent and name of an E row."""
    return Inode(int.from_bytes(key[1:9], "big")), bytes(key[9:])


ENTRIES = b"E"


def entries(parent: Inode) -> bytes:
    """E: prefix of all names in a directory, in byte order."""
    return _one(b"E", parent)


def cookie(parent: Inode, number: int) -> bytes:
    """K: one place in a directory's listing."""
    return _TWO.pack(b"K", parent, number)


def cookies(parent: Inode) -> bytes:
    """K: prefix of a directory's listing."""
    return _one(b"K", parent)


def folded(parent: Inode, digest: bytes) -> bytes:
    """Z: prefix of the names in a directory whose folded form has that digest; a cookie follows."""
    return _one(b"Z", parent) + digest


FOLDED = b"Z"


def xattr(number: Inode, name: bytes) -> bytes:
    """X: one extended attribute."""
    return _one(b"X", number) + name


def xattrs(number: Inode) -> bytes:
    """X: prefix of all extended attributes of an inode."""
    return _one(b"X", number)


XATTR_PREFIX_BYTES = 9


def symlink(number: Inode) -> bytes:
    """L: where a symbolic link points."""
    return _one(b"L", number)


def queue(candidate: Candidate) -> bytes:
    """Q: one version that waits."""
    return _QUEUE.pack(b"Q", candidate.state, candidate.due, candidate.inode)


def queue_from(state: FileState, due: Instant = Instant(0)) -> bytes:
    """Q: where a scan of one state's rows from *due* on begins."""
    return b"Q" + bytes([state]) + _U64.pack(due)


def candidate_of(key: bytes, version: Version) -> Candidate:
    """A queue row as a value."""
    _, state, due, number = _QUEUE.unpack(key)
    return Candidate(Inode(number), version, FileState(state), Instant(due))


def orphan(number: Inode) -> bytes:
    """O: an inode without a name."""
    return _one(b"O", number)


ORPHANS = b"O"


def dropped(number: Inode, version: Version) -> bytes:
    """D: local bytes to remove."""
    return _TWO.pack(b"D", number, version)


DROPPED = b"D"


def unpacked(number: Inode, version: Version) -> bytes:
    """P: local bytes that are still to be packed."""
    return _TWO.pack(b"P", number, version)


def unpacked_of(key: bytes) -> tuple[Inode, Version]:
    """The inode and version of a P row."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


def unpacked_versions(number: Inode) -> bytes:
    """P: prefix of all such versions of an inode."""
    return _one(b"P", number)


UNPACKED = b"P"


def dropped_of(key: bytes) -> tuple[Inode, Version]:
    """The inode and version of a D row."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


def repository(number: RepositoryId) -> bytes:
    """R: one repository."""
    return _one(b"R", number)


REPOSITORIES = b"R"


def past_name(parent: Inode, name: bytes, ended_ns: int) -> bytes:
    """A: one name as it was until a moment."""
    return past_names_of(parent, name) + _U64.pack(ended_ns)


def past_name_of(key: bytes) -> tuple[Inode, bytes, int]:
    """The parent, name and end of an A row."""
    return Inode(int.from_bytes(key[1:9], "big")), key[9:-9], int.from_bytes(key[-8:], "big")


def past_names_of(parent: Inode, name: bytes) -> bytes:
    """A: prefix of the past of one name, oldest first; no name has a NUL."""
    return _one(b"A", parent) + name + b"\0"


def past_names(parent: Inode) -> bytes:
    """A: prefix of the past of all names in a directory, in byte order."""
    return _one(b"A", parent)


PAST_NAMES = b"A"


def past_version(number: Inode, version: Version) -> bytes:
    """V: one version that is over."""
    return _TWO.pack(b"V", number, version)


def past_version_of(key: bytes) -> tuple[Inode, Version]:
    """The inode and version of a V row."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


def past_versions(number: Inode) -> bytes:
    """V: prefix of all versions of an inode that are over, oldest first."""
    return _one(b"V", number)


PAST_VERSIONS = b"V"


def ending(number: RepositoryId, ended_ns: int, file: Inode) -> bytes:
    """B: rows of the past that ended at one moment."""
    return _THREE.pack(b"B", number, ended_ns, file)


def ending_of(key: bytes) -> tuple[RepositoryId, int, Inode]:
    """The parts of a B row."""
    _, number, ended_ns, file = _THREE.unpack(key)
    return RepositoryId(number), ended_ns, Inode(file)


ENDINGS = b"B"


def returned(number: Inode, version: Version) -> bytes:
    """U: one version that came back."""
    return _TWO.pack(b"U", number, version)


def returned_of(key: bytes) -> tuple[Inode, Version]:
    """The inode and version of a U row."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


RETURNED = b"U"


class Rolling(enum.IntEnum):
    """What a J row tells."""

    FOLDER = 1
    """A directory whose names are to be made what they were."""
    MADE = 2
    """What an inode of the past came back as."""
    COUNTS = 3


def rolling(number: RepositoryId, kind: Rolling, file: Inode = Inode(0)) -> bytes:
    """J: one thing that a rollback remembers."""
    return rollings(number, kind) + _U64.pack(file)


def rollings(number: RepositoryId, kind: Rolling) -> bytes:
    """J: prefix of all that a rollback remembers of one kind."""
    return _one(b"J", number) + bytes([kind])


def retention(number: Inode) -> bytes:
    """W: the retention of one file."""
    return _one(b"W", number)


RETENTIONS = b"W"


def retained_below(number: Inode) -> bytes:
    """G: one directory with committed files below."""
    return _one(b"G", number)


RETAINED_BELOW = b"G"


def named_in(number: Inode, parent: Inode) -> bytes:
    """N: one directory in which a file of several names may have one."""
    return _TWO.pack(b"N", number, parent)


def named_ins(number: Inode) -> bytes:
    """N: prefix of all directories in which a file may have a name."""
    return _one(b"N", number)


def committing(due_ns: int, number: Inode) -> bytes:
    """C: one file that may be committed by itself."""
    return _TWO.pack(b"C", due_ns, number)


def committing_of(key: bytes) -> tuple[int, Inode]:
    """When a C row is due, and of what."""
    _, due_ns, number = _TWO.unpack(key)
    return due_ns, Inode(number)


COMMITTING = b"C"


def hold(number: Inode, name: bytes) -> bytes:
    """H: one legal hold."""
    return _one(b"H", number) + name


def holds(number: Inode) -> bytes:
    """H: prefix of the holds on one inode."""
    return _one(b"H", number)


def hold_of(key: bytes) -> tuple[Inode, bytes]:
    """The inode and name of an H row."""
    return Inode(int.from_bytes(key[1:9], "big")), key[9:]


HOLDS = b"H"


def audit(number: int) -> bytes:
    """Y: one thing that was done."""
    return _one(b"Y", number)


AUDITS = b"Y"


def erasure(number: int) -> bytes:
    """S: one erasure."""
    return _one(b"S", number)


ERASURES = b"S"


def erased(number: int, file: Inode, version: Version) -> bytes:
    """T: one version that was erased."""
    return _THREE.pack(b"T", number, file, version)


def erased_of(key: bytes) -> tuple[int, Inode, Version]:
    """The parts of a T row."""
    _, number, file, version = _THREE.unpack(key)
    return number, Inode(file), Version(version)


def erased_by(number: int) -> bytes:
    """T: prefix of all that one erasure erased."""
    return _one(b"T", number)


def erased_inode(number: int, file: Inode) -> bytes:
    """T: prefix of what one erasure erased of one inode."""
    return _TWO.pack(b"T", number, file)


# -- store ---------------------------------------------------------------------------------------------------


def content(number: ContentNumber) -> bytes:
    """C: one content."""
    return _one(b"C", number)


CONTENTS = b"C"


def hashed(kind: Hashed, digest: Sha256) -> bytes:
    """H: the numbers that share the first eight bytes of a hash."""
    return b"H" + bytes([kind]) + digest[:8]


def piece(number: PieceNumber) -> bytes:
    """P: one piece."""
    return _one(b"P", number)


PIECES = b"P"


def use(number: ContentNumber, file: Inode, version: Version) -> bytes:
    """N: one file that is this content."""
    return _THREE.pack(b"N", number, file, version)


def uses(number: ContentNumber) -> bytes:
    """N: prefix of all files that are this content."""
    return _one(b"N", number)


USES = b"N"


def use_of(key: bytes) -> tuple[ContentNumber, Inode, Version]:
    """The parts of an N row."""
    _, number, file, version = _THREE.unpack(key)
    return ContentNumber(number), Inode(file), Version(version)


def pack(number: PackNumber) -> bytes:
    """K: one pack."""
    return _one(b"K", number)


PACKS = b"K"


def pack_id(identity: PackId) -> bytes:
    """U: the number of a pack."""
    return b"U" + identity


def copy(number: PackNumber, target: int) -> bytes:
    """V: one pack on one target."""
    return _TWO.pack(b"V", number, target)


def copies(number: PackNumber) -> bytes:
    """V: prefix of all copies of a pack."""
    return _one(b"V", number)


def leaning(number: PackNumber, needed_by: ContentNumber) -> bytes:
    """B: a content at home in another pack that needs this one."""
    return _TWO.pack(b"B", number, needed_by)


def leanings(number: PackNumber) -> bytes:
    """B: prefix of all contents at home elsewhere that need this pack."""
    return _one(b"B", number)


def transfer(target: int, due: Instant, number: PackNumber) -> bytes:
    """T: one transfer to do."""
    return _THREE.pack(b"T", target, due, number)


def transfers(target: int) -> bytes:
    """T: prefix of all transfers to a target, soonest first."""
    return _one(b"T", target)


TRANSFERS = b"T"


def transfer_of(key: bytes) -> tuple[int, Instant, PackNumber]:
    """The parts of a T row."""
    _, target, due, number = _THREE.unpack(key)
    return target, Instant(due), PackNumber(number)


def emptied(number: PackNumber, for_erasure: int) -> bytes:
    """E: one pack that goes because of an erasure."""
    return _TWO.pack(b"E", number, for_erasure)


def emptied_of(key: bytes) -> tuple[PackNumber, int]:
    """The pack and the erasure of an E row."""
    _, number, for_erasure = _TWO.unpack(key)
    return PackNumber(number), for_erasure


def emptied_pack(number: PackNumber) -> bytes:
    """E: prefix of all erasures because of which a pack goes."""
    return _one(b"E", number)


EMPTIED = b"E"


def signer(public: bytes) -> bytes:
    """S: one key that signs receipts, or did."""
    return b"S" + public


def signer_of(key: bytes) -> bytes:
    """The public key of an S row."""
    return key[1:]


SIGNERS = b"S"


def erasing(number: int) -> bytes:
    """D: how far one erasure is; also the prefix of what its targets say."""
    return _one(b"D", number)


def erasing_on(number: int, target_number: int) -> bytes:
    """D: what one target says of one erasure."""
    return erasing(number) + target_number.to_bytes(4, "big")


def target(number: int) -> bytes:
    """G: one target."""
    return _one(b"G", number)


TARGETS = b"G"


def condemned(number: PackNumber) -> bytes:
    """Z: one pack that was given up."""
    return _one(b"Z", number)


CONDEMNED = b"Z"


def protection(number: Inode) -> bytes:
    """W: one file that stays open."""
    return _one(b"W", number)


PROTECTIONS = b"W"


def unreadable(number: Inode, version: Version) -> bytes:
    """Y: one version without bytes."""
    return _TWO.pack(b"Y", number, version)


def unreadable_of(key: bytes) -> tuple[Inode, Version]:
    """The version of a Y key."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


UNREADABLE = b"Y"


def suspect(number: Inode, version: Version) -> bytes:
    """X: one version that the local disk did not keep."""
    return _TWO.pack(b"X", number, version)


def suspect_of(key: bytes) -> tuple[Inode, Version]:
    """The version of an X key."""
    _, number, version = _TWO.unpack(key)
    return Inode(number), Version(version)


SUSPECTS = b"X"


# -- mirror --------------------------------------------------------------------------------------------------


def mirror_folder(folder: bytes) -> bytes:
    """P: one folder."""
    return b"P" + folder


def mirrored(folder: bytes, leaf: bytes) -> bytes:
    """O: one name on the mirror."""
    return b"O" + folder + leaf


MIRRORED = b"O"


def mirrored_in(folder: bytes) -> bytes:
    """O: prefix of all names in a folder; the folder's own row is first."""
    return b"O" + folder


def mirrored_name(inode: Inode, folder: bytes, leaf: bytes) -> bytes:
    """R: one name of an inode."""
    return _one(b"R", inode) + folder + leaf


def mirrored_names(inode: Inode) -> bytes:
    """R: prefix of all names of an inode."""
    return _one(b"R", inode)


def errand_due(due: Instant, folder: bytes, leaf: bytes) -> bytes:
    """Q: one thing to look at."""
    return _one(b"Q", due) + folder + leaf


ERRANDS_DUE = b"Q"


def errand_due_of(key: bytes) -> tuple[Instant, bytes, bytes]:
    """The parts of a Q row."""
    return Instant(int.from_bytes(key[1:9], "big")), bytes(key[9:25]), bytes(key[25:])


def errand(folder: bytes, leaf: bytes) -> bytes:
    """D: the same by name."""
    return b"D" + folder + leaf


def errands_in(folder: bytes) -> bytes:
    """D: prefix of all that is to be looked at in a folder."""
    return b"D" + folder


def waiting(repository: RepositoryId, folder: bytes, leaf: bytes) -> bytes:
    """H: one name that waits until a tripwire is reset."""
    return _one(b"H", repository) + folder + leaf


def waitings(repository: RepositoryId) -> bytes:
    """H: prefix of all that waits for one repository."""
    return _one(b"H", repository)


WAITING = b"H"


def waiting_of(key: bytes) -> tuple[RepositoryId, bytes, bytes]:
    """The parts of an H row."""
    return RepositoryId(int.from_bytes(key[1:9], "big")), bytes(key[9:25]), bytes(key[25:])


def mirrored_of(key: bytes) -> tuple[bytes, bytes]:
    """The folder and leaf of an O row."""
    return bytes(key[1:17]), bytes(key[17:])


def mirrored_leaf(key: bytes) -> bytes:
    """The leaf of an O row."""
    return bytes(key[17:])


def mirrored_name_of(key: bytes) -> tuple[bytes, bytes]:
    """The folder and leaf of an R row."""
    return bytes(key[9:25]), bytes(key[25:])
