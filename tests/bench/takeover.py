"""kill -9 of the mount process under clients that must not notice: no error, no wrong byte, no long wait.

    python -m tests.bench.takeover [--kills 200] [--seed 1] [--ack written] [--seconds 0.6] [--twice 0.1]

Clients of one `vna serve` with the kernel engine write with fsync, append, read through handles that stay open, make,
rename, link and remove names, write to files without a name, and list a large directory slowly. Meanwhile the mount
process is killed again and again, now and then while it takes over. In the end every byte and name is compared, all
files are sealed (so no handle was left behind), and the same is found after a clean stop and start. Prints the longest
wait of any call. Exits with 1 when a call failed, a byte was wrong, or a call took more than five seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Container, Generator, Iterator
from pathlib import Path

from tests.system.archives import QUICK, Archive, an_archive, with_engine

SETTINGS = with_engine(QUICK, "kernel")
LISTED = 1500
WAIT_SECONDS_MAX = 5.0
READY_SECONDS_MAX = 60.0
STARTED = re.compile(rb'supervisor\.(?:started|promoted) daemon="mount" pid=(\d+)')


class Clients:
    """Threads that each own a folder; what went wrong is in `wrong`, the longest call in `longest`."""

    def __init__(self, share: Path, seed: int, *, listed: int = LISTED, without: Container[str] = ()) -> None:
        self.share = share
        self.seed = seed
        self.listed = listed
        self.wrong: list[str] = []
        self.longest = (0.0, "")
        self.away: dict[str, list[float]] = {"once": [], "twice": []}
        """Seconds from a kill until somebody answered again; twice: it was killed again while it took over."""
        self.calls = 0
        self.expected: dict[Path, bytes] = {}
        """What is there in the end."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(work, number), name=work.__name__)
            for number, work in enumerate(
                (self.write, self.read, self.name, self.orphans, self.listing, self.attributes)
            )
            if work.__name__ not in without
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, *, patience_seconds: float = 60.0) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(patience_seconds)
            if thread.is_alive():
                self.wrong.append(f"{thread.name} hangs")

    def _run(self, work: Callable[[Path, random.Random], Generator[None]], number: int) -> None:
        folder = self.share / work.__name__
        try:
            folder.mkdir()
            with contextlib.closing(work(folder, random.Random(self.seed * 100 + number))) as deeds:
                for _ in deeds:
                    if self._stop.is_set():
                        break
        except (OSError, AssertionError) as error:
            with self._lock:
                self.wrong.append(f"{work.__name__}: {error!r}")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        with self._lock:
            self.calls += 1
            self.longest = max(self.longest, (took, what))

    # -- what they do ----------------------------------------------------------------------------------------

    def write(self, folder: Path, dice: random.Random) -> Generator[None]:
        """Files that stay open: written at any place, appended to, cut, synced; read back through the same handle."""
        files = {folder / f"w{number}": bytearray() for number in range(4)}
        handles = {path: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) for path in files}
        try:
            while True:
                path = dice.choice(sorted(files))
                data, handle, deed = files[path], handles[path], dice.random()
                if deed < 0.6:
                    at, new = dice.randrange(len(data) + 1), dice.randbytes(dice.choice((1, 100, 5000, 70000)))
                    with self.timed("pwrite"):
                        assert os.pwrite(handle, new, at) == len(new)
                    data[at : at + len(new)] = new
                elif deed < 0.75:
                    with self.timed("fsync"):
                        os.fsync(handle)
                elif deed < 0.9 or len(data) < 500_000:
                    with self.timed("pread"):
                        assert os.pread(handle, len(data) + 1, 0) == data, "a handle reads what it did not write"
                else:
                    with self.timed("ftruncate"):
                        os.ftruncate(handle, 1000)
                    del data[1000:]
                if dice.random() < 0.03:
                    with self.timed("close"):
                        os.close(handle)
                    with self.timed("open"):
                        handles[path] = os.open(path, os.O_RDWR)
                yield
        finally:
            for path, data in files.items():
                os.close(handles[path])
                self.expected[path] = bytes(data)

    def read(self, folder: Path, dice: random.Random) -> Generator[None]:
        """Files that never change, through handles that stay open and through new ones."""
        contents = {folder / f"r{number}": dice.randbytes(200_000) for number in range(8)}
        for path, data in contents.items():
            path.write_bytes(data)
            self.expected[path] = data
        numbers = {path: path.stat().st_ino for path in contents}
        held = {path: os.open(path, os.O_RDONLY) for path in contents}
        try:
            while True:
                path = dice.choice(sorted(contents))
                with self.timed("pread held"):
                    assert os.pread(held[path], 200_001, 0) == contents[path]
                with self.timed("read"):
                    assert path.read_bytes() == contents[path]
                with self.timed("stat"):
                    assert path.stat().st_ino == numbers[path], "another inode number"
                yield
        finally:
            for handle in held.values():
                os.close(handle)

    def name(self, folder: Path, dice: random.Random) -> Generator[None]:
        """Names that are made, moved, linked and removed; each call does what it says, once."""
        there: dict[Path, bytes] = {}
        count = 0
        try:
            while True:
                deed = dice.random()
                if deed < 0.35 or len(there) < 3:
                    count += 1
                    path, data = folder / f"n{count}", dice.randbytes(dice.choice((0, 10, 3000)))
                    with self.timed("create"):
                        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                    with self.timed("write"):
                        os.write(handle, data)
                    with self.timed("close"):
                        os.close(handle)
                    there[path] = data
                elif deed < 0.55:
                    count += 1
                    old, new = dice.choice(sorted(there)), folder / f"m{count}"
                    with self.timed("rename"):
                        old.rename(new)
                    there[new] = there.pop(old)
                elif deed < 0.65:
                    old, over = dice.sample(sorted(there), 2)
                    with self.timed("rename over"):
                        old.rename(over)
                    there[over] = there.pop(old)
                elif deed < 0.75:
                    count += 1
                    path = folder / f"d{count}"
                    with self.timed("mkdir"):
                        path.mkdir()
                    with self.timed("rmdir"):
                        path.rmdir()
                elif deed < 0.85:
                    count += 1
                    old, new = dice.choice(sorted(there)), folder / f"l{count}"
                    with self.timed("link"):
                        new.hardlink_to(old)
                    with self.timed("unlink"):
                        old.unlink()
                    there[new] = there.pop(old)
                else:
                    path = dice.choice(sorted(there))
                    with self.timed("unlink"):
                        path.unlink()
                    del there[path]
                yield
        finally:
            self.expected.update(there)

    def orphans(self, folder: Path, dice: random.Random) -> Generator[None]:
        """Files without a name, for as long as they are open."""
        held: list[tuple[int, bytearray]] = []
        count = 0
        try:
            while True:
                if len(held) < 4:
                    count += 1
                    path, data = folder / f"o{count}", bytearray(dice.randbytes(30_000))
                    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                    os.write(handle, data)
                    with self.timed("unlink open"):
                        path.unlink()
                    held.append((handle, data))
                handle, data = dice.choice(held)
                at, new = dice.randrange(len(data)), dice.randbytes(50)
                with self.timed("pwrite orphan"):
                    os.pwrite(handle, new, at)
                data[at : at + len(new)] = new
                with self.timed("pread orphan"):
                    assert os.pread(handle, len(data) + 1, 0) == data, "an open file without a name lost bytes"
                if dice.random() < 0.1:
                    held.remove((handle, data))
                    with self.timed("close orphan"):
                        os.close(handle)
                yield
        finally:
            for handle, _ in held:
                os.close(handle)

    def listing(self, folder: Path, dice: random.Random) -> Generator[None]:
        """A large directory, listed so slowly that processes change meanwhile, while other names come and go."""
        stays = {f"stays-{number:05}" for number in range(self.listed)}
        for name in stays:
            os.close(os.open(folder / name, os.O_WRONLY | os.O_CREAT))
            self.expected[folder / name] = b""
        while True:
            seen: list[str] = []
            with os.scandir(folder) as found:
                for number, entry in enumerate(found):
                    seen.append(entry.name)
                    if not number % 100:
                        passing = folder / f"passing-{dice.randrange(10)}"
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(passing)
                        os.rmdir(passing)
                        time.sleep(0.05)
            steady = [name for name in seen if name.startswith("stays-")]
            assert len(steady) == len(stays), f"a listing shows {len(steady)} of {len(stays)} names"
            assert set(steady) == stays
            yield

    def attributes(self, folder: Path, dice: random.Random) -> Generator[None]:
        """Modes, times and extended attributes."""
        path = folder / "a"
        path.write_bytes(b"attributes")
        self.expected[path] = b"attributes"
        while True:
            mode, moment = dice.choice((0o600, 0o640, 0o644)), dice.randrange(10**9)
            with self.timed("chmod"):
                path.chmod(mode)
            with self.timed("utime"):
                os.utime(path, ns=(moment, moment))
            with self.timed("setxattr"):
                os.setxattr(path, "user.once", b"%d" % moment, os.XATTR_CREATE)
            found = path.stat()
            assert (found.st_mode & 0o777, found.st_mtime_ns) == (mode, moment)
            assert os.getxattr(path, "user.once") == b"%d" % moment
            with self.timed("removexattr"):
                os.removexattr(path, "user.once")
            yield


