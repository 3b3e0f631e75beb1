"""What every model shares: a folder to live in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """In memory where there is such a place: what is tested is order, not the disk."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = tempfile.mkdtemp(prefix="vnafs-model-", dir=base)
    yield Path(made)
    shutil.rmtree(made, ignore_errors=True)
