"""What a share is: one repository, or a folder in it, shown to clients by one protocol.

Knows no server and no index: whether a repository is there is asked where that can be known. Everything that gets into
a server's configuration is checked here, character by character: nothing a person writes becomes a line of its own.
Plain frozen values.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import shlex
import uuid
from collections.abc import Sequence
from typing import NoReturn, Protocol

PROTOCOLS = ("smb", "nfs")
ENCRYPTIONS = ("desired", "required")
SMB_VERSIONS = ("SMB2_10", "SMB3", "SMB3_11")
SQUASHES = ("root", "all", "none")
SECURITIES = ("sys", "krb5", "krb5i", "krb5p")
NFS_VERSIONS = ("3", "4.2")
NAME_LENGTH_MAX = 80
"""Of a share (MS-SRVS 2.2.4.23, smb.conf(5))."""
ACCOUNT_LENGTH_MAX = 20
"""Of a user of this machine, for SMB clients (sAMAccountName)."""
ID_MAX = 2**32 - 2

_NAME = re.compile(r"[^\x00-\x1f\x7f\"/\\\[\]:;|<>+=,*?%#{}$]+")
_NAMES_TAKEN = frozenset({"global", "homes", "printers", "print$", "ipc$", "admin$", "ipc", "admin"})
_USER = re.compile(r"[@+&]?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*\\)?\w[\w .@()&'-]*")
_ODD = re.compile(r"[\x00-\x1f\x7f\"\\%;#${}`]")
_ACCOUNT = re.compile(rf"[a-z][a-z0-9_-]{{0,{ACCOUNT_LENGTH_MAX - 1}}}")
_OWNER = re.compile(r"(\d{1,10}):(\d{1,10})")


class Fail(Protocol):
    """Refuses a value."""

    def __call__(self, key: str, value: object, why: str, fix: str) -> NoReturn:
        """Raises ConfigurationInvalid."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SharingSettings:
    """[sharing]: what all shares of this machine have in common."""

    folder: str = ""
    """Where `vna share render` writes; unless told, `shares` in the archive."""
    addresses: tuple[str, ...] = ()
    """Of this machine, on which servers listen; all, unless told."""
    smb_version_min: str = "SMB3"
    """Older clients are refused; "SMB2_10" for Windows 7, "SMB3_11" for nothing older than Windows 10."""
    smb_port: int = 445
    nfs_port: int = 2049
    """Of nfs-ganesha."""
    mount_port: int = 20048
    """Of nfs-ganesha, for NFSv3."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShareSettings:
    """One [[share]]."""

    name: str
    repository: str
    protocol: str
    """smb or nfs."""
    folder: str = ""
    """Below the repository; all of it, unless told."""
    read_only: bool = False
    hosts: tuple[str, ...] = ()
    """Addresses and networks that may use it; of NFS each may end in ` ro`. None: for SMB all, for NFS not allowed."""
    users: tuple[str, ...] = ()
    """SMB: users and @groups that may use it; all that can log in, unless told."""
    case_sensitive: bool = False
    """SMB: `A.dcm` and `a.dcm` are two names. Faster; Windows expects one."""
    encryption: str = "desired"
    """SMB: or "required", which refuses clients that cannot."""
    previous_versions: bool = True
    """SMB: show what was as Previous Versions."""
    break_glass: str = ""
    """SMB, in a domain: an account of this machine that may do everything in this share; `vna share break-glass`."""
    squash: str = "root"
    """NFS: whose requests are the owner's of `owner` or nobody's: root's, all or none."""
    owner: str = ""
    """NFS: UID:GID that squashed requests have; nobody's, unless told."""
    security: tuple[str, ...] = ("sys",)
    """NFS: best first; sys, krb5, krb5i, krb5p."""
    versions: tuple[str, ...] = ("3", "4.2")
    """NFS."""
    fsid: str = ""
    """NFS: a UUID that clients' handles carry; never change it."""
    both_write_because: str = ""
    """Why SMB and NFS both write here, or in a domain are both here at all, which is refused otherwise."""

    @property
    def place(self) -> str:
        """Where it is below the mount."""
        return f"{self.repository}/{self.folder}" if self.folder else self.repository

    @property
    def clients(self) -> tuple[tuple[str, bool], ...]:
        """Each host of `hosts` and whether it may write."""
        found = (text.partition(" ") for text in self.hosts)
        return tuple((host, not self.read_only and access != "ro") for host, _, access in found)

    @property
    def is_written(self) -> bool:
        """Whether anybody may change something through it."""
        return not self.read_only and (self.protocol == "smb" or any(writes for _, writes in self.clients))

    @property
    def squashed_to(self) -> tuple[int, int] | None:
        """User and group of squashed requests; None: nobody's."""
        found = _OWNER.fullmatch(self.owner)
        return (int(found[1]), int(found[2])) if found else None


