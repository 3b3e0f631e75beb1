"""One look at a content: where to cut it and what it is.

The door that stages use: one walk serves cuts and DICOM facts. It refuses to know files' names, packs and
codecs. Any input gives cuts that are contiguous, cover it exactly and are at most PIECE_BYTES_MAX each; whatever
is odd falls back to simpler cuts and says why. Pure; any thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vnafs.content import dicom, elements
from vnafs.content.facts import Facts
from vnafs.content.source import Buffer, FileSource, MemorySource, Source
from vnafs.content.splitters import dicom as dicom_splitter
from vnafs.content.splitters import whole
from vnafs.content.splitters.runs import Run, lay
from vnafs.domain.recipes import Cut

_WANTED = dicom.NEEDED | dicom_splitter.NEEDED
SPLIT_BYTES_MIN = 8 * 1024
"""Below, pieces would be too small to be looked for (PIECE_LOOKUP_BYTES_MIN): the content stays one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Examined:
    """What one look at a content in memory found."""

    cuts: list[Cut]
    """From 0 to the end; empty for an empty content."""
    facts: Facts | None
    """None when it is not DICOM or its header cannot be trusted."""
    why_not: str
    """What kept it from being cut or described in full as DICOM; empty when nothing did. Holds no values."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExaminedFile:
    """What one look at a file found; as Examined, but its cuts come one by one."""

    cuts: Iterator[Cut]
    """To be used once, while the file is open. Reads at most 32 MiB ahead of what it yields."""
    facts: Facts | None
    why_not: str


def examine(data: Buffer) -> Examined:
    """Look at a content that is in memory: the fast way for the usual half megabyte."""
    source = MemorySource(data)
    plan, facts, why_not = _look(source)
    return Examined(list(lay(source, plan)), facts, why_not)


def examine_file(descriptor: int, size_bytes: int) -> ExaminedFile:
    """Look at an open file of any size in bounded memory.

    This and the iterator raise NotYet when the file turns out shorter than *size_bytes*, StorageFailed when the
    disk fails. Gives the same cuts as `examine`.
    """
    source = FileSource(descriptor, size_bytes)
    plan, facts, why_not = _look(source)
    return ExaminedFile(lay(source, plan), facts, why_not)


def split(data: Buffer) -> list[Cut]:
    """Only the cuts of `examine`."""
    return examine(data).cuts


def _look(source: Source) -> tuple[list[Run], Facts | None, str]:
    size = source.size_bytes
    walked = elements.walk(source, _WANTED)
    if walked.broken:
        return whole.plan(size), None, walked.broken
    facts, complaint = dicom.facts_of(walked)
    if walked.deflated or size < SPLIT_BYTES_MIN:
        return whole.plan(size), facts, complaint
    plan, why = dicom_splitter.plan(source, walked)
    return plan, facts, "; ".join(filter(None, (why, complaint)))
