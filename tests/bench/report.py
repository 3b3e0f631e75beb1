"""Where benches leave their figures: one JSON document a bench and moment under build/bench."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "bench"


def keep(name: str, result: object) -> Path:
    """Store a result beside what it was measured on."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    machine = {"kernel": platform.release(), "processors": os.cpu_count(), "python": platform.python_version()}
    path.write_text(json.dumps({"bench": name, "machine": machine, "result": result}, indent=2) + "\n")
    return path
