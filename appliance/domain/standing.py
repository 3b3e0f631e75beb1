"""How this machine stands in its domain: what `vna domain status` says. Changes nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from appliance.domain import member, surroundings
from appliance.domain.commands import PACKAGES, Run
from appliance.domain.settings import DomainSettings
from appliance.domain.surroundings import Controller, Problem

ADMINISTRATOR_RID = 500
"""Every domain has it, whatever it is called (MS-DTYP 2.4.2.4)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What was found, and what is not as it must be."""

    is_joined: bool | None
    """None: the domain is away, and nobody else knows."""
    controller: Controller | None
    domain_sid: str
    services: tuple[str, ...]
    """What tickets are made for."""
    problems: tuple[Problem, ...]


def look(
    domain: DomainSettings, rendered: str, run: Run, folder: str = "/etc", *, accounts: Mapping[str, str] | None = None
) -> Standing:
    """Ask Samba, winbind and the domain.

    *rendered* is where `vna share render` writes; *accounts* are those that open shares without the domain, by share.
    """
    problems = surroundings.of_machine(domain, rendered, run, folder)
    problems += surroundings.of_accounts(accounts or {}, run)
    controller, away = surroundings.of_domain(domain, run, folder)
    problems += away
    joined: bool | None = None
    services: tuple[str, ...] = ()
    if controller is not None:
        joined, services, wrong = _of_membership(domain, run)
        problems += wrong
    sid = ""
    if run(["wbinfo", "--ping"]).code:
        problems.append(Problem("winbind does not answer", f"start it, after `{PACKAGES}`"))
    else:
        sid, wrong = _of_ids(domain, run)
        problems += wrong
        if joined and (ran := run(["wbinfo", "--check-secret"])).code:
            problems.append(Problem(f"winbind cannot prove who it is: {ran.reason}", "restart it"))
    return Standing(joined, controller, sid, services, tuple(problems))


def _of_membership(domain: DomainSettings, run: Run) -> tuple[bool, tuple[str, ...], list[Problem]]:
    """Whether the domain knows this machine, and by which names."""
    if not member.is_joined(run):
        return False, (), [Problem(f"this machine is not a member of {domain.realm}", "`vna domain join`")]
    services = tuple(member.service_names(run))
    known = {name.casefold() for name in services}
    missing = [name for service in member.SERVICES if (name := f"{service}/{domain.host}") not in known]
    return True, services, [
        Problem(f"the domain makes no tickets for {name}", "`vna domain join` once more") for name in missing
    ]  # fmt: skip


def _of_ids(domain: DomainSettings, run: Run) -> tuple[str, list[Problem]]:
    """The domain's SID, and whether ids are counted from `id_first`."""
    told = run(["wbinfo", "-D", domain.workgroup]).output
    found = re.search(r"^SID\s*:\s*(S-1-5-21(?:-\d+){3})$", told, re.MULTILINE)
    if found is None:
        return "", [Problem(f"winbind knows no domain {domain.workgroup}", "restart it; see domain.workgroup")]
    expected = domain.id_first + ADMINISTRATOR_RID
    ran = run(["wbinfo", f"--sid-to-uid={found[1]}-{ADMINISTRATOR_RID}"])
    if ran.code or ran.output.strip() != str(expected):
        said = ran.output.strip() or ran.reason
        what = f"RID {ADMINISTRATOR_RID} should be user {expected}, and winbind says {said}"
        return found[1], [Problem(what, "`net cache flush`, then restart winbind")]
    return found[1], []
