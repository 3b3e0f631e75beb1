"""`make bench`: every bench once, at the size that a coffee break allows. Figures go to build/bench."""

from __future__ import annotations

import subprocess
import sys

BENCHES = (
    ["tests.bench.content"],
    ["tests.bench.codecs"],
    ["tests.bench.index_engine"],
    ["tests.bench.targets"],
    ["tests.bench.drain", "--files", "600", "--rounds", "3"],
    ["tests.bench.million", "--files", "100000"],
    ["tests.bench.dead_target", "--rounds", "2", "--seconds", "10"],
    ["tests.bench.share", "--rounds", "3", "--scale", "0.1"],
    ["tests.bench.beside_tiering", "--rounds", "3"],
    ["tests.bench.replay"],
    ["tests.bench.rollback", "--files", "20000"],
    ["tests.bench.ten_million", "--files", "200000", "--every", "50000"],
)

if __name__ == "__main__":
    sys.exit(max(subprocess.run([sys.executable, "-m", *words], check=False).returncode for words in BENCHES))