_OF_ONE_PROTOCOL = {
    **dict.fromkeys(("users", "case_sensitive", "encryption", "previous_versions", "break_glass"), "smb"),
    **dict.fromkeys(("squash", "owner", "security", "versions", "fsid"), "nfs"),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ShareSettings)}


def check(sharing: SharingSettings, shares: Sequence[ShareSettings], fail: Fail, *, in_domain: bool = False) -> None:
    """Refuse, by *fail*, what servers would not take or what is not safe."""
    _check_sharing(sharing, fail)
    for number, share in enumerate(shares):
        _check_one(share, f"share[{number}].", fail)
        if share.break_glass and not in_domain:
            why = "is for the day when the domain is away, and there is none"
            command = f"`vna share break-glass {shlex.quote(share.name)} --remove`"
            fix = f"Name domain.realm again, run {command}, and only then take the domain out"
            fail(f"share[{number}].break_glass", share.break_glass, why, fix)
        for other in shares[:number]:
            _check_two(share, other, f"share[{number}].", fail)
            if in_domain:
                _check_acls(share, other, f"share[{number}].", fail)


def _check_sharing(sharing: SharingSettings, fail: Fail) -> None:
    if sharing.folder and not sharing.folder.startswith("/"):
        fail("sharing.folder", sharing.folder, "is not an absolute path", "Write the whole path, from /")
    _among(sharing.smb_version_min, SMB_VERSIONS, "sharing.smb_version_min", fail)
    for name in ("smb_port", "nfs_port", "mount_port"):
        if not 1 <= (port := getattr(sharing, name)) <= 65535:
            fail(f"sharing.{name}", port, "is not a port", f"{_default_of(name)} is the usual one")
    for number, text in enumerate(sharing.addresses):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            fail(f"sharing.addresses[{number}]", text, "is not an address", "Write one of this machine, as 10.1.2.3")


def _default_of(name: str) -> object:
    return {field.name: field.default for field in dataclasses.fields(SharingSettings)}[name]


def _check_one(share: ShareSettings, at: str, fail: Fail) -> None:
    _among(share.protocol, PROTOCOLS, f"{at}protocol", fail)
    for name, protocol in _OF_ONE_PROTOCOL.items():
        if protocol != share.protocol and (value := getattr(share, name)) != _DEFAULTS[name]:
            fail(f"{at}{name}", value, f"means nothing for {share.protocol}", "Leave it out")
    _check_name(share.name, at, fail)
    parts = [("repository", share.repository)]
    parts += [("folder", part) for part in share.folder.split("/") if share.folder]
    for key, part in parts:
        if part in {"", ".", ".."} or part.startswith(".as-of") or "/" in part:
            fail(f"{at}{key}", getattr(share, key), "is not a path below it", "Write names with / between, or nothing")
        if not is_plain(part):
            fix = "Share the folder above, or give it a plainer name"
            fail(f"{at}{key}", getattr(share, key), "has characters that servers' configurations do not take", fix)
    if not share.both_write_because.isprintable():
        fail(f"{at}both_write_because", share.both_write_because, "is not one line of text", "Write one")
    if share.protocol == "smb":
        _check_smb(share, at, fail)
    else:
        _check_nfs(share, at, fail)


def _check_name(name: str, at: str, fail: Fail) -> None:
    if not _NAME.fullmatch(name) or name != name.strip() or len(name) > NAME_LENGTH_MAX:
        fix = "Use 1 to 80 letters, digits, spaces, -, _ and ."
        fail(f"{at}name", name, "is not a name that a share can have", fix)
    if name.casefold() in _NAMES_TAKEN:
        fail(f"{at}name", name, "means something of its own to SMB", "Choose another")


def _check_smb(share: ShareSettings, at: str, fail: Fail) -> None:
    _among(share.encryption, ENCRYPTIONS, f"{at}encryption", fail)
    if share.break_glass and not is_account(share.break_glass):
        fix = "Use at most 20 small letters, digits, - and _, beginning with a letter"
        fail(f"{at}break_glass", share.break_glass, "is not a name that an account can have", fix)
    for number, user in enumerate(share.users):
        if not _USER.fullmatch(user) or user != user.strip():
            fail(f"{at}users[{number}]", user, "is neither a user nor a group", "Write for example pacs or @radiology")
    for number, host in enumerate(share.hosts):
        _check_host(host, f"{at}hosts[{number}]", fail)


