"""What a member needs around it, looked at before it joins and whenever somebody asks: each with what to do about it.

Changes nothing. Before a join nothing is rendered yet: *planned* is then what smb.conf will be, which Samba reads from
memory.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping

from appliance.domain import accounts
from appliance.domain.commands import PACKAGES, SECRET, Run
from appliance.domain.rendering import member_of
from appliance.domain.settings import DomainSettings

CLOCK_SECONDS_MAX = 300
"""By which clocks may differ for Kerberos (RFC 4120 1.6; the default of Active Directory)."""
SMB_CONF = "samba/smb.conf"
"""Below /etc."""
COMPARED = ("security", "server role", "map to guest", "kerberos method", "realm", "workgroup", "netbios name")
"""Of [global], with every range of ids."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be."""

    what: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True)
class Controller:
    """The domain controller that Samba found."""

    name: str
    ahead_seconds: int
    """Its clock before ours."""


def of_machine(
    domain: DomainSettings, rendered: str, run: Run, folder: str = "/etc", *, planned: str = ""
) -> list[Problem]:
    """What this machine must have by itself; *rendered* is where `vna share render` writes."""
    return [
        *of_configuration(domain, os.path.join(rendered, "smb.conf"), run, folder, planned=planned),
        *of_kerberos(domain, os.path.join(rendered, "krb5.conf"), folder),
        *of_names(folder),
    ]


def of_configuration(
    domain: DomainSettings, rendered: str, run: Run, folder: str = "/etc", *, planned: str = ""
) -> list[Problem]:
    """Whether Samba reads what was rendered, or will: it says itself what it reads."""
    path = os.path.join(folder, SMB_CONF)
    include = (
        f"make `include = {rendered}` the last line of its [global] part: Samba takes lines behind it for a share's"
    )
    own = _read(path)
    if planned and own:
        text = planned if os.path.realpath(path) == os.path.realpath(rendered) else _included(own, rendered, planned)
        ran = run(["testparm", "-sv", SECRET], secret=text)
    else:
        ran = run(["testparm", "-sv", path])
    if ran.code:
        return [Problem(f"Samba cannot read {path}: {ran.reason}", include)]
    told = _values(ran.output)
    wanted = _values("\n".join(f"{key} = {value}" for key, value in member_of(domain).items()))
    keys = (*COMPARED, *(key for key in wanted if key.startswith("idmap config")))
    found = []
    if wrong := [key for key in keys if told.get(key) != wanted[key]]:
        what = f"Samba reads something else than {rendered} says: `{wrong[0]}` is {told.get(wrong[0], 'not there')}"
        found.append(Problem(f"{what} in {path}", f"{include}; or copy it there"))
    if line := _behind_include(own, rendered):
        found.append(Problem(f"`{line}` stands behind `include = {rendered}` in {path}", include))
    return found


def of_accounts(shares: Mapping[str, str], run: Run) -> list[Problem]:
    """Whether each of *shares*, by name, has the account that opens it without the domain."""
    found = []
    for share, account in shares.items():
        command = f"vna share break-glass {shlex.quote(share)}"
        what, fix = f"account {account}, which opens share {share} without the domain,", f"`{command}`"
        is_ours = accounts.was_made_here(account)
        if is_ours is None:
            found.append(Problem(f"{what} is not on this machine", fix))
        elif not is_ours:
            found.append(Problem(f"{what} is somebody's", f"`{command} --remove`, then {fix} for one of its own"))
        elif run(["pdbedit", "-u", account]).code:
            found.append(Problem(f"{what} has no password that Samba knows", fix))
    return found


def of_names(folder: str = "/etc") -> list[Problem]:
    """Whether this machine asks winbind for users and groups (nsswitch.conf(5))."""
    path = os.path.join(folder, "nsswitch.conf")
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = [line.partition("#")[0].partition(":") for line in stream]
    except OSError:
        lines = []
    asked = {name.strip() for name, _, sources in lines if "winbind" in sources.split()}
    missing = [name for name in ("passwd", "group") if name not in asked]
    if not missing:
        return []
    what = f"{path} does not ask winbind for `{missing[0]}`, so the domain's users have no ids here"
    return [Problem(what, f"add `winbind` to its lines passwd and group, after `{PACKAGES}`")]


