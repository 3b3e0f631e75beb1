"""Programs that judge file systems and programs that trust them, on files that are tiered meanwhile, with each engine.

fio writes at random and verifies what it wrote; stress-ng does to files what it can think of and checks the outcome;
git and Python's compiler build in the tree; and a PACS does what PACS do.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.archives import Archive, until
from tests.system.load import Daemons

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("suites")]

FIO = (
    *("--size=2m", "--fallocate=none", "--minimal"),
    *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"),
)
WAYS = {
    "at-random": ("--rw=randwrite", "--bs=4k", "--ioengine=psync"),
    "mapped": ("--rw=randwrite", "--bs=4k", "--ioengine=mmap"),
    "mixed": ("--rw=randrw", "--bsrange=1k-64k", "--ioengine=psync", "--verify_backlog=64"),
    "direct": ("--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=8"),
    "ring": ("--rw=randwrite", "--bs=4k", "--ioengine=io_uring", "--iodepth=8"),
    "synced": ("--rw=randwrite", "--bs=4k", "--ioengine=pvsync2", "--fsync=64"),
}
# Of stress-ng's class `filesystem`: those that stay below --temp-path and that Linux itself does not refuse for FUSE
STRESSORS = (
    *("access", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "fallocate", "fcntl", "filename", "flock"),
    *("fpunch", "fstat", "getdent", "handle", "hdd", "iomix", "lease", "link", "lockf", "lockofd", "mknod", "open"),
    *("rename", "seek", "sendfile", "symlink", "sync-file", "touch", "utime", "xattr"),
)
SLICES = 8


def folder(site: Archive, name: str) -> Path:
    made = site.share / name
    made.mkdir()
    return made


def run(*command: object, cwd: Path | None = None, seconds: float = 60.0, **environ: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        cwd=cwd,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def all_stubs(site: Archive, place: Path) -> None:
    """Every file below it comes from the target from now on."""
    ask = Daemons(site)
    try:
        until(ask.all_done, lambda: f"all have copies\n{site.tail()}", 60)
        paths = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size]
        ask.evict_all(*paths)
        assert {site.state(path) for path in paths} == {"stub"}
    finally:
        ask.close()


@contextlib.contextmanager
def going(site: Archive, place: Path) -> Iterator[None]:
    """Meanwhile whatever below it may go does."""
    stop, ask = threading.Event(), Daemons(site)

    def evict() -> None:
        while not stop.wait(0.1):
            with contextlib.suppress(OSError):  # names come and go
                ask.evict(*(path for path in place.rglob("*") if path.is_file() and not path.is_symlink()))

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ask.close()


def test_fio_reads_back_what_it_wrote_in_each_way(site: Archive) -> None:
    place = folder(site, "fio")
    for name, words in WAYS.items():
        run("fio", f"--name={name}", f"--directory={place}", *FIO, *words)
    all_stubs(site, place)
    for name, words in WAYS.items():
        if name != "mixed":  # of which fio itself does not know any more what it wrote last
            run("fio", f"--name={name}", f"--directory={place}", *FIO, *words, "--verify_only")


def test_stress_ng_finds_nothing_wrong(site: Archive) -> None:
    place = folder(site, "stress")
    place.chmod(0o777)
    words = [word for name in STRESSORS for word in (f"--{name}", "1")]
    small = ("--hdd-bytes", "4m", "--iomix-bytes", "4m", "--fallocate-bytes", "4m", "--seek-size", "1m")
    with going(site, place):
        run("stress-ng", *words, *small, "--temp-path", place, "--timeout", "1", "--verify", cwd=place, seconds=120)
    assert list(place.iterdir()) == []


def test_git_and_python_build_in_the_tree(site: Archive, tmp_path: Path) -> None:
    place = folder(site, "work")
    origin = place / "origin"
    me = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")
    run("git", "init", "-q", origin)
    for package in ("json", "xml"):
        run("cp", "-r", Path(os.__file__).parent / package, origin / package)
    run("git", "add", "-A", cwd=origin)
    run("git", *me, "commit", "-q", "-m", "all", cwd=origin)
    with going(site, place):
        run("git", "clone", "-q", "--no-local", origin, place / "clone")
        run("git", "-C", place / "clone", "fsck", "--strict", "--full")
        assert run("git", "-C", place / "clone", "status", "--porcelain") == ""
        run("git", "-C", place / "clone", "gc", "-q", "--prune=now")
    all_stubs(site, place)
    run("git", "-C", place / "clone", "fsck", "--strict", "--full")
    assert run("git", "-C", place / "clone", "status", "--porcelain") == ""
    run(sys.executable, "-m", "compileall", "-q", "-f", place / "clone")
    code = "import json; print(json.__cached__, json.dumps([1]))"
    said = run(sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(place / 'clone')!r}); {code}")
    assert said.startswith(str(place / "clone"))
    assert said.rstrip().endswith("[1]")


def test_make_sees_what_is_newer(site: Archive) -> None:
    """Each step is at least as new as the one before, so a second make(1) has nothing to do."""
    place = folder(site, "make")
    steps = 40
    rules = [f"all: s{steps}", "s0:", "\ttouch s0"]
    for step in range(1, steps + 1):
        recipe = ("echo x > $@", "touch $@", "cp s$$(( $* - 1 )) $@" if step % 6 == 5 else "echo y > $@")[step % 3]
        rules += [f"s{step}: s{step - 1}", "\t" + recipe.replace("$*", str(step))]
    (place / "Makefile").write_text("\n".join(rules) + "\n")
    run("make", cwd=place)
    assert "Nothing to be done" in run("make", cwd=place)


class Pacs:
    """Stores as a PACS does: a temporary name, rename, times, a header put right, some files deleted again."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.dice = random.Random(seed)
        self.expected: dict[str, tuple[str, int]] = {}
        place.mkdir()

    def store(self, number: int) -> None:
        name, data = f"{number:05d}.dcm", bytearray(self.dice.randbytes(self.dice.randrange(1000, 200_000)))
        path, temporary = self.place / name, self.place / f"{number:05d}.tmp"
        with temporary.open("xb") as file:
            file.write(data)
        temporary.rename(path)
        os.utime(path, ns=(10**18, 10**18 + number))
        if number >= SLICES:
            self.correct(f"{number - SLICES:05d}.dcm")
        if number >= 2 * SLICES and number % 3 == 0:
            self.delete(f"{number - 2 * SLICES:05d}.dcm")
        self.expected[name] = (hashlib.sha256(data).hexdigest(), 10**18 + number)

    def correct(self, name: str) -> None:
        path = self.place / name
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(128)
            file.write(self.dice.randbytes(200))
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.expected[name] = (hashlib.sha256(path.read_bytes()).hexdigest(), before.st_mtime_ns)

    def delete(self, name: str) -> None:
        (self.place / name).unlink()
        del self.expected[name]

    def check(self) -> None:
        assert {path.name for path in self.place.iterdir()} == set(self.expected)
        for name, (digest, mtime_ns) in self.expected.items():
            path = self.place / name
            assert path.stat().st_mtime_ns == mtime_ns, name
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, name
            assert path.stat().st_mtime_ns == mtime_ns, name


def test_a_pacs_stores_corrects_and_deletes_while_its_files_go_and_come_back(site: Archive) -> None:
    senders = [Pacs(site.share / f"pacs-{number}", number) for number in range(2)]
    failures: list[BaseException] = []
    ends = time.monotonic() + 3.0

    def send(pacs: Pacs) -> None:
        try:
            number = 0
            while time.monotonic() < ends:
                pacs.store(number)
                number += 1
        except BaseException as failure:
            failures.append(failure)

    states: collections.Counter[str] = collections.Counter()
    with going(site, senders[0].place), going(site, senders[1].place):
        threads = [threading.Thread(target=send, args=(pacs,)) for pacs in senders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        states.update(site.state(pacs.place / name) for pacs in senders for name in pacs.expected)
    assert not failures, failures
    assert states["stub"], states  # or nothing was tiered meanwhile
    for pacs in senders:
        pacs.check()
        all_stubs(site, pacs.place)
        pacs.check()
