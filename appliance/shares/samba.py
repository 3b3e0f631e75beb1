"""`smb.conf` from shares (smb.conf(5), Samba 4.17 and later).

Without a domain one machine is all of it: users are Samba's own (smbpasswd(8)). In a domain users and groups are the
domain's, with Kerberos, and access is what NT ACLs say (vfs_acl_xattr(8)). Nobody comes in without a password. The same
settings always give the same text. Knows nothing of where Samba keeps its state: that is Debian's to say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from appliance.domain.rendering import member_of
from appliance.domain.settings import NO_DOMAIN, DomainSettings
from appliance.shares.settings import ShareSettings, SharingSettings, both_write, is_on_nfs

YES = {True: "yes", False: "no"}
GLOBAL: Mapping[str, str] = {
    # who may come in, and how
    "server role": "standalone server",
    "map to guest": "never",
    "restrict anonymous": "2",
    "ntlm auth": "ntlmv2-only",
    "server signing": "mandatory",
    "server smb encrypt": "if_required",
    "disable netbios": "yes",
    "usershare max shares": "0",
    # nothing but files
    "disable spoolss": "yes",
    "load printers": "no",
    "printing": "bsd",
    "printcap name": "/dev/null",
    # the engines move a mebibyte at once
    "smb2 max read": "1048576",
    "smb2 max write": "1048576",
    "smb2 max trans": "1048576",
}
SHARE: Mapping[str, str] = {
    "guest ok": "no",
    "wide links": "no",
    # durable handles need the next three, and FUSE has no leases or share modes
    "kernel oplocks": "no",
    "kernel share modes": "no",
    "posix locking": "no",
    "durable handles": "yes",
    # a flush is an fsync; bytes go through the mount
    "strict sync": "yes",
    "use sendfile": "no",
    # DOS attributes live in user.DOSATTRIB, never in permission bits
    "store dos attributes": "yes",
    "map archive": "no",
    "map hidden": "no",
    "map system": "no",
    "map readonly": "no",
    # OS/2 attributes nobody asks for, and smbd would count them twice for each file that is read; DOS attributes,
    # streams and NT ACLs have attributes of the tree without it
    "ea support": "no",
}
WITH_NFS: Mapping[str, str] = {
    "oplocks": "no",
    "level2 oplocks": "no",
    "posix locking": "yes",
    "durable handles": "no",
}
"""Where NFS writes too: nothing is cached at clients, and locks are those that NFS sees."""
ACLS_DECIDE: Mapping[str, str] = {
    "acl_xattr:ignore system acls": "yes",
    "acl_xattr:default acl style": "windows",
}
"""In a domain: NT ACLs alone say who may do what, in each file's security.NTACL. Permission bits of what clients make
let everybody in, so what has no ACL, and inherits none, is its owner's alone."""


def smb_conf(
    sharing: SharingSettings, shares: Sequence[ShareSettings], mount: str, domain: DomainSettings = NO_DOMAIN
) -> str:
    """The whole file but for its header."""
    common = {
        **GLOBAL,
        "server min protocol": sharing.smb_version_min,
        "smb ports": str(sharing.smb_port),
    }
    if domain.is_set:
        common |= member_of(domain)
    if sharing.addresses:
        common |= {"interfaces": " ".join(sharing.addresses), "bind interfaces only": "yes"}
    sections = [_section("global", common)]
    sections += [
        _section(share.name, _share(share, shares, mount, domain))
        for share in sorted(shares, key=lambda share: share.name.casefold())
        if share.protocol == "smb"
    ]
    return "\n".join(sections)


def _share(share: ShareSettings, shares: Sequence[ShareSettings], mount: str, domain: DomainSettings) -> dict[str, str]:
    top = f"{mount}/{share.repository}"
    found = {"path": f"{mount}/{share.place}", "read only": YES[share.read_only], **SHARE}
    found["case sensitive"] = YES[share.case_sensitive]
    found["server smb encrypt"] = share.encryption
    found |= _who(share, shares, domain)
    if share.hosts:
        # without the second, 127.0.0.1 may always come in, and so may all where no name can be looked up
        found |= {"hosts allow": " ".join(_host(host) for host, _ in share.clients), "hosts deny": "ALL"}
    if domain.is_set and not is_on_nfs(share, shares):
        found |= ACLS_DECIDE
    if both_write(share, shares):
        found |= WITH_NFS
    modules = ["acl_xattr", "streams_xattr"]
    if not share.case_sensitive:
        modules.append("glusterfs_fuse")  # asks the tree for a name of another case, instead of reading the directory
    if share.previous_versions:
        modules.insert(0, "shadow_copy2")
        found |= {"shadow:mountpoint": top, "shadow:snapdir": ".as-of", "shadow:sort": "desc"}
    found["vfs objects"] = " ".join(modules)
    return found


def _who(share: ShareSettings, shares: Sequence[ShareSettings], domain: DomainSettings) -> dict[str, str]:
    """Who may log in. An account that breaks the glass of one share may do everything there, and nothing elsewhere."""
    here = domain.machine.upper()
    own = [f"{here}\\{share.break_glass}"] if share.break_glass else []
    others = {f"{here}\\{other.break_glass}" for other in shares if other.break_glass} - set(own)
    found = {}
    if share.users:
        # in this order: the account's own name is known without asking a domain that is away
        found["valid users"] = ", ".join(f'"{user}"' if " " in user else user for user in [*own, *share.users])
    if own:
        found["admin users"] = own[0]
    if others:
        found["invalid users"] = ", ".join(sorted(others))
    return found


def _host(text: str) -> str:
    network = ipaddress.ip_network(text)
    return str(network.network_address) if network.num_addresses == 1 else network.with_netmask


def _section(name: str, values: Mapping[str, str]) -> str:
    return "".join([f"[{name}]\n", *(f"    {key} = {value}\n" for key, value in values.items())])
