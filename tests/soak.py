"""`make soak`: the long suites in full, one after the other, each with its log; all of it under build/soak.

    python -m tests.soak [--small] [--again] [--seed N] [SUITE …]

`state.json` keeps what each suite came to on which code, so that a soak may be interrupted at any time and goes on
where it was: what passed on this very code is not run again (`--again` does), what was interrupted starts anew with
the seed it had. `soak.log` gets one line for each suite that ended: when, which code, seed, seconds, result. A seed is
new for each run unless told; `--small` runs every suite at a size that shows only that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "soak"
STOP_SECONDS = 90.0
"""For a suite to put its mounts and servers away when it is interrupted."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Words for Python, in which {seed} stands for the seed; *small* is the quick form."""

    long: str
    small: str
    seconds_max: float


def pytest(what: str) -> str:
    return f"-m pytest -q -p no:cacheprovider --timeout 0 --hypothesis-seed {{seed}} tests/model/{what}"


SUITES: Mapping[str, Suite] = {
    "tree-model": Suite(
        pytest("test_tree_model.py::test_a_million_random_operations_leave_the_tree_like_a_real_directory"),
        pytest("test_tree_model.py::test_random_operations_leave_the_tree_like_a_real_directory[1]"),
        4 * 3600,
    ),
    "past-model": Suite(
        pytest("test_past_model.py::test_moments_of_many_lives"),
        pytest("test_past_model.py::test_moments_of_a_life_that_nobody_has_seen_before"),
        4 * 3600,
    ),
    "engine-model": Suite(
        pytest("test_engine_model.py::test_power_cuts_for_long"),
        pytest("test_engine_model.py::test_after_a_power_cut_there_is_a_prefix_that_has_everything_synced"),
        4 * 3600,
    ),
    "pipeline-model": Suite(
        pytest("test_pipeline_model.py::test_many_lives"),
        pytest("test_pipeline_model.py::test_a_life_that_nobody_has_seen_before"),
        4 * 3600,
    ),
    "collect-model": Suite(
        pytest("test_collect_model.py::test_many_lives_that_collect"),
        pytest("test_collect_model.py::test_an_archive_that_collects_loses_nothing_and_leaves_nothing[1]"),
        4 * 3600,
    ),
    "collect-exhaustive": Suite(
        pytest("test_collect_exhaustive.py::test_every_sequence_of_five_deeds_loses_nothing"),
        pytest("test_collect_exhaustive.py::test_every_sequence_of_three_deeds_loses_nothing[there-write]"),
        4 * 3600,
    ),
    "damage": Suite(
        pytest("test_damage.py::test_ten_thousand_hits"),
        pytest("test_damage.py::test_all_damage_is_found_and_mended_and_none_is_served[1]"),
        4 * 3600,
    ),
    "random-io": Suite(
        "-m pytest -q -p no:cacheprovider --timeout 0 tests/system/test_random_io.py -k half_an_hour",
        "-m pytest -q -p no:cacheprovider --timeout 0 tests/system/test_random_io.py -k never",
        2 * 3600,
    ),
    "roundtrip": Suite(
        "-m tests.bench.roundtrip --files 20000 --seed {seed}",
        "-m tests.bench.roundtrip --files 60 --seed {seed}",
        4 * 3600,
    ),
    "kills": Suite(
        "-m tests.bench.kills --cycles 1000 --seed {seed}", "-m tests.bench.kills --cycles 3 --seed {seed}", 4 * 3600
    ),
    "takeover": Suite(
        "-m tests.bench.takeover --kills 300 --seconds 4 --seed {seed}",
        "-m tests.bench.takeover --kills 3 --seconds 2 --seed {seed}",
        4 * 3600,
    ),
    "takeover-durable": Suite(
        "-m tests.bench.takeover --kills 300 --seconds 4 --ack durable --seed {seed}",
        "-m tests.bench.takeover --kills 3 --seconds 2 --ack durable --seed {seed}",
        4 * 3600,
    ),
    "power-cuts": Suite(
        "-m tests.bench.power_cuts --cuts 520 --recordings 6 --mounted-each 40 --seed {seed}",
        "-m tests.bench.power_cuts --cuts 8 --recordings 2 --seconds 1.5 --mounted-each 4 --seed {seed}",
        4 * 3600,
    ),
    "takeover-shares": Suite(
        "-m tests.bench.takeover_shares --kills 300 --seconds 4 --seed {seed}",
        "-m tests.bench.takeover_shares --kills 3 --seconds 2 --seed {seed}",
        4 * 3600,
    ),
    "smbtorture": Suite(
        "-m tests.bench.smbtorture", "-m tests.bench.smbtorture --suites smb2.rename,smb2.timestamps", 2 * 3600
    ),
    "smbtorture-pyfuse3": Suite(
        "-m tests.bench.smbtorture --engine pyfuse3",
        "-m tests.bench.smbtorture --engine pyfuse3 --suites smb2.rw,smb2.read",
        2 * 3600,
    ),
    "kernel-nfs": Suite(
        "-m pytest -q -p no:cacheprovider --timeout 0 tests/system/test_kernel_nfs.py",
        "-m pytest -q -p no:cacheprovider --timeout 0 tests/system/test_kernel_nfs.py -k pacs_stores",
        4 * 3600,
    ),
    "worst-day": Suite(
        "-m tests.bench.worst_day --seed {seed}", "-m tests.bench.worst_day --files 40 --seed {seed}", 3600
    ),
    "crowded": Suite("-m tests.bench.crowded", "-m tests.bench.crowded --files 20000", 3600),
    "dbench": Suite("-m tests.bench.dbench", "-m tests.bench.dbench --rounds 2 --seconds 2", 3600),
    "million": Suite("-m tests.bench.million --files 1000000", "-m tests.bench.million --files 2000", 2 * 3600),
    "drain": Suite(
        "-m tests.bench.drain --files 1000 --rounds 5 --sustained 600 --seed {seed}",
        "-m tests.bench.drain --files 40 --rounds 1 --seed {seed}",
        2 * 3600,
    ),
    "ten-million": Suite("-m tests.bench.ten_million", "-m tests.bench.ten_million --files 20480", 3 * 3600),
}


