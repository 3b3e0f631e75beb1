"""Units for systemd (252 and later), rendered for one archive: the same archive always gives the same text.

`vnafs.service` is `vna serve`, which leaves its mount with systemd when it ends, whether it was killed, upgraded or
restarted. `vnafs-mount.service` is the mount's life: systemd stops it when nothing needs it any more, which is so when
`vnafs.service` is stopped and not when it is restarted (StopWhenUnneeded= looks at jobs), and then it unmounts.

Nothing here may give the service a view of the file system of its own (ProtectSystem=, PrivateTmp= and the like do):
what it mounts would be seen by nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vnafs.domain.errors import Refused

SERVICE, MOUNT = "vnafs.service", "vnafs-mount.service"
_HEADER = "# Written by `vna service render`. What is changed here gets lost: use `systemctl edit`.\n"
CAPABILITIES = (
    "CAP_SYS_ADMIN",  # mount(2), and files that Linux reads and writes itself
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_LEASE",  # sealing asks whether anybody can still write
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",  # whose process opens a stub ([recall] never_processes)
    "CAP_SYS_RESOURCE",
)
Lines = Sequence[tuple[str, str]]


def units(archive: str, python: str) -> dict[str, str]:
    """The text of each unit, by file name. *python* is the interpreter that has vnafs. Raises Refused."""
    command = f"{_word(python)} -m appliance"
    place = f"--archive {_word(archive)}"
    serve: Mapping[str, Lines] = {
        "Unit": (
            ("Description", "vnafs: a share for medical images"),
            ("After", f"local-fs.target network-online.target {MOUNT}"),
            ("Wants", "network-online.target"),
            ("BindsTo", MOUNT),
            ("RequiresMountsFor", _path(archive)),
            # before whoever shares what it mounts
            ("Before", "smbd.service nfs-server.service nfs-ganesha.service"),
            ("StartLimitIntervalSec", "60"),
            ("StartLimitBurst", "10"),
        ),
        "Service": (
            ("Type", "notify"),
            ("NotifyAccess", "main"),
            ("ExecStart", f"{command} serve --keep-mount {place}"),
            ("ExecReload", "/bin/kill -HUP $MAINPID"),
            ("FileDescriptorStoreMax", "8"),
            ("KillMode", "mixed"),  # who is killed leaves the mount as it is, who is asked to end would take it away
            ("Restart", "always"),
            ("RestartSec", "100ms"),
            ("RestartPreventExitStatus", "2 3"),
            ("TimeoutStartSec", "infinity"),  # a new program may have to move an index of years
            ("TimeoutStopSec", "90"),
            ("LimitNOFILE", "1048576"),
            ("OOMScoreAdjust", "-500"),
            ("UMask", "0077"),
            *_HARDENING,
            ("CapabilityBoundingSet", " ".join(CAPABILITIES)),
            ("DevicePolicy", "closed"),
            ("DeviceAllow", "/dev/fuse rw"),
        ),
        "Install": (("WantedBy", "multi-user.target"),),
    }
    mount: Mapping[str, Lines] = {
        "Unit": (
            ("Description", "vnafs: what is mounted, for as long as it is served"),
            ("StopWhenUnneeded", "yes"),
            ("RefuseManualStart", "yes"),
        ),
        "Service": (
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            ("ExecStart", "/bin/true"),
            ("ExecStop", f"{command} unmount {place}"),
            *_HARDENING,
            ("CapabilityBoundingSet", "CAP_SYS_ADMIN CAP_DAC_OVERRIDE"),
        ),
    }
    return {SERVICE: _text(serve), MOUNT: _text(mount)}


_HARDENING: Lines = (
    ("NoNewPrivileges", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service @mount"),
    ("SystemCallErrorNumber", "EPERM"),
    ("KeyringMode", "private"),
)


def _text(sections: Mapping[str, Lines]) -> str:
    parts = (f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections.items())
    return _HEADER + "\n" + "\n".join(parts)


def _word(text: str) -> str:
    """A word of a command, where $ begins a variable. Raises Refused for what none can have."""
    return _path(text).replace("$", "$$")


def _path(text: str) -> str:
    """A path elsewhere in a unit. Raises Refused for what none can have."""
    if not text.isprintable() or any(char in "\"'\\" for char in text):
        raise Refused(what=f"A unit for {text!r}", why="systemd's configuration does not take its characters")
    escaped = text.replace("%", "%%")
    return f'"{escaped}"' if " " in escaped else escaped


def archive_of(text: str) -> str:
    """What the lines of a unit name as its archive, as they write it; empty when they are no unit of ours."""
    found = re.search(r' --archive ("[^"]*"|\S+)$', text, re.MULTILINE) if text.startswith(_HEADER) else None
    return found[1] if found else ""
