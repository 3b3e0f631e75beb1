"""Content-defined cuts: where bytes repeat, they are cut at the same places, wherever in the file they lie.

Uses fastcdc (gear hash). The result depends only on the bytes since the last cut, so a file is cut window by
window in bounded memory and the cuts equal those of one pass. Pure; any thread (the interpreter lock is held
for one chunk, a few milliseconds).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fastcdc import fastcdc

from vnafs.content.source import Source
from vnafs.domain.recipes import PIECE_BYTES_MAX, Cut, PieceKind

_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Limits of one kind of chunking; part of what makes two runs cut alike, so they never change."""

    bytes_min: int
    bytes_average: int
    bytes_max: int


LARGE_FILE = ChunkSizes(256 * 1024, _MIB, 4 * _MIB)
"""Slides, videos, archives: an insertion costs about two chunks."""
HUGE_FILE = ChunkSizes(4 * _MIB, 8 * _MIB, PIECE_BYTES_MAX)
"""From HUGE_FILE_BYTES_MIN on, so that a recipe stays readable in one go: a terabyte is about 130 000 pieces."""
HUGE_FILE_BYTES_MIN = 64 * 1024 * _MIB
METADATA = ChunkSizes(16 * 1024, 64 * 1024, 256 * 1024)
"""Headers, functional groups, documents inside DICOM: often changed in a few bytes."""
METADATA_BYTES_MIN = 256 * 1024
"""Up to here such a run stays one piece."""

WINDOW_BYTES = 32 * _MIB
"""Looked at in one go; the only memory a file of any size needs here."""


def chunks(source: Source, start: int, stop: int, kind: PieceKind, sizes: ChunkSizes) -> Iterator[Cut]:
    """Cuts that cover start..stop exactly, each at most `sizes.bytes_max` (≤ PIECE_BYTES_MAX) bytes."""
    at = start
    while at < stop:
        window = source.read(at, min(WINDOW_BYTES, stop - at))
        last = at + len(window) == stop
        # The chunk at the window's end was ended by the window, not by its bytes: cut it again in the next one.
        safe = at + len(window) - (0 if last else sizes.bytes_max)
        for chunk in fastcdc(window, sizes.bytes_min, sizes.bytes_average, sizes.bytes_max):
            yield Cut(at, chunk.length, kind)
            at += chunk.length
            if at > safe and not last:
                break
