"""`vna domain join|leave|status`: this machine in an Active Directory domain."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from typing import Any

from appliance import system
from appliance.cli import shares, tables
from appliance.cli.asking import Asking
from appliance.config import Configuration
from appliance.domain import member, standing, surroundings
from appliance.domain.member import Login
from appliance.domain.surroundings import Problem
from appliance.shares import files
from vnafs.domain.errors import ConfigurationInvalid, Refused

DONE, NOT_YET = 0, 1
_SAID = {True: "a member", False: "NO member", None: "perhaps a member"}
RESTART = "systemctl restart winbind smbd"


def join(args: argparse.Namespace, asking: Asking) -> int:
    """Become a member. Raises ConfigurationInvalid, and Refused with what to mend.

    Samba reads what is rendered at once, and its local logins end with that: all is looked at before it is written.
    """
    given = {"realm": args.realm, "workgroup": args.workgroup, "machine": args.machine, "unit": args.unit}
    wanted = {key: value for key, value in given.items() if value}
    configuration = tables.with_keys(asking, "domain", wanted) if wanted else asking.configuration
    domain = _domain(configuration).domain
    folder, texts = shares.folder_of(configuration), shares.texts_of(configuration)
    files.write(folder, {"krb5.conf": texts["krb5.conf"]})  # Samba does not read it, and it may have to be copied
    what = f"Joining {domain.realm}"
    _refuse_at(what, surroundings.of_machine(domain, folder, system.run, planned=texts["smb.conf"]))
    controller, problems = surroundings.of_domain(domain, system.run, planned=texts["smb.conf"])
    _refuse_at(what, problems)
    login = _login(args, asking)
    if wanted:
        tables.put(asking, "domain", wanted)
    files.write(folder, texts)
    is_new = member.join(domain, login, system.run)
    answer = {"joined": domain.realm, "machine": domain.host, "was_member": not is_new}
    if controller is not None:
        answer["controller"] = controller.name
    said = "is a member of" if is_new else "was a member already, and its names are complete in"
    text = f"{domain.host} {said} {domain.realm}. Let servers know: {RESTART}; then `vna domain status`."
    asking.console.result(answer, lambda: asking.console.say(text))
    return DONE


def leave(args: argparse.Namespace, asking: Asking) -> int:
    """Be a member no more. Raises Refused."""
    domain = _domain(asking.configuration).domain
    member.leave(domain, _login(args, asking), system.run, keep_account=args.keep_account)
    named = [share for share in asking.configuration.shares if share.break_glass]

    def show() -> None:
        asking.console.say(f"This machine is no member of {domain.realm} any more. To forget the domain:")
        for share in named:
            asking.console.say(f"vna share break-glass {shlex.quote(share.name)} --remove")
        asking.console.say("Remove [domain] from vnafs.toml, then `vna share render`.")

    asking.console.result({"left": domain.realm, "accounts": [share.break_glass for share in named]}, show)
    return DONE


def status(_: argparse.Namespace, asking: Asking) -> int:
    """Say how this machine stands in its domain; 1 when something is not as it must be."""
    configuration = asking.configuration
    domain = _domain(configuration).domain
    accounts = {share.name: share.break_glass for share in configuration.shares if share.break_glass}
    found = standing.look(domain, shares.folder_of(configuration), system.run, accounts=accounts)
    answer: dict[str, Any] = {
        "realm": domain.realm,
        "workgroup": domain.workgroup,
        "machine": domain.host,
        "joined": found.is_joined,
        "controller": None if found.controller is None else dataclasses.asdict(found.controller),
        "domain_sid": found.domain_sid,
        "ids": [domain.id_first, domain.id_last],
        "services": list(found.services),
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
    }

    def show() -> None:
        asking.console.say(f"{domain.host} is {_SAID[found.is_joined]} of {domain.realm}.")
        if found.controller is not None:
            ahead = found.controller.ahead_seconds
            asking.console.say(f"Domain controller {found.controller.name}; its clock is {ahead} s before this one.")
        if found.domain_sid:
            asking.console.say(f"{found.domain_sid}-N is user or group {domain.id_first} + N.")
        for problem in found.problems:
            asking.console.say(f"! {problem.what}. To do: {problem.fix}.")

    asking.console.result(answer, show)
    return NOT_YET if found.problems else DONE


def _domain(configuration: Configuration) -> Configuration:
    if not configuration.domain.is_set:
        raise ConfigurationInvalid(
            file=configuration.file,
            key="domain.realm",
            value="''",
            why="there is no domain",
            fix="`vna domain join --realm AD.EXAMPLE.ORG --workgroup AD --machine IMAGES1 --user NAME` names one",
        )
    return configuration


def _refuse_at(what: str, problems: list[Problem]) -> None:
    if problems:
        raise Refused(what=what, why="; ".join(f"{one.what}: {one.fix}" for one in problems))


def _login(args: argparse.Namespace, asking: Asking) -> Login:
    if args.tickets:
        return Login(tickets_file=os.path.abspath(args.tickets))
    return Login(args.user, asking.console.password(f"Password of {args.user}: "))
