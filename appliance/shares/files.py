"""The files that servers read, rendered from the configuration into one folder.

All of them are always there, so that none tells of a share that is gone. A file is replaced in one step and synced
before it gets its name; one that is right already is left alone. Starts and tells no server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from appliance.domain.rendering import krb5_conf
from appliance.domain.settings import NO_DOMAIN, DomainSettings
from appliance.shares import ganesha, nfs, samba
from appliance.shares.settings import ShareSettings, SharingSettings, is_plain
from vnafs.domain.errors import Refused
from vnafs.local.replacement import replace

USES: Mapping[str, str] = {
    "smb.conf": "Samba: /etc/samba/smb.conf, or `include` it there; then smbcontrol smbd reload-config",
    "vnafs.exports": "the kernel's NFS server: /etc/exports.d; then exportfs -ra",
    "nfs.conf": "the kernel's NFS server: /etc/nfs.conf.d/vnafs.conf; then restart it",
    "ganesha.conf": "nfs-ganesha, where the kernel has no NFS server: /etc/ganesha/ganesha.conf",
    "krb5.conf": "Kerberos, in a domain: /etc/krb5.conf",
}
"""File name to what reads it."""
_HEADER = """# Written by `vna share render` from [[share]], [sharing] and [domain] of vnafs.toml.
# What is changed here gets lost. For {use}
"""


def render(
    sharing: SharingSettings, shares: Sequence[ShareSettings], mount: str, domain: DomainSettings = NO_DOMAIN
) -> dict[str, str]:
    """The text of each file. Raises Refused for a mount that no configuration can name."""
    if shares and not is_plain(mount):
        raise Refused(what=f"Sharing what is below {mount}", why="servers' configurations do not take its characters")
    texts = {
        "smb.conf": samba.smb_conf(sharing, shares, mount, domain),
        "vnafs.exports": nfs.exports(shares, mount),
        "nfs.conf": nfs.nfs_conf(shares),
        "ganesha.conf": ganesha.ganesha_conf(sharing, shares, mount),
        "krb5.conf": krb5_conf(domain),
    }
    return {name: f"{_HEADER.format(use=use)}\n{texts[name]}" for name, use in USES.items()}


def differing(folder: str, texts: Mapping[str, str]) -> list[str]:
    """Names of files that are not there as they should be. Raises Refused."""
    return [name for name, text in texts.items() if _read(os.path.join(folder, name)) != text.encode()]


def write(folder: str, texts: Mapping[str, str]) -> list[str]:
    """Write those that differ; their names. Raises Refused."""
    names = differing(folder, texts)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        for name in names:
            replace(os.path.join(folder, name), texts[name].encode(), mode=0o644)
    except OSError as problem:
        raise Refused(what=f"Writing into {folder}", why=str(problem)) from problem
    return names


def read(folder: str, name: str) -> str:
    """One of them as it is there, empty when it is not. Raises Refused."""
    return (_read(os.path.join(folder, name)) or b"").decode(errors="replace")


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise Refused(what=f"Reading {path}", why=str(problem)) from problem
