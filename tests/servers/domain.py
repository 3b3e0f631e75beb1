"""A real Active Directory domain: Samba as its controller, on a machine of namespaces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.servers.machines import Machine, connect
from tests.servers.processes import need

REALM = "AD.EXAMPLE"
WORKGROUP = "ADX"
ADMINISTRATOR_PASSWORD = "Only-for-this-test-1"
CONTROLLER, MEMBER = "192.0.2.10", "192.0.2.20"
"""Addresses for documents (RFC 5737)."""


class Domain:
    """The controller, and one machine that may become a member, with `winbindd` and `smbd` to be started."""

    def __init__(self, home: Path, member: str) -> None:
        need(("samba", "samba-tool", "winbindd", "wbinfo", "kinit"), "samba-ad-dc samba-ad-provision winbind krb5-user")
        self.controller = Machine(home, "dc1", REALM, f"{CONTROLLER} dc1.{REALM.lower()} dc1\n")
        self.member = Machine(home, member, REALM, f"{MEMBER} {member}.{REALM.lower()} {member}\n")
        connect(self.controller, self.member, (CONTROLLER, MEMBER))
        for machine in (self.controller, self.member):
            (machine.etc / "resolv.conf").write_text(f"nameserver {CONTROLLER}\nsearch {REALM.lower()}\n")
        (self.member.etc / "nsswitch.conf").write_text(
            "passwd: files winbind\ngroup: files winbind\nhosts: files dns\n"
        )

    def provision(self) -> None:
        """Make the domain and start its controller."""
        self.controller.must(
            "samba-tool", "domain", "provision", f"--realm={REALM}", f"--domain={WORKGROUP}", "--server-role=dc",
            "--dns-backend=SAMBA_INTERNAL", f"--host-ip={CONTROLLER}", f"--adminpass={ADMINISTRATOR_PASSWORD}",
            f"--option=interfaces={CONTROLLER}", "--option=bind interfaces only=yes",
        )  # fmt: skip
        told = self.controller.etc / "samba" / "smb.conf"
        lines = told.read_text().splitlines(keepends=True)
        told.write_text("".join(line for line in lines if "dns forwarder" not in line))  # it would be itself
        self.controller.start("samba", "-F", "--no-process-group", "-M", "single")
        self.member.until("net", "lookup", "kdc", REALM, "-s", "/dev/null")

    def add_user(self, name: str, password: str, group: str = "") -> None:
        self.controller.must("samba-tool", "user", "create", name, password)
        if group:
            self.controller.must("samba-tool", "group", "add", group)
            self.controller.must("samba-tool", "group", "addmembers", group, name)

    def stop(self) -> None:
        self.member.end()
        self.controller.end()


@contextlib.contextmanager
def a_domain(home: Path, member: str) -> Iterator[Domain]:
    """A domain for the length of the block."""
    found = Domain(home, member)
    try:
        found.provision()
        yield found
    finally:
        found.stop()
