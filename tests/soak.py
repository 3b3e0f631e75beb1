"""`make soak`: the long suites in full, one after the other, resumable, each with its log under build/soak.

A suite that passed on this commit is not run again; delete its `.passed` file, or commit, to have it run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

FOLDER = Path(__file__).parents[1] / "build" / "soak"
SUITES = {
    "tree-model": ["-m", "pytest", "-m", "soak", "--timeout", "7200", "tests/model/test_tree_model.py"],
    "engine-model": ["-m", "pytest", "-m", "soak", "--timeout", "7200", "tests/model/test_engine_model.py"],
    "roundtrip": ["-m", "tests.bench.roundtrip", "--files", "20000"],
    "million": ["-m", "tests.bench.million", "--files", "1000000"],
    "drain": ["-m", "tests.bench.drain", "--files", "1000", "--rounds", "5", "--sustained", "600"],
}


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    console = Console()
    FOLDER.mkdir(parents=True, exist_ok=True)
    here, failed = commit(), []
    for name, words in SUITES.items():
        mark, log = FOLDER / f"{name}.passed", FOLDER / f"{name}.log"
        if mark.exists() and mark.read_text().split()[0] == here:
            console.print(f"{name}: passed on {here} before")
            continue
        began = time.monotonic()
        with console.status(f"{name}, log in {log}"), log.open("w") as out:
            out.write(f"{here} {name}\n")
            out.flush()
            code = subprocess.run([sys.executable, *words], stdout=out, stderr=out, check=False).returncode
        took = time.monotonic() - began
        console.print(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'} after {took:.0f} s, log in {log}")
        if code == 0:
            mark.write_text(f"{here} {took:.0f} s\n")
        else:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