def children(pid: int) -> set[int]:
    """Of a process that has one thread."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def states(pid: int) -> str:
    """Of the children of a process: a letter for each, as proc_pid_stat(5) has them."""
    found = ""
    for child in children(pid):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return found


def named(pid: int, name: str) -> list[int]:
    """Processes of a supervisor that call themselves so."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(child)
    return found


def spares(pid: int) -> list[int]:
    """Processes of a supervisor that wait to take over from the mount process."""
    return named(pid, "vna-spare")


def templates(pid: int) -> list[int]:
    """Processes of a supervisor that its spares are copies of, once they have loaded."""
    return named(pid, "vna-template")


class Served:
    """One `vna serve`, and the mount process of the moment."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.process = archive.start("serve")

    @property
    def pid(self) -> int:
        """The mount process."""
        return int(STARTED.findall(self.archive.log.read_bytes())[-1])

    def times_ready(self) -> int:
        return self.archive.log.read_bytes().count(b"mount.ready")

    def kill(self) -> None:
        """kill -9 of the mount process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def kill_spare(self) -> None:
        """kill -9 of whoever waits to take over."""
        for pid in spares(self.process.pid):
            os.kill(pid, signal.SIGKILL)

    def kill_template(self) -> None:
        """kill -9 of what spares are copies of."""
        for pid in templates(self.process.pid):
            os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """The supervisor notices nothing meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wait_ready(self, times: int) -> None:
        """Until it answered so often from its start on."""
        until = time.monotonic() + READY_SECONDS_MAX
        while self.times_ready() < times:
            assert time.monotonic() < until, f"the mount did not come back\n{self.archive.tail()}"
            time.sleep(0.02)


def compare(share: Path, expected: dict[Path, bytes]) -> list[str]:
    """What differs."""
    wrong = [
        f"{path.name} differs" for path, data in expected.items() if not path.exists() or path.read_bytes() != data
    ]
    there = {Path(top) / name for top, _, names in os.walk(share) for name in names}
    wrong += [f"{path.name} should not be there" for path in there - expected.keys()]
    return wrong


def kill_often(
    served: Served,
    dice: random.Random,
    away: dict[str, list[float]],
    is_over: Callable[[], bool],
    *,
    kills: int,
    seconds: float,
    twice_chance: float,
) -> None:
    """Kill so often, at any moment; *away* gets the seconds until somebody answered again."""
    for _ in range(kills):
        time.sleep(dice.uniform(0.05, seconds))
        before = served.times_ready()
        began, times = time.monotonic(), "once"
        served.kill()
        if dice.random() < twice_chance:
            times = "twice"
            time.sleep(dice.uniform(0.1, 1.0))  # while it takes over
            served.kill()
        served.wait_ready(before + 1)
        away[times].append(time.monotonic() - began)
        if is_over():
            break


def spread(seconds: list[float]) -> str:
    """Median, 99th percentile (nearest rank) and worst."""
    found = sorted(seconds)
    p99 = found[max(0, -(-99 * len(found) // 100) - 1)]
    return f"{statistics.median(found):.2f} s in the median, {p99:.2f} s at p99, {found[-1]:.2f} s at worst"


def not_taken_over(archive: Archive) -> list[str]:
    """What the log says of processes that began anew instead."""
    said = archive.log.read_bytes()
    is_so = b"not_taken_over" in said or b"mount_given_up" in said
    return ["a process did not take over"] if is_so else []


def run(archive: Archive, *, kills: int, seed: int, seconds: float, twice_chance: float = 0.1) -> Clients:
    """Kill so often, and compare; the archive is stopped in the end."""
    dice = random.Random(seed)
    served = Served(archive)
    clients = Clients(archive.share, seed)
    clients.start()
    try:
        kill_often(
            served,
            dice,
            clients.away,
            lambda: bool(clients.wrong),
            kills=kills,
            seconds=seconds,
            twice_chance=twice_chance,
        )
        time.sleep(seconds)
    finally:
        clients.stop()
    clients.wrong += compare(archive.share, clients.expected)
    clients.wrong += not_taken_over(archive)
    if not clients.wrong:
        archive.vna("wait", "--copies", "1", "--timeout", "120")  # a handle that nobody has would keep its file open
    archive.stop()
    archive.start("serve")
    clients.wrong += compare(archive.share, clients.expected)
    return clients


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ack", default="written")
    parser.add_argument("--seconds", type=float, default=0.6, help="between two kills, at most")
    parser.add_argument("--twice", type=float, default=0.1, help="of the kills, followed by another one")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="vnafs-takeover-") as folder,
        an_archive(Path(folder), None, "--ack", args.ack, settings=SETTINGS, serve=False) as archive,
    ):
        clients = run(archive, kills=args.kills, seed=args.seed, seconds=args.seconds, twice_chance=args.twice)
        if clients.wrong:
            print(archive.tail())
    longest, what = clients.longest
    print(
        f"{args.kills} kills, {clients.calls} calls, the longest {longest:.2f} s ({what}), {len(clients.wrong)} wrong"
    )
    for times, seconds in clients.away.items():
        if seconds:
            print(f"away, killed {times}: {spread(seconds)}")
    print(*clients.wrong, sep="\n")
    return int(bool(clients.wrong) or longest > WAIT_SECONDS_MAX)


if __name__ == "__main__":
    sys.exit(main())