def of_kerberos(domain: DomainSettings, rendered: str, folder: str = "/etc") -> list[Problem]:
    """Whether Kerberos knows the realm; else it looks for it in everybody's DNS, which may take minutes."""
    path = os.path.join(folder, "krb5.conf")
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = re.search(r"^\s*default_realm\s*=\s*(\S+)", stream.read(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None and found[1] == domain.realm.upper():
        return []
    what = f"the default_realm in {path} is {found[1] if found else 'not there'}"
    return [Problem(what, f"`install -m 644 {rendered} {path}`")]


def of_domain(
    domain: DomainSettings, run: Run, folder: str = "/etc", *, planned: str = ""
) -> tuple[Controller | None, list[Problem]]:
    """The domain controller, and what keeps this machine from talking to it: DNS, or clocks that differ."""
    told = ["-s", SECRET] if planned else []
    if run(["net", "lookup", "kdc", domain.realm.upper(), *told], secret=planned).code:
        what = f"DNS knows no domain controller of {domain.realm}; asked were {_nameservers(folder)}"
        return None, [Problem(what, f"name the domain's own DNS servers in {os.path.join(folder, 'resolv.conf')}")]
    ran = run(["net", "ads", "info", *told], secret=planned)
    offset = re.search(r"^Server time offset: *(-?\d+)", ran.output, re.MULTILINE)
    name = re.search(r"^LDAP server name: *(\S+)", ran.output, re.MULTILINE)
    if ran.code or offset is None or name is None:
        what = f"no domain controller of {domain.realm} answers: {ran.reason}"
        return None, [Problem(what, "let this machine reach its ports 53, 88, 135, 389, 445, 464, 3268, 49152-65535")]
    found = Controller(name[1], int(offset[1]))
    return found, of_clock(found)


def of_clock(controller: Controller) -> list[Problem]:
    """Whether clocks agree well enough for tickets."""
    seconds = controller.ahead_seconds
    if abs(seconds) <= CLOCK_SECONDS_MAX:
        return []
    side = "behind" if seconds > 0 else "ahead of"
    what = f"this clock is {abs(seconds)} s {side} that of {controller.name}; Kerberos takes {CLOCK_SECONDS_MAX}"
    return [Problem(what, f"let chrony follow it: `server {controller.name} iburst`, then `chronyc makestep`")]


def _read(path: str) -> str:
    """Empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""


def _included(text: str, rendered: str, planned: str) -> str:
    """What Samba will read, once *rendered* is as planned."""
    lines = [planned if _includes(line, rendered) else line for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _behind_include(text: str, rendered: str) -> str:
    """The line, if any, that Samba takes for one of the last share rendered."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;"]
    number = next((number for number, line in enumerate(lines) if _includes(line, rendered)), len(lines))
    behind = "".join(lines[number + 1 : number + 2])
    return "" if behind.startswith("[") else behind


def _includes(line: str, rendered: str) -> bool:
    key, _, value = line.partition("=")
    is_include = key.strip().casefold() == "include"
    return is_include and os.path.realpath(value.strip().strip('"')) == os.path.realpath(rendered)


def _nameservers(folder: str) -> str:
    try:
        with open(os.path.join(folder, "resolv.conf"), encoding="utf-8", errors="replace") as stream:
            found = [words[1] for words in map(str.split, stream) if len(words) > 1 and words[0] == "nameserver"]
    except OSError:
        found = []
    return ", ".join(found) or "none"


def _values(text: str) -> dict[str, str]:
    """Keys and values of [global]; Samba says yes as Yes and ads as ADS."""
    head = re.split(r"^\[(?!global\])", text, maxsplit=1, flags=re.MULTILINE)[0]
    pairs = (line.partition("=") for line in head.splitlines() if "=" in line)
    return {" ".join(key.split()).casefold(): value.strip().casefold() for key, _, value in pairs}
