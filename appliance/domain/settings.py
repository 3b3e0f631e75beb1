"""What domain this machine is a member of, and which numbers its users have here.

Knows no server: whether the domain is there is asked when it is joined. Everything that gets into a server's
configuration is checked here, character by character. Plain frozen values.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NoReturn, Protocol

ID_FIRST_MIN = 200_000
"""Below lie this machine's own users, and subordinate ids of containers (subuid(5))."""
ID_MAX = 2**31 - 1
"""Some programs take ids for signed numbers."""
OTHER_IDS = 100_000
"""Just below `id_first`, for groups such as BUILTIN\\Users that are no domain's."""
RIDS_MIN = 10_000
NETBIOS_LENGTH_MAX = 15

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_WORKGROUP = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")
_REALM = re.compile(rf"{_NAME.pattern}(?:\.{_NAME.pattern})+")
_UNIT = re.compile(r"[^\x00-\x1f\x7f\"\\%;#=,+<>/]+(?:/[^\x00-\x1f\x7f\"\\%;#=,+<>/]+)*")


class Fail(Protocol):
    """Refuses a value."""

    def __call__(self, key: str, value: object, why: str, fix: str) -> NoReturn:
        """Raises ConfigurationInvalid."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class DomainSettings:
    """[domain]: the Active Directory domain that this machine is a member of; without a realm, none."""

    realm: str = ""
    """Its name in DNS and Kerberos, as AD.EXAMPLE.ORG."""
    workgroup: str = ""
    """Its short name, which stands before users and groups: AD\\radiology."""
    machine: str = ""
    """What this machine is called in it; a restored archive has that name, and its shares, again."""
    servers: tuple[str, ...] = ()
    """Domain controllers to ask first; DNS names all of them."""
    unit: str = ""
    """Where its account is made, as Servers/Imaging; where the domain puts computers, unless told."""
    id_first: int = 1_000_000
    """User and group ids are this plus what the domain calls RID: the same on every machine. Never change it."""
    id_last: int = 99_999_999

    @property
    def is_set(self) -> bool:
        """Whether there is a domain."""
        return bool(self.realm)

    @property
    def host(self) -> str:
        """This machine's whole name."""
        return f"{self.machine}.{self.realm}".lower()


NO_DOMAIN = DomainSettings()


def check(domain: DomainSettings, fail: Fail) -> None:
    """Refuse, by *fail*, what Samba or Kerberos would not take, and ids that could meet others."""
    if not domain.is_set:
        for field in dataclasses.fields(domain):
            if (value := getattr(domain, field.name)) != field.default:
                fail(
                    f"domain.{field.name}", value, "means nothing without domain.realm", "Name the realm, or no domain"
                )
        return
    if not _REALM.fullmatch(domain.realm):
        fail("domain.realm", domain.realm, "is not a domain's name in DNS", "Write for example AD.EXAMPLE.ORG")
    for key, kind, chars, example in (
        ("workgroup", _WORKGROUP, "digits, - and _", "AD"),
        ("machine", _NAME, "digits and -", "IMAGES1"),
    ):
        name = getattr(domain, key)
        if not kind.fullmatch(name) or len(name) > NETBIOS_LENGTH_MAX or name.isdigit():
            fix = f"Use 1 to {NETBIOS_LENGTH_MAX} letters, {chars}, as {example}"
            fail(f"domain.{key}", name, "is not a short name", fix)
    if domain.workgroup.casefold() == domain.machine.casefold():
        fail("domain.machine", domain.machine, "is the domain's own name", "Give this machine another")
    for number, server in enumerate(domain.servers):
        if not _REALM.fullmatch(server):
            fix = "Write its whole name, as dc1.ad.example.org: Kerberos knows no addresses"
            fail(f"domain.servers[{number}]", server, "is not a host's name", fix)
    if domain.unit and (not _UNIT.fullmatch(domain.unit) or domain.unit != domain.unit.strip()):
        fail("domain.unit", domain.unit, "is not a path of units", "Write it from the top, as Servers/Imaging")
    _check_ids(domain, fail)


def _check_ids(domain: DomainSettings, fail: Fail) -> None:
    if domain.id_first < ID_FIRST_MIN:
        why = f"is less than {ID_FIRST_MIN}, where this machine's own users may be"
        fail("domain.id_first", domain.id_first, why, "1000000 is a good choice")
    if domain.id_last > ID_MAX:
        fail("domain.id_last", domain.id_last, f"is more than {ID_MAX}", "99999999 is a good choice")
    if domain.id_last < domain.id_first + RIDS_MIN:
        why = f"leaves less than {RIDS_MIN} ids from domain.id_first = {domain.id_first}"
        fail("domain.id_last", domain.id_last, why, "99999999 is a good choice")
