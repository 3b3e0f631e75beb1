"""kill -9 of the mount process behind a real Samba and a real nfs-ganesha: clients of both must not notice.

    python -m tests.bench.takeover_shares [--kills 200] [--seed 1] [--ack durable] [--seconds 4] [--twice 0.1]

Both serve what `vna share render` writes. One smbclient stays connected and another connects for each command; one NFS
client keeps its handles and another is new each time. They put, get, rename, list, look at and delete files of up to
2 MB, while the mount process is killed again and again, now and then while it takes over. Any error that a client is
told, any wrong byte, name, size or inode number fails. In the end every file is compared, everything is sealed, and the
same is found after a clean stop and start. Exits with 1 when something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.shareclients import Client, NfsClient, NfsTools, SmbClient, SmbSessionClient
from tests.bench.takeover import SETTINGS, Served, kill_often, not_taken_over, spread
from tests.servers.ganesha import HERE, Ganesha, rendered_ganesha
from tests.servers.processes import free_port
from tests.servers.samba import Samba, rendered_samba
from tests.system.archives import Archive, an_archive

FOLDERS = ("smb", "nfs", "tools")


@contextlib.contextmanager
def shares(archive: Archive, folder: Path, smb_port: int) -> Iterator[tuple[Samba, Ganesha]]:
    """An archive that is served, and the servers of its shares."""
    for name in FOLDERS:
        (archive.share / name).mkdir()
        words = ("smb",) if name == "smb" else ("nfs", "--host", HERE, "--squash", "none")
        archive.vna("share", "add", name, f"archive/{name}", "--protocol", *words)
    archive.vna("share", "render")
    rendered = archive.archive / "shares"
    with (
        rendered_samba(folder / "samba", rendered / "smb.conf", smb_port) as smb,
        rendered_ganesha(folder / "ganesha", rendered / "ganesha.conf") as nfs,
    ):
        yield smb, nfs


def settings(smb_port: int) -> str:
    """Of an archive whose Samba listens on that port only."""
    return SETTINGS + f'\n[sharing]\naddresses = ["127.0.0.1"]\nsmb_port = {smb_port}\n'


def clients_of(archive: Archive, folder: Path, seed: int, smb: Samba, nfs: Ganesha) -> dict[Client, Path]:
    """Clients, not started, and where in the tree they are."""
    share = archive.share
    session = SmbSessionClient(folder / "session", seed, smb, "smb")
    new_each_time = SmbClient("new", folder / "new", seed, lambda command: smb.ask(command, share="smb"))
    handles = NfsClient(folder / "nfs", seed, nfs, share / "nfs")
    tools = NfsTools(folder / "tools", seed, nfs, share / "tools")
    return {session: share / "smb", new_each_time: share / "smb", handles: share / "nfs", tools: share / "tools"}


def differs(clients: dict[Client, Path]) -> list[str]:
    """What is not there as it should be, and what should not be there."""
    wrong, expected = list[str](), dict[Path, str]()
    for client, top in clients.items():
        expected |= {top / name: sha256 for name, sha256 in client.expected.items()}
    for path, sha256 in expected.items():
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            wrong.append(f"{path.name} differs")
    there = {Path(top) / name for place in set(clients.values()) for top, _, names in os.walk(place) for name in names}
    return wrong + [f"{path.name} should not be there" for path in there - expected.keys()]


def inodes(clients: dict[Client, Path]) -> dict[Path, int]:
    """Numbers of all that is there."""
    places = {Path(top) / name for place in clients.values() for top, _, names in os.walk(place) for name in names}
    return {path: path.stat().st_ino for path in places}


class Outcome:
    """Of one run."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.away: dict[str, list[float]] = {"once": [], "twice": []}
        self.clients: Sequence[Client] = ()

    @property
    def longest(self) -> tuple[float, str]:
        return max(client.longest for client in self.clients)

    @property
    def calls(self) -> int:
        return sum(client.calls for client in self.clients)


def run(folder: Path, *, ack: str, kills: int, seed: int, seconds: float, twice_chance: float = 0.1) -> Outcome:
    """Kill so often under all four clients, and compare."""
    dice, outcome, port = random.Random(seed), Outcome(), free_port()
    with an_archive(folder, None, "--ack", ack, settings=settings(port), serve=False) as archive:
        served = Served(archive)
        with shares(archive, folder, port) as (smb, nfs):
            clients = clients_of(archive, folder, seed, smb, nfs)
            outcome.clients = tuple(clients)

            def wrong() -> list[str]:
                return [one for client in clients for one in client.wrong]

            for client in clients:
                client.start()
            try:
                kill_often(
                    served, dice, outcome.away, lambda: bool(wrong()),
                    kills=kills, seconds=seconds, twice_chance=twice_chance,
                )  # fmt: skip
                time.sleep(min(seconds, 2.0))
            finally:
                for client in clients:
                    client.end()
            outcome.wrong += wrong() or differs(clients)
        outcome.wrong += not_taken_over(archive)
        if not outcome.wrong:
            archive.vna(
                "wait", "--copies", "1", "--timeout", "120"
            )  # a handle that nobody has would keep its file open
            before = inodes(clients)
            archive.stop()
            archive.start("serve")
            outcome.wrong += differs(clients)
            if inodes(clients) != before:
                outcome.wrong.append("inode numbers changed")
        if outcome.wrong:
            print(archive.tail(), file=sys.stderr)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ack", default="durable")
    parser.add_argument("--seconds", type=float, default=4.0, help="between two kills, at most")
    parser.add_argument("--twice", type=float, default=0.1, help="of the kills, followed by another one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnafs-shares-") as folder:
        os.chmod(folder, 0o755)  # smbd looks at it as whoever logged in
        outcome = run(
            Path(folder),
            ack=args.ack,
            kills=args.kills,
            seed=args.seed,
            seconds=args.seconds,
            twice_chance=args.twice,
        )
    longest, what = outcome.longest
    counts = ", ".join(f"{client.name} {client.calls}" for client in outcome.clients)
    print(f"{args.kills} kills, {outcome.calls} calls ({counts}), the longest {longest:.2f} s ({what})")
    for times, away in outcome.away.items():
        if away:
            print(f"away, killed {times}: {spread(away)}")
    print(f"{len(outcome.wrong)} wrong", *outcome.wrong, sep="\n")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
