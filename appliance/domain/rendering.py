"""What a member of a domain tells Samba and Kerberos: part of smb.conf(5), and krb5.conf(5).

The same settings always give the same text. Ids are counted, not handed out: rid(8) adds the last part of a SID to the
first id of the range, so they are the same on every machine and after a restore. Users of trusted domains would get
ids that are handed out, so they stay outside.
"""

from __future__ import annotations

from appliance.domain.settings import OTHER_IDS, DomainSettings


def member_of(domain: DomainSettings) -> dict[str, str]:
    """Of smb.conf's [global]."""
    name = domain.workgroup.upper()
    found = {
        "server role": "member server",
        "security": "ads",
        "map to guest": "never",
        "realm": domain.realm.upper(),
        "workgroup": name,
        "netbios name": domain.machine.upper(),
        "kerberos method": "secrets and keytab",
        "idmap config * : backend": "tdb",
        "idmap config * : range": f"{domain.id_first - OTHER_IDS}-{domain.id_first - 1}",
        f"idmap config {name} : backend": "rid",
        f"idmap config {name} : range": f"{domain.id_first}-{domain.id_last}",
        "allow trusted domains": "no",
        "winbind refresh tickets": "yes",
        "template shell": "/usr/sbin/nologin",
        "template homedir": "/nonexistent",
    }
    if domain.servers:
        found["password server"] = ", ".join([*domain.servers, "*"])
    return found


def krb5_conf(domain: DomainSettings) -> str:
    """The whole file but for its header; empty without a domain."""
    if not domain.is_set:
        return ""
    realm = domain.realm.upper()
    lines = [
        "[libdefaults]",
        f"    default_realm = {realm}",
        "    dns_lookup_kdc = true",
        "    dns_lookup_realm = false",
        "    rdns = false",
        "",
        "[domain_realm]",
        f"    .{realm.lower()} = {realm}",
        f"    {realm.lower()} = {realm}",
    ]
    return "".join(f"{line}\n" for line in lines)