def _check_nfs(share: ShareSettings, at: str, fail: Fail) -> None:
    _among(share.squash, SQUASHES, f"{at}squash", fail)
    for key, known in (("security", SECURITIES), ("versions", NFS_VERSIONS)):
        values = getattr(share, key)
        if not values or len(set(values)) != len(values):
            fail(f"{at}{key}", list(values), "names nothing, or something twice", f"Choose of {', '.join(known)}")
        for number, value in enumerate(values):
            _among(value, known, f"{at}{key}[{number}]", fail)
    if not share.hosts:
        fail(f"{at}hosts", [], "lets nobody in", 'Name hosts or networks; ["0.0.0.0/0", "::/0"] is everybody')
    for number, text in enumerate(share.hosts):
        host, separator, access = text.partition(" ")
        if separator and access not in {"ro", "rw"}:
            fail(f"{at}hosts[{number}]", text, "has something else than ro or rw behind it", "Write 10.1.2.3 ro")
        _check_host(host, f"{at}hosts[{number}]", fail)
    if share.owner and (share.squashed_to is None or max(share.squashed_to) > ID_MAX):
        fail(f"{at}owner", share.owner, "is not UID:GID", "Write numbers, for example 1000:1000")
    try:
        is_right = str(uuid.UUID(share.fsid)) == share.fsid
    except ValueError:
        is_right = False
    if not is_right:
        fix = "`vna share add` writes one; by hand, take what uuidgen prints, and keep it"
        fail(f"{at}fsid", share.fsid, "is not a UUID", fix)


def _check_host(host: str, key: str, fail: Fail) -> None:
    try:
        ipaddress.ip_network(host)
    except ValueError:
        fix = "Write an address or a network, such as 10.1.2.3 or 10.1.0.0/16"
        fail(key, host, "is neither an address nor a network", fix)


def _check_two(share: ShareSettings, other: ShareSettings, at: str, fail: Fail) -> None:
    if share.name.casefold() == other.name.casefold():
        fail(f"{at}name", share.name, f"is the name of another share, {other.name}", "Give each its own")
    if share.break_glass and share.break_glass == other.break_glass:
        why = f"breaks the glass of share {other.name} already"
        fail(f"{at}break_glass", share.break_glass, why, "Give each its own, so that one password opens one share")
    if share.fsid and share.fsid == other.fsid:
        fail(f"{at}fsid", share.fsid, f"is that of share {other.name}", "Give each its own, as uuidgen prints them")
    if not _meet(share.place, other.place):
        return
    if share.protocol == other.protocol == "nfs":
        why = f"is, holds or lies in what share {other.name} shows by NFS already"
        fail(f"{at}folder" if share.folder else f"{at}repository", share.place, why, "Add its hosts to that one")
    is_both = share.protocol != other.protocol and share.is_written and other.is_written
    if is_both and not (share.both_write_because or other.both_write_because):
        why = (
            f"would write where share {other.name} writes by {other.protocol}: SMB clients hold leases and locks that "
            "NFS does not know of, so each would overwrite what the other has not written yet"
        )
        fix = "Make one of them read_only, or say `both_write_because`, which takes leases from SMB clients here"
        fail(f"{at}protocol", share.protocol, why, fix)


def _check_acls(share: ShareSettings, other: ShareSettings, at: str, fail: Fail) -> None:
    """In a domain NT ACLs decide, of which NFS knows nothing."""
    is_both = share.protocol != other.protocol and _meet(share.place, other.place)
    if is_both and not (share.both_write_because or other.both_write_because):
        why = (
            f"would show what share {other.name} shows by {other.protocol}: NFS knows no NT ACLs, and what SMB clients "
            "make in a domain has permission bits that let everybody in (0666, 0777)"
        )
        fix = "Share another folder, or say `both_write_because`; permission bits then decide for SMB clients too"
        fail(f"{at}protocol", share.protocol, why, fix)


def is_account(name: str) -> bool:
    """Whether an account of this machine can be called that, for Linux and for Samba."""
    return _ACCOUNT.fullmatch(name) is not None


def is_plain(path: str) -> bool:
    """Whether every server's configuration can name it."""
    return not _ODD.search(path) and path == path.strip()


def both_write(share: ShareSettings, shares: Sequence[ShareSettings]) -> bool:
    """Whether another protocol writes where this share does."""
    return share.is_written and any(
        other.protocol != share.protocol and other.is_written and _meet(share.place, other.place) for other in shares
    )


def is_on_nfs(share: ShareSettings, shares: Sequence[ShareSettings]) -> bool:
    """Whether something of it is shared by NFS too, where permission bits alone decide."""
    return any(other.protocol == "nfs" and _meet(share.place, other.place) for other in shares)


def _meet(place: str, other: str) -> bool:
    """Whether one is, holds or lies in the other."""
    return f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/")


def _among(value: str, known: Sequence[str], key: str, fail: Fail) -> None:
    if value not in known:
        fail(key, value, "is not known", f"Choose one of {', '.join(known)}")
