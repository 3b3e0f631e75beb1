"""How a splitter says where to cut, and the one place where that becomes cuts.

A splitter plans runs: neighbouring stretches of a content, each with one way of cutting. Laying the runs gives
cuts that are contiguous, cover the content exactly and are at most PIECE_BYTES_MAX bytes, whatever the plan
says; it reads just ahead of what it yields and only where content-defined cuts are wanted. Pure; any thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from vnafs.content.source import Source
from vnafs.content.splitters.chunks import ChunkSizes, chunks
from vnafs.domain.recipes import PIECE_BYTES_MAX, Cut, PieceKind, Raster


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """From where the run before ended up to *stop*."""

    stop: int
    kind: PieceKind
    sizes: ChunkSizes | None = None
    """Cut by content with these limits; None cuts only where a piece would be too large."""
    starts: Iterable[int] = ()
    """Ascending offsets where a cut is welcome, as long as no piece gets smaller than *group_bytes_min*."""
    group_bytes_min: int = 1
    raster: Raster | None = None
    """How samples lie in it, for whoever encodes its pieces."""


def lay(source: Source, plan: Iterable[Run]) -> Iterator[Cut]:
    """Cuts that cover *source*. A run that would go back or past the end is cut short."""
    size = source.size_bytes
    at = 0
    for run in plan:
        stop = min(run.stop, size)
        if run.sizes is not None and at < stop:
            yield from chunks(source, at, stop, run.kind, run.sizes)
            at = stop
            continue
        for start in run.starts:
            if at + run.group_bytes_min <= start < stop:
                yield from _even(at, start, run.kind, run.raster)
                at = start
        yield from _even(at, stop, run.kind, run.raster)
        at = max(at, stop)
    yield from _even(at, size, PieceKind.BYTES)


def _even(start: int, stop: int, kind: PieceKind, raster: Raster | None = None) -> Iterator[Cut]:
    for at in range(start, stop, PIECE_BYTES_MAX):
        yield Cut(at, min(PIECE_BYTES_MAX, stop - at), kind, raster)
