"""The entry point: arguments to commands, errors to exit codes. The only reader of the process's environment.

Exit codes: 0 done, 1 not yet, 2 usage, 3 refused, 4 damaged.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from appliance import config, journal
from appliance.cli import (
    archives,
    collection,
    daemons,
    domains,
    drills,
    erasure,
    files,
    keys,
    mirrors,
    quarantine,
    recovery,
    repositories,
    retention,
    service,
    shares,
    targets,
)
from appliance.cli import versions as past
from appliance.cli.asking import Asking
from appliance.cli.console import Console
from appliance.cli.daemons import INTERRUPTED, Command, Run
from appliance.shares.settings import ENCRYPTIONS, NFS_VERSIONS, PROTOCOLS, SECURITIES, SQUASHES
from vnafs.domain.actors import UID_MAX
from vnafs.domain.errors import VnaError

UID_DIGITS_MAX = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    environ = dict(os.environ)
    parser = _parser(environ)
    args = parser.parse_args(arguments)
    console = Console(as_json=args.json)
    journal.begin(args.log_level)
    try:
        return _run(args, console, environ)
    except VnaError as problem:
        console.problem(problem.code, str(problem), problem.exit_code)
        return problem.exit_code
    except KeyboardInterrupt:
        console.problem("Interrupted", "interrupted; what was done stays done", INTERRUPTED)
        return INTERRUPTED


def _run(args: argparse.Namespace, console: Console, environ: Mapping[str, str]) -> int:
    if args.command == "init":
        return archives.init(args, console)
    if args.command == "restore":
        return recovery.restore(args, console, environ)
    if args.command == "receipt":
        return _receipt_of(args, console, environ)
    configuration = config.load(args.archive)
    if args.command in daemons.NAMES:
        return daemons.run(args, configuration, environ)
    command: Callable[[argparse.Namespace, Asking], int] = args.run
    return command(args, Asking(console, configuration, environ, _sudo_uid(environ)))


def _sudo_uid(environ: Mapping[str, str]) -> int | None:
    """Who had this done with sudo(8), as it says; anybody can set that, so it is reported as a claim."""
    text = environ.get("SUDO_UID", "")
    is_number = text.isascii() and text.isdigit() and len(text) <= UID_DIGITS_MAX
    return int(text) if is_number and int(text) <= UID_MAX else None


def _receipt_of(args: argparse.Namespace, console: Console, environ: Mapping[str, str]) -> int:
    from appliance.cli import receipts  # noqa: PLC0415 - loads a library that no other command needs

    if args.paths[:1] == ["verify"]:
        return receipts.verify(args, console)
    return receipts.receipt(args, Asking(console, config.load(args.archive), environ, _sudo_uid(environ)))


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    common = daemons.common_of(environ)
    # an action must not put back the default of what was said before it
    within = daemons.common(argparse.SUPPRESS, argparse.SUPPRESS, as_json=argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        prog="vna",
        description="vnafs: a share for medical images whose copies are verified",
        epilog="Exit codes: 0 done, 1 not yet, 2 usage, 3 refused, 4 damaged.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, run: Run | None = None) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, parents=[common], help=about, description=about)
        made.set_defaults(run=run)
        return made

    init = command("init", "make an empty archive with one repository")
    init.add_argument("directory", metavar="DIR")
    init.add_argument("--mount", required=True, metavar="PATH", help="where the tree will be mounted")
    init.add_argument("--repository", default="archive", metavar="NAME")
    init.add_argument("--ack", default="durable", metavar="LEVEL", help="written or durable (default)")
    init.add_argument("--target", action="append", metavar="NAME=URL", help="file://, s3:// or azure://; repeatable")
    init.add_argument("--encryption", choices=["on", "off"], default="off", help="of all that leaves this machine")
    init.add_argument("--recovery-key", default="", metavar="FILE", help="a new file for the key that restores it")
    init.add_argument("--key-file", default="", metavar="FILE", help="a key or passphrase of your own; made if missing")
    daemons.add(command)
    command("unmount", "take away what is mounted, of an archive that nobody serves", service.unmount)
    _service(command("service", "systemd units for this archive"), within)

    status = command("status", "show the archive, or one file or folder", files.status)
    status.add_argument("path", nargs="?", metavar="PATH")
    wait = command("wait", "wait until every file is sealed and has N copies", files.wait)
    wait.add_argument("--copies", type=int, default=1, metavar="N")
    wait.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    evict = command("evict", "let local bytes go that are safely elsewhere", files.evict)
    evict.add_argument("paths", nargs="+", metavar="PATH")
    recall = command("recall", "bring local bytes back", files.recall)
    recall.add_argument("paths", nargs="+", metavar="PATH")
    verify = command("verify", "read copies again and compare", files.verify)
    verify.add_argument("paths", nargs="*", metavar="PATH")
    command("lost", "list acknowledged files without a verified copy", files.lost)
    _receipt(command("receipt", "sign what became of files, for their sender; or verify FILE"))
    _past(command)
    _worst_day(command)
    _retention(command, within)
    _erase(command)
    command("adopt", "go on although targets went on without this archive (stop it first)", recovery.adopt)
    _key(command("key", "the keys of an encrypted archive"), within)
    _repository(command("repository", "top-level directories and their rules"), within)
    _target(command("target", "where copies go"), within)
    _mirror(command("mirror", "where files go as they are, for other software"), within)
    _share(command("share", "what Samba and NFS servers show to whom"), within)
    _domain(command("domain", "this machine in an Active Directory domain"), within)
    _quarantine(command("quarantine", "damaged bytes that were kept when they were replaced"), within)
    return parser


def _past(command: Command) -> None:
    versions = command("versions", "show what there was at a path, or what was deleted in a folder", past.every)
    versions.add_argument("path", metavar="PATH", help="may be gone")
    undelete = command("undelete", "bring back what was deleted or overwritten", past.undelete)
    undelete.add_argument("path", metavar="PATH")
    which = undelete.add_mutually_exclusive_group()
    which.add_argument("--at", metavar="TIME", help="as it was then: 2026-05-04T12:00:00, @SECONDS or '2h ago'")
    which.add_argument("--version", metavar="VERSION", help="as `vna versions` names it; otherwise the last one")
    undelete.add_argument("--to", metavar="NEWPATH", help="under another name")
    undelete.add_argument("--replace", action="store_true", help="although something has that name now")
    rollback = command("rollback", "make a repository's tree what it was at a time", past.rollback)
    rollback.add_argument("repository", metavar="REPOSITORY")
    rollback.add_argument("--to", required=True, metavar="TIME", help="2026-05-04T12:00:00, @SECONDS or '2h ago'")
    rollback.add_argument("--dry-run", action="store_true", help="only say what that would do")


def _retention(command: Command, within: argparse.ArgumentParser) -> None:
    retain = command("retain", "commit files: neither changed nor removed until a date", retention.retain)
    retain.add_argument("path", metavar="PATH")
    until = retain.add_mutually_exclusive_group(required=True)
    until.add_argument("--until", metavar="DATE", help="2036-05-04, 2036-05-04T12:00:00 or @SECONDS")
    until.add_argument("--for", dest="length", metavar="LENGTH", help="from now: 90s, 15min, 12h, 30d or 10y")
    retain.add_argument("--recursive", action="store_true", help="all files that are below a directory now")
    retain.add_argument("--shorten", action="store_true", help="also for less than now; never in compliance")
    retain.add_argument("--reason", metavar="TEXT", help="why, which is kept")
    shown = command("retention", "show what protects a file, or files in a folder", retention.show)
    shown.add_argument("path", nargs="?", metavar="PATH")
    shown.add_argument(
        "--audit", action="store_true", help="show what was done about what protects files, by whom and why"
    )
    actions = command("hold", "legal holds").add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run in (("add", retention.add_hold), ("remove", retention.remove_hold)):
        action = actions.add_parser(name, parents=[within])
        action.add_argument("path", metavar="PATH", help="a file, a directory with all below it, or a repository")
        action.add_argument("--id", required=True, metavar="NAME", help="one thing may be under several holds")
        action.add_argument("--reason", required=True, metavar="TEXT", help="why, which is kept")
        action.set_defaults(run=run)
    listed = actions.add_parser("list", parents=[within])
    listed.add_argument("path", nargs="?", metavar="PATH", help="what it is under; otherwise all holds")
    listed.set_defaults(run=retention.holds)


def _erase(command: Command) -> None:
    about = "erase files for good, on every target and in every version, and prove it"
    erase = command("erase", about, erasure.erase)
    erase.add_argument("paths", nargs="*", metavar="PATH", help="may be gone and remembered")
    erase.add_argument("--recursive", action="store_true", help="a directory with all that is and was below it")
    erase.add_argument("--reason", metavar="TEXT", help="why: kept for ever and signed, so name no patient in it")
    erase.add_argument("--yes", action="store_true", help="ask nothing")
    erase.add_argument("--list", action="store_true", help="show all erasures")
    erase.add_argument("--status", metavar="ID", help="show what is left of one, and where")
    erase.add_argument("--certificate", metavar="ID", help="write a signed certificate of one")
    erase.add_argument("--out", metavar="NAME", help="of the certificate: write NAME.json and NAME.html")


def _worst_day(command: Command) -> None:
    restore = command("restore", "rebuild an archive from one target alone, and serve it")
    restore.add_argument("--from", dest="source", required=True, metavar="URL", help="file://, s3:// or azure://")
    restore.add_argument("--into", required=True, metavar="DIR", help="an empty folder, the new archive")
    restore.add_argument("--mount", required=True, metavar="PATH", help="where the tree will be mounted")
    restore.add_argument("--credentials-file", default="", metavar="FILE")
    restore.add_argument("--key", default="", metavar="FILE", help="with the recovery key of an encrypted archive")
    restore.add_argument("--older-key", action="store_true", help="although the keys were renewed after this one")
    restore.add_argument("--no-serve", dest="serve", action="store_false", help="rebuild only")
    drill = command("drill", "rehearse the worst day: restore into scratch, compare, read files back", drills.drill)
    drill.add_argument("--target", default="", metavar="NAME", help="instead of each in turn")
    drill.add_argument("--key", default="", metavar="FILE", help="with the recovery key of an encrypted archive")
    drill.add_argument("--files", type=int, default=None, metavar="N", help="drawn by lot and read back")
    drill.add_argument("--due", action="store_true", help="only on targets whose last one is too long ago")
    drill.add_argument("--scratch", default="", metavar="DIR", help="instead of a folder in the archive")
    collect = command("collect", "look now for packs that no file needs, and say what they come to", collection.collect)
    collect.add_argument("--dry-run", action="store_true", help="only say it")
    collect.add_argument("--strays", action="store_true", help="list targets for packs that this index does not know")


def _receipt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders; or: verify FILE")
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.html")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="wait so long for copies (30)")
    parser.add_argument("--public-key", action="store_true", help="print the key that verifies receipts")
    parser.add_argument(
        "--public-keys", action="store_true", help="print every key that there ever was, and when receipts had it"
    )
    parser.add_argument("--key", metavar="PUBLIC", help="to verify: that key, or all of them, in a file")
    parser.add_argument("--timestamp-ca", metavar="FILE", help="to verify: certificates that a timestamp must lead to")


def _repository(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run in (("add", repositories.add), ("set", repositories.change), ("remove", repositories.remove)):
        action = actions.add_parser(name, parents=[common])
        action.add_argument("name", metavar="NAME")
        action.set_defaults(run=run)
        if name != "remove":
            fresh = name == "add"
            action.add_argument(
                "--ack", default="durable" if fresh else None, metavar="LEVEL", help="written or durable"
            )
            action.add_argument("--copies", type=int, default=1 if fresh else None, metavar="N")
            action.add_argument(
                "--keep-versions",
                type=float,
                default=None,
                metavar="DAYS",
                help="how long what is overwritten or deleted is kept (30); 0 keeps nothing",
            )
            action.add_argument(
                "--tripwire",
                default=None,
                choices=["off", "alert", "readonly"],
                help="when very much is overwritten, renamed or deleted: say so (default), or also refuse changes",
            )
            action.add_argument(
                "--retention",
                default=None,
                choices=["off", "governance", "compliance"],
                help="whether files are committed in it (off), and how firmly; compliance is for ever",
            )
            for option, about in (
                ("--retain-for", "how long files are retained that are committed without a date: 30d, 10y"),
                ("--autocommit-after", "commit files by themselves after so long without a change; 0s: never"),
            ):
                action.add_argument(option, default=None, metavar="LENGTH", help=about)
            for option, metavar, about in (
                ("--quota-bytes", "SIZE", "what its files may have together, as 500G or 10T; none for no limit"),
                ("--quota-files", "N", "how many files, folders and links it may have; none for no limit"),
            ):
                action.add_argument(option, default=None, metavar=metavar, help=about)
            action.add_argument("--tripwire-per-minute", type=int, default=None, metavar="N", help="how much (5000)")
            if fresh:
                action.add_argument(
                    "--encryption", choices=["on", "off"], help="of its packs; as the archive, unless told"
                )
        if name == "set":
            for budget in ("bytes", "requests"):
                about = f"{budget} brought back from targets in a day (UTC); 0 for no limit"
                action.add_argument(f"--recall-{budget}-per-day", type=int, metavar="N", help=about)
            action.add_argument("--reset-tripwire", action="store_true", help="it was nothing, or is over")
            action.add_argument("--reason", metavar="TEXT", help="why retention becomes weaker, which is kept")
    actions.add_parser("list", parents=[common]).set_defaults(run=repositories.every)


def _key(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", parents=[common]).set_defaults(run=keys.every)
    rotate = actions.add_parser("rotate", parents=[common], help="other keys for what is written from now on")
    rotate.add_argument("repository", nargs="?", default="", metavar="REPOSITORY")
    rotate.set_defaults(run=keys.rotate)
    renew = actions.add_parser("renew", parents=[common], help="after a leak: other secrets and other keys")
    renew.add_argument("--recovery-key", required=True, metavar="FILE", help="a new file for the new recovery key")
    renew.set_defaults(run=keys.renew)
    check = actions.add_parser("check", parents=[common], help="whether a file or a typed key opens this archive")
    check.add_argument("file", nargs="?", default="", metavar="FILE")
    check.set_defaults(run=keys.check)


def _target(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", parents=[common])
    add.add_argument("name", metavar="NAME")
    add.add_argument("url", metavar="URL")
    add.add_argument("--credentials-file", default="", metavar="FILE")
    about = "another credential, used for nothing but to delete"
    add.add_argument("--removal-credentials-file", default="", metavar="FILE", help=about)
    add.add_argument("--lock-seconds", type=int, default=0, metavar="N", help="lock each object for so long (S3)")
    add.add_argument("--lock-mode", default="governance", choices=("governance", "compliance"))
    add.set_defaults(run=targets.add)
    for name, run in (("test", targets.test), ("remove", targets.remove)):
        action = actions.add_parser(name, parents=[common])
        action.add_argument("name", metavar="NAME")
        action.set_defaults(run=run)
    actions.add_parser("list", parents=[common]).set_defaults(run=targets.every)


def _mirror(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", parents=[common])
    add.add_argument("name", metavar="NAME")
    add.add_argument("url", metavar="URL", help="file:// or s3://, an empty place")
    about = "mirror this one; repeatable, all unless told"
    add.add_argument("--repository", action="append", default=[], metavar="NAME", help=about)
    add.add_argument("--plain", action="store_true", help="encrypted repositories too, in plain text")
    about = "keep: what is removed or renamed in the tree stays"
    add.add_argument("--removals", default="follow", choices=["follow", "keep"], help=about)
    about = "overwrite and remove so long after the tree changed (60)"
    add.add_argument("--removals-after", type=float, metavar="SECONDS", help=about)
    add.add_argument("--credentials-file", default="", metavar="FILE")
    add.set_defaults(run=mirrors.add)
    for name, run in (("test", mirrors.test), ("remove", mirrors.remove)):
        action = actions.add_parser(name, parents=[common])
        action.add_argument("name", metavar="NAME")
        action.set_defaults(run=run)
    actions.add_parser("list", parents=[common]).set_defaults(run=mirrors.every)


def _share(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", parents=[common], help="name a share; `render` writes what servers read")
    add.add_argument("name", metavar="NAME", help="as clients of SMB see it")
    add.add_argument("place", metavar="REPOSITORY[/FOLDER]")
    add.add_argument("--protocol", required=True, choices=PROTOCOLS)
    add.add_argument("--read-only", action="store_true")
    about = "an address or network that may use it, for NFS also as 'HOST ro'; repeatable"
    add.add_argument("--host", dest="hosts", action="append", default=[], metavar="HOST", help=about)
    about = "although SMB and NFS both write there, because of this"
    add.add_argument("--both-write-because", default="", metavar="REASON", help=about)
    smb = add.add_argument_group("SMB")
    about = "a user or @group that may use it; repeatable, all that can log in unless told"
    smb.add_argument("--user", dest="users", action="append", default=[], metavar="USER", help=about)
    smb.add_argument("--case-sensitive", action="store_true", help="A.dcm and a.dcm are two names")
    smb.add_argument("--encryption", choices=ENCRYPTIONS, help="required: refuse clients that cannot")
    about = "do not show what was as Previous Versions"
    smb.add_argument("--no-previous-versions", dest="previous_versions", action="store_false", help=about)
    nfs = add.add_argument_group("NFS")
    nfs.add_argument("--squash", choices=SQUASHES, help="whose requests are nobody's or the owner's (root)")
    nfs.add_argument("--owner", default="", metavar="UID:GID", help="of squashed requests; nobody unless told")
    about = "how clients prove who they are, best first; repeatable (sys)"
    nfs.add_argument("--security", action="append", choices=SECURITIES, help=about)
    nfs.add_argument("--nfs-version", dest="versions", action="append", choices=NFS_VERSIONS, help="repeatable (both)")
    add.set_defaults(run=shares.add)
    remove = actions.add_parser("remove", parents=[common])
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=shares.remove)
    actions.add_parser("list", parents=[common]).set_defaults(run=shares.every)
    about = "an account of this machine for one share, for the day when the domain is away"
    glass = actions.add_parser("break-glass", parents=[common], help=about)
    glass.add_argument("name", metavar="NAME", help="the share")
    about = "what it is called; its password is asked for, or the first line of standard input"
    glass.add_argument("--account", default="", metavar="NAME", help=about)
    glass.add_argument("--remove", action="store_true", help="the share has none any more")
    glass.set_defaults(run=shares.break_glass)
    about = "write smb.conf, exports and ganesha.conf; the same shares always give the same bytes"
    render = actions.add_parser("render", parents=[common], help=about)
    render.add_argument("--into", default="", metavar="DIR", help="instead of the folder that vnafs.toml names")
    render.add_argument("--check", action="store_true", help="write nothing; 1 when something there differs")
    render.set_defaults(run=shares.render)


def _service(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = "write vnafs.service and vnafs-mount.service; the same archive always gives the same bytes"
    render = actions.add_parser("render", parents=[common], help=about)
    render.add_argument("--into", required=True, metavar="DIR", help="for example /etc/systemd/system")
    render.add_argument("--check", action="store_true", help="write nothing; 1 when something there differs")
    render.set_defaults(run=service.render)


def _domain(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    join = actions.add_parser("join", parents=[common], help="become a member, with Kerberos and fixed ids")
    for option, metavar, about in (
        ("--realm", "NAME", "the domain's name in DNS; this and what follows is kept in vnafs.toml"),
        ("--workgroup", "NAME", "the domain's short name"),
        ("--machine", "NAME", "what this machine is called in it"),
        ("--unit", "PATH", "where its account is made, as Servers/Imaging"),
    ):
        join.add_argument(option, default="", metavar=metavar, help=about)
    join.set_defaults(run=domains.join)
    leave = actions.add_parser("leave", parents=[common], help="be a member no more")
    leave.add_argument("--keep-account", action="store_true", help="the domain keeps it, disabled")
    leave.set_defaults(run=domains.leave)
    for action in (join, leave):
        who = action.add_mutually_exclusive_group(required=True)
        about = "who may do that in the domain; the password is asked for, or the first line of standard input"
        who.add_argument("--user", default="", metavar="NAME", help=about)
        who.add_argument(
            "--tickets", default="", metavar="FILE", help="instead: a Kerberos cache, as kinit(1) makes it"
        )
    actions.add_parser("status", parents=[common]).set_defaults(run=domains.status)


def _quarantine(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", parents=[common]).set_defaults(run=quarantine.every)
    remove = actions.add_parser("remove", parents=[common])
    remove.add_argument("ids", nargs="*", metavar="ID", help="as `vna quarantine list` shows it")
    remove.add_argument("--all", action="store_true", help="everything that is there")
    remove.set_defaults(run=quarantine.remove)


if __name__ == "__main__":
    sys.exit(main())
