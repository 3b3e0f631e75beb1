"""What the kernel's NFS server reads: exports(5), and nfs.conf(5) for the versions that it speaks.

The same settings always give the same text. `sync` and a fixed `fsid` are not a choice: without them an answered write
may be lost, and handles die with a restart.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.shares.settings import ShareSettings

_SQUASH = {"root": "root_squash", "all": "all_squash", "none": "no_root_squash"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:,=")


def exports(shares: Sequence[ShareSettings], mount: str) -> str:
    """Lines for /etc/exports.d, one an export."""
    lines = []
    for share in sorted(shares, key=lambda share: share.place):
        if share.protocol == "nfs":
            hosts = (f"{host}({','.join(_options(share, writes=writes))})" for host, writes in share.clients)
            lines.append(f"{_escaped(f'{mount}/{share.place}')} {' '.join(hosts)}\n")
    return "".join(lines)


def nfs_conf(shares: Sequence[ShareSettings]) -> str:
    """Which versions the server speaks, which is one answer for all exports; more groups than NFS has room for."""
    spoken = {version for share in shares if share.protocol == "nfs" for version in share.versions}
    values = {"vers3": "3" in spoken, "vers4": "4.2" in spoken, "vers4.0": False, "vers4.1": False}
    values |= {"vers4.2": "4.2" in spoken, "udp": False}
    lines = (f"{key} = {'y' if value else 'n'}\n" for key, value in values.items())
    return f"[nfsd]\n{''.join(lines)}\n[mountd]\nmanage-gids = y\n"


def _options(share: ShareSettings, *, writes: bool) -> list[str]:
    found = ["rw" if writes else "ro", "sync", "no_subtree_check", f"fsid={share.fsid}", _SQUASH[share.squash]]
    if share.squashed_to is not None:
        uid, gid = share.squashed_to
        found += [f"anonuid={uid}", f"anongid={gid}"]
    return [*found, f"sec={':'.join(share.security)}"]


def _escaped(path: str) -> str:
    """A path as exports(5) has it: other characters as three octal digits."""
    return "".join(
        char if char in _PLAIN else "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in path
    )
