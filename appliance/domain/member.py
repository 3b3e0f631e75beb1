"""Joining a domain and leaving it, with Samba's own `net` (net(8)).

Every step may be done again: a join that was cut short is finished by the next one. Passwords go to commands in memory
alone: never among their arguments, in their environment, on a disk or in a log. Starts and restarts no server.
"""

from __future__ import annotations

import dataclasses

from appliance.domain.commands import SECRET, Run, must
from appliance.domain.settings import DomainSettings
from vnafs.domain.errors import InvalidArgument

SERVICES = ("cifs", "nfs")
"""That clients ask the domain for tickets to: SMB and NFS."""
KEYTAB = "/etc/krb5.keytab"


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """Somebody who may add machines to the domain: by password, or by tickets that they have already."""

    user: str = ""
    password: str = dataclasses.field(default="", repr=False)
    tickets_file: str = ""

    def __post_init__(self) -> None:
        if any(not text.isprintable() or text != text.strip() for text in (self.user, self.password)):
            why = "A user or password with spaces at its ends or with control characters cannot be told to Samba"
            raise InvalidArgument(why=why)

    @property
    def words(self) -> list[str]:
        """For `net`."""
        return [f"--use-krb5-ccache={self.tickets_file}"] if self.tickets_file else ["-A", SECRET]

    @property
    def secret(self) -> str:
        """The file that `-A` reads."""
        return "" if self.tickets_file else f"username = {self.user}\npassword = {self.password}\n"


def is_joined(run: Run) -> bool:
    """Whether the domain takes this machine for what it says it is."""
    return run(["net", "ads", "testjoin"]).code == 0


def join(domain: DomainSettings, login: Login, run: Run) -> bool:
    """Become a member, with names that tickets are made for and their keys; False if it was one already.

    Raises Refused with what the domain said.
    """
    is_new = not is_joined(run)
    if is_new:
        words = ["net", "ads", "join", *([f"createcomputer={domain.unit}"] if domain.unit else [])]
        must(run, [*words, *login.words], f"Joining {domain.realm}", secret=login.secret)
    names = {name.casefold() for name in service_names(run)}
    for service in SERVICES:
        name = f"{service}/{domain.host}"
        if name not in names:
            must(run, ["net", "ads", "setspn", "add", name, "-P"], f"Naming this machine {name}")
    must(run, ["net", "ads", "keytab", "create", "-P"], f"Writing {KEYTAB}")
    return is_new


def leave(domain: DomainSettings, login: Login, run: Run, *, keep_account: bool = False) -> None:
    """Be no member any more. Raises Refused with what the domain said."""
    words = ["net", "ads", "leave", *(["--keep-account"] if keep_account else []), *login.words]
    must(run, words, f"Leaving {domain.realm}", secret=login.secret)


def service_names(run: Run) -> list[str]:
    """What tickets are made for, as the domain has it; none where it does not say."""
    ran = run(["net", "ads", "setspn", "list", "-P"])
    return [line.strip() for line in ran.output.splitlines() if "/" in line] if ran.code == 0 else []
