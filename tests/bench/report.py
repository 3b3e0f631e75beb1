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


BAR_HIGH, BAR_STEP, NAMES_WIDE = 12, 17, 110


def bars(path: Path, groups: Mapping[str, Mapping[str, float]]) -> None:
    """An SVG with one bar for each value, those of a group below its title and to one scale."""
    parts, top = [], 0
    for title, values in groups.items():
        top += GAP
        parts.append(f'<text x="{LEFT}" y="{top}" font-weight="bold">{title}</text>')
        most = max(values.values()) or 1
        for name, value in values.items():
            top += BAR_STEP
            wide, low = WIDE * value / most, top + BAR_HIGH - 2
            parts += [
                f'<text x="{LEFT}" y="{low}">{name}</text>',
                f'<rect x="{LEFT + NAMES_WIDE}" y="{top}" width="{wide:.1f}" height="{BAR_HIGH}" fill="#06c"/>',
                f'<text x="{LEFT + NAMES_WIDE + wide + 6:.1f}" y="{low}">{value:,.1f}</text>',
            ]
    size = f'width="{LEFT + NAMES_WIDE + WIDE + 90}" height="{top + GAP}"'
    style = 'font-family="sans-serif" font-size="12"'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n')
