"""The splitter of last resort: one piece, or content-defined chunks when that would be large.

Everything that is not DICOM, and every DICOM object that cannot be understood, comes here. Pure; any thread.
"""

from __future__ import annotations

from vnafs.content.splitters import chunks
from vnafs.content.splitters.runs import Run
from vnafs.domain.recipes import PieceKind

WHOLE_BYTES_MAX = 1024 * 1024
"""Up to here a file is one piece: the average chunk would be no smaller."""


def plan(size_bytes: int) -> list[Run]:
    """One run."""
    if size_bytes <= WHOLE_BYTES_MAX:
        return [Run(size_bytes, PieceKind.BYTES)]
    sizes = chunks.LARGE_FILE if size_bytes < chunks.HUGE_FILE_BYTES_MIN else chunks.HUGE_FILE
    return [Run(size_bytes, PieceKind.CHUNK, sizes)]
