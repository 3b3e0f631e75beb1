"""Random lives: each is given by its seed, which a failure names with what was done last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar


class RandomLife(Protocol):
    """What can be lived."""

    crashes: int
    trail: list[str]
    """The names of what was done, the last at the end."""

    def live(self, steps: int) -> None:
        """Do so many things, and end well."""
        ...


_LifeT = TypeVar("_LifeT", bound=RandomLife)


def run(kind: Callable[[Path, int], _LifeT], home: Path, seed: int, steps: int) -> _LifeT:
    """Live one, in the directory *home*."""
    life = kind(home, seed)
    try:
        life.live(steps)
    except BaseException as problem:
        problem.add_note(f"VNAFS_SEED={seed}, {life.crashes} crashes; the last steps: {life.trail[-25:]}")
        raise
    return life
