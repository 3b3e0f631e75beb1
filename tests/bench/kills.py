"""kill -9, again and again, of whatever serves an archive that is busy with everything at once.

    python -m tests.bench.kills [--cycles 1000] [--seed 1]

In each cycle clients write, change, rename and remove files; some are evicted, packs are collected and packed again,
manifests are recorded and trimmed, a bit rots on one of two targets and is mended, a repository is rolled back. In the
middle of it mount, tierd or both are killed and started again. What was in doubt is looked at, and files drawn by lot
are read. Now and then, and in the end, everything is evicted and read back. Exits with 1 when one acknowledged byte is
lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.report import keep
from tests.system.archives import Archive, an_archive, until
from tests.system.load import Daemons, Load
from vnafs.domain.errors import VnaError

SETTINGS = """
[file_system]
quiet_seconds = 0.2
recall_seconds_max = 20.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.2
target_bytes = 1048576

[manifests]
seconds_max = 0.3
kept_seconds = 60

[scrub]
period_seconds = 3
bytes_per_second_max = 0

[collection]
after_seconds = 2
live_percent_min = 70
"""
NAMES = [f"file-{number}" for number in range(24)]
LOOK_CYCLES = 25
"""Between two looks at everything."""
DELAY_SECONDS_MAX = 1.2
SETTLE_SECONDS_MAX = 180.0


class World:
    """The archive, its two loads and what kills them."""

    def __init__(self, archive: Archive, seed: int) -> None:
        self.archive = archive
        self.dice = random.Random(seed)
        self.ask = Daemons(archive)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("mount", "tierd"):
            self.start(name)
        archive.vna("repository", "set", "archive", "--keep-versions", "0", "--copies", "2", "--tripwire", "off")
        archive.vna("repository", "add", "past", "--copies", "2", "--tripwire", "off")
        self.load = Load(archive, "load")
        self.past = Load(archive, "past-load")
        self.past.folder.rmdir()
        self.past.folder = archive.mount / "past" / "load"
        self.past.folder.mkdir()
        self.moment: tuple[str, dict[str, bytes]] | None = None
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def start(self, name: str) -> None:
        self.processes[name] = self.archive.start(name)

    def kill(self, *names: str) -> None:
        for name in names:
            self.count(f"{name} killed")
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes[name].wait()
        for name in names:
            self.start(name)

    # -- what goes on ------------------------------------------------------------------------------------------

    def clients(self, load: Load) -> None:
        """A few operations; one that fails because nobody serves leaves its file in doubt."""
        for _ in range(self.dice.randrange(2, 9)):
            there = sorted(load.expected)
            name, deed = self.dice.choice(NAMES), self.dice.random()
            if name in load.doubtful:
                continue
            try:
                if deed < 0.5 or not there:
                    size = self.dice.choice((0, 10, 5_000, 60_000, 300_000))
                    load.write(name, self.dice.randbytes(size))
                elif deed < 0.6:
                    load.patch(self.dice.choice(there), 0, b"patched")
                elif deed < 0.7:
                    chosen = self.dice.choice(there)
                    load.cut(chosen, len(load.expected[chosen]) // 2)
                elif deed < 0.85 and name not in there:
                    load.rename(self.dice.choice(there), name)
                else:
                    load.remove(self.dice.choice(there))
            except OSError:
                return

    def chosen(self) -> Callable[[], object]:
        """One thing that an administrator or a bad disk does."""
        return self.dice.choice((self.evict, self.collect, self.flush, self.rot, self.roll_back))

    def behind(self, deed: Callable[[], object]) -> None:
        with contextlib.suppress(VnaError, OSError):
            deed()
            self.count(deed.__name__)

    def evict(self) -> None:
        paths = self.load.paths() + self.past.paths()
        self.ask.evict(*[path for path in self.dice.sample(paths, min(8, len(paths))) if path.exists()])

    def collect(self) -> None:
        self.ask.tierd.call("collect.hurry")

    def flush(self) -> None:
        self.ask.tierd.call("tiering.flush")

    def rot(self) -> None:
        """A bit of a pack changes on one target, where the other one has the same object."""
        one, two = (self.archive.folder / name for name in ("one", "two"))
        same = [path for path in sorted((one / "packs").rglob("*.pack")) if (two / path.relative_to(one)).exists()]
        if not same:
            return
        path = self.dice.choice(same)
        data = bytearray(path.read_bytes())
        if data != (two / path.relative_to(one)).read_bytes() or not data:
            return
        data[self.dice.randrange(len(data))] ^= 1 << self.dice.randrange(8)
        fresh = path.with_suffix(".rot")
        fresh.write_bytes(data)
        os.replace(fresh, path)

    def roll_back(self) -> None:
        """To the last moment at which everything had its copies; in the background, to be killed in the middle."""
        if self.moment is None or self.past.doubtful:
            return
        moment, expected = self.moment
        self.past.expected, self.rolling = dict(expected), True
        threading.Thread(
            target=self.archive.vna, args=("rollback", "past", "--to", moment), kwargs={"check": None}, daemon=True
        ).start()

    rolling = False

    # -- what must be true -------------------------------------------------------------------------------------

    def wait_rolled_back(self) -> None:
        if not self.rolling:
            return

        def over() -> bool:
            with contextlib.suppress(VnaError):
                rows = self.ask.mount.call("repository.list")
                return not any(row["rolling_to_ns"] for row in rows if row["name"] == "past")
            return False

        time.sleep(0.5)  # it may be about to begin
        until(over, "the rollback comes to its end", SETTLE_SECONDS_MAX)
        moment, _ = self.moment or ("", {})
        # killed before it began, it may not have begun at all
        self.archive.vna("rollback", "past", "--to", moment)
        self.rolling = False
        self.count("rollback looked at")

    def look(self) -> None:
        """Everything that was acknowledged is there, also when it has to come back from targets."""
        self.wait_rolled_back()
        for load in (self.load, self.past):
            load.resolve()
            load.check_all()
        until(lambda: self.ask.all_done(2), lambda: f"all is copied\n{self.archive.tail()}", SETTLE_SECONDS_MAX)
        self.ask.evict(*self.load.paths(), *self.past.paths())
        for load in (self.load, self.past):
            load.check_all()
        time.sleep(1.1)
        self.moment = f"@{time.time_ns() // 10**9}.{time.time_ns() % 10**9:09d}", dict(self.past.expected)
        time.sleep(0.1)
        self.count("looks at everything")

    def cycle(self) -> None:
        self.wait_rolled_back()
        deed = self.chosen()
        # what is written while a repository is rolled back would be nobody's to say
        loads = [self.load] if deed == self.roll_back else [self.load, self.past]
        busy = [threading.Thread(target=self.clients, args=(load,)) for load in loads]
        for thread in busy:
            thread.start()
        self.behind(deed)
        time.sleep(self.dice.random() * DELAY_SECONDS_MAX)
        self.kill(*self.dice.choice((("tierd",), ("tierd",), ("tierd",), ("mount",), ("mount", "tierd"))))
        for thread in busy:
            thread.join()
        for load in (self.load, self.past):
            if not self.rolling or load is self.load:
                load.resolve()
                for name in self.dice.sample(sorted(load.expected), min(2, len(load.expected))):
                    load.check(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vnafs-kills-") as text:
        folder = Path(text)
        targets = {name: f"file://{folder}/{name}" for name in ("one", "two")}
        with an_archive(folder, targets, settings=SETTINGS, serve=False) as archive:
            world = World(archive, args.seed)
            world.look()
            for number in range(1, args.cycles + 1):
                try:
                    world.cycle()
                    if number % LOOK_CYCLES == 0 or number == args.cycles:
                        world.look()
                        print(
                            json.dumps({"cycles": number, "seconds": round(time.monotonic() - began), **world.counts}),
                            flush=True,
                        )
                except BaseException:
                    print(f"FAILED in cycle {number}, seed {args.seed}\n{archive.tail(80)}", flush=True)
                    raise
    keep("kills", {"cycles": args.cycles, "seed": args.seed, **world.counts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
