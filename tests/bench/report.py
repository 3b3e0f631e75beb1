"""Where benches leave their figures: one JSON document a bench and moment under build/bench, and curves beside it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "bench"


def keep(name: str, result: object) -> Path:
    """Store a result beside what it was measured on."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    machine = {"kernel": platform.release(), "processors": os.cpu_count(), "python": platform.python_version()}
    path.write_text(json.dumps({"bench": name, "machine": machine, "result": result}, indent=2) + "\n")
    return path


WIDE, HIGH, LEFT, GAP = 560, 130, 70, 44


def draw(path: Path, across: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """An SVG with one small chart for each curve, from 0 up, below each other."""
    parts = []
    for place, (name, values) in enumerate(curves.items()):
        top, most = GAP + place * (HIGH + GAP), max(values) or 1
        points = " ".join(
            f"{LEFT + WIDE * x / across[-1]:.1f},{top + HIGH - HIGH * y / most:.1f}"
            for x, y in zip(across, values, strict=True)
        )
        parts += [
            f'<text x="{LEFT}" y="{top - 8}">{name}</text>',
            f'<text x="{LEFT - 6}" y="{top + 4}" text-anchor="end">{most:,}</text>',
            f'<text x="{LEFT - 6}" y="{top + HIGH + 4}" text-anchor="end">0</text>',
            f'<text x="{LEFT + WIDE}" y="{top + HIGH + 16}" text-anchor="end">{across[-1]:,} files</text>',
            f'<path d="M{LEFT} {top}v{HIGH}h{WIDE}" fill="none" stroke="#888"/>',
            f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/>',
        ]
    size = f'width="{LEFT + WIDE + 20}" height="{GAP + len(curves) * (HIGH + GAP)}"'
    style = 'font-family="sans-serif" font-size="12"'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n')
