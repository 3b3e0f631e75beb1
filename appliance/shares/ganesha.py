"""`ganesha.conf` for machines whose kernel has no NFS server (nfs-ganesha 4, FSAL_VFS).

The same settings always give the same text. Locks of NFSv3 (NLM) and quotas by RQUOTA are off: they need daemons that
a machine without the kernel's server rarely has.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence

from appliance.shares.settings import ShareSettings, SharingSettings

_SQUASH = {"root": "Root_Squash", "all": "All_Squash", "none": "No_Root_Squash"}
_EXPORT_IDS = 65535
"""Export_Id is 1 to 65535; 0 is the root of NFSv4."""


def ganesha_conf(sharing: SharingSettings, shares: Sequence[ShareSettings], mount: str) -> str:
    """The whole file but for its header."""
    found = sorted((share for share in shares if share.protocol == "nfs"), key=lambda share: share.place)
    spoken = sorted({version[0] for share in found for version in share.versions}) or ["3", "4"]
    core = {"NFS_Port": sharing.nfs_port, "MNT_Port": sharing.mount_port, "Protocols": ", ".join(spoken)}
    if sharing.addresses:
        core["Bind_addr"] = sharing.addresses[0]
    core |= dict.fromkeys(("Enable_NLM", "Enable_RQUOTA", "Enable_UDP"), "false")
    core["Mount_Path_Pseudo"] = "true"
    is_kerberos = any(flavour != "sys" for share in found for flavour in share.security)
    blocks = [
        _block("NFS_CORE_PARAM", core),
        _block("NFSv4", {"Minor_Versions": "2", "Only_Numeric_Owners": "true", "RecoveryBackend": "fs"}),
        _block("NFS_KRB5", {"Active_krb5": "true" if is_kerberos else "false"}),
    ]
    taken: set[int] = set()
    blocks += [_export(share, mount, taken) for share in found]
    return "\n".join(blocks)


def _export(share: ShareSettings, mount: str, taken: set[int]) -> str:
    number = uuid.UUID(share.fsid).int
    export_id = number % _EXPORT_IDS + 1
    while export_id in taken:
        export_id = export_id % _EXPORT_IDS + 1
    taken.add(export_id)
    path = f"{mount}/{share.place}"
    values: dict[str, object] = {
        "Export_Id": export_id,
        "Path": f'"{path}"',
        "Pseudo": f'"{path}"',
        "Access_Type": "None",
        "Squash": _SQUASH[share.squash],
        "SecType": ", ".join(share.security),
        "Protocols": ", ".join(version[0] for version in share.versions),
        "Transports": "TCP",
        "Manage_Gids": "true",
        "Filesystem_id": f"{number >> 65}.{number & (1 << 63) - 1}",
    }
    if share.squashed_to is not None:
        values["Anonymous_uid"], values["Anonymous_gid"] = share.squashed_to
    clients = (
        _block("CLIENT", {"Clients": host, "Access_Type": "RW" if writes else "RO"}) for host, writes in share.clients
    )
    return _block("EXPORT", values, [*clients, _block("FSAL", {"Name": "VFS"})])


def _block(name: str, values: Mapping[str, object], inner: Iterable[str] = ()) -> str:
    lines = [f"{key} = {value};" for key, value in values.items()]
    lines += [line for block in inner for line in block.splitlines()]
    return "".join([f"{name} {{\n", *(f"    {line}\n" for line in lines), "}\n"])
