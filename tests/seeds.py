"""Where the long suites get their randomness: a seed in VNAFS_SOAK_SEED, as `make soak` sets and logs it, or chance."""

from __future__ import annotations

import os
import random


def soak_dice() -> random.Random:
    """The dice of one suite."""
    seed = os.environ.get("VNAFS_SOAK_SEED")
    return random.Random(int(seed)) if seed else random.SystemRandom()
