"""Accounts of this machine that open a share when the domain is away: one a share, with a password of its own.

They are users of Linux without a home, a shell or a password, and have a password in Samba's own database alone
(smbpasswd(8)). What was not made here is left alone. A command that was cut short is finished by the next one. Who
writes a configuration that names one checks first and makes it last, and removes it before the name.
"""

from __future__ import annotations

import pwd

from appliance.domain.commands import Run, must
from vnafs.domain.errors import Refused

MARK = "breaks the glass of a share"
"""In the account's GECOS field: made here."""
PASSWORD_LENGTH_MIN = 12
_SHELL = "/usr/sbin/nologin"


def was_made_here(name: str) -> bool | None:
    """Whether it was made here; None: nobody has it."""
    try:
        return pwd.getpwnam(name).pw_gecos == MARK
    except KeyError:
        return None


def check_name(name: str) -> None:
    """Refuse, by Refused, an account that is somebody's; one that is not there or was made here is fine."""
    if was_made_here(name) is False:
        raise Refused(what=f"Account {name}", why="it is somebody's already; choose another name with --account")


def check_password(name: str, password: str) -> None:
    """Refuse, by Refused, one that is too short or that Samba would misread."""
    if len(password) < PASSWORD_LENGTH_MIN or not password.isprintable():
        why = f"a password has at least {PASSWORD_LENGTH_MIN} characters, all of them printable"
        raise Refused(what=_making(name), why=why)


def make(name: str, password: str, run: Run) -> None:
    """Have the account, with that password. Raises Refused."""
    what = _making(name)
    check_name(name)
    check_password(name, password)
    if was_made_here(name) is None:
        words = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", _SHELL]
        must(run, [*words, "--comment", MARK, name], what)
    must(run, ["smbpasswd", "-s", "-a", name], what, text=f"{password}\n{password}\n")


def remove(name: str, run: Run) -> bool:
    """Have it no more; False where it is somebody's, who keeps it. Raises Refused."""
    is_ours = was_made_here(name)
    if is_ours:
        run(["smbpasswd", "-x", name])  # says no when it has none
        must(run, ["userdel", name], f"Removing account {name}")
    return is_ours is not False


def _making(name: str) -> str:
    return f"Making account {name}"