def code() -> str:
    """Which code this is: the commit, and for a changed tree also what the changes are."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], capture_output=True, check=True, cwd=ROOT).stdout

    name = git("describe", "--always", "--dirty", "--abbrev=10").decode().strip()
    if not name.endswith("-dirty"):
        return name
    changes = hashlib.sha256(git("diff", "HEAD", "--binary"))
    for path in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        with contextlib.suppress(OSError):
            changes.update(path + (ROOT / os.fsdecode(path)).read_bytes() if path else b"")
    return f"{name}-{changes.hexdigest()[:8]}"


class State:
    """What each suite came to, in a file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, code_name: str) -> dict[str, object]:
        """The row of a suite on this code, empty when there is none."""
        row = self._rows.get(name, {})
        return row if row.get("code") == code_name else {}

    def put(self, name: str, **row: object) -> None:
        """Keep a row."""
        self._rows[name] = row
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._rows, indent=2) + "\n")
        fresh.replace(self._path)


class Interrupted(Exception):
    """Somebody wants us to stop."""


def interrupt(number: int, frame: object) -> None:
    raise Interrupted


def run(words: Sequence[str], log: Path, seed: int, seconds_max: float) -> str:
    """What the suite came to. Raises Interrupted, once the suite has ended."""
    environ = {**os.environ, "VNAFS_SOAK_SEED": str(seed), "VNAFS_SEED": str(seed)}
    with log.open("a") as out:
        child = subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=out, env=environ, cwd=ROOT, start_new_session=True
        )
        try:
            status = child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            return f"NOT DONE after {seconds_max:.0f} s"
        else:
            return "passed" if status == 0 else f"FAILED ({status})"
        finally:
            end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a suite with all its processes: first as Ctrl-C would, so that it unmounts what it mounted."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def note(text: str) -> None:
    """One line for whoever cites this soak."""
    with (FOLDER / "soak.log").open("a") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    unknown = set(args.suites) - SUITES.keys()
    if unknown:
        parser.error(f"there is no {' or '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    console, here, failed = Console(highlight=False, soft_wrap=True), code(), []
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = State(FOLDER / "state.json")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    for name in args.suites or SUITES:
        suite, key = SUITES[name], f"{name} small" if args.small else name
        known = state.get(key, here)
        if known.get("result") == "passed" and not args.again:
            console.print(f"{key}: passed on {here} before, seed {known['seed']}, {known['seconds']} s")
            continue
        resumed = known.get("seed") if known.get("result") in {"running", "interrupted"} else None
        seed = int(str(resumed or args.seed or random.SystemRandom().randrange(1, 1 << 31)))
        words = (suite.small if args.small else suite.long).format(seed=seed).split()
        log = FOLDER / f"{key.replace(' ', '-')}.log"
        log.write_text(f"{here} {key} seed {seed}\n{' '.join(['python', *words])}\n")
        state.put(key, code=here, seed=seed, result="running")
        began, result = time.monotonic(), "interrupted"
        try:
            with console.status(f"{key}, seed {seed}, log in {log}"):
                result = run(words, log, seed, suite.seconds_max)
        except Interrupted:
            return 130
        finally:
            took = round(time.monotonic() - began)
            state.put(key, code=here, seed=seed, seconds=took, result=result)
            note(f"{here} {key}: {result}, seed {seed}, {took} s, {' '.join(words)}")
            console.print(f"{key}: {result} after {took} s, seed {seed}, log in {log}")
        if result != "passed":
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
