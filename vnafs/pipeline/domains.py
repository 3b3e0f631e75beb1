"""What may share a pack, and the packs of it that are being filled or wait to be recorded. Memory only.

A domain is one repository and retention class. Everything in it is guarded by its lock, which is held only to look
up and to append: never while a disk syncs or somebody waits.
"""

from __future__ import annotations

import collections
import dataclasses
import threading

from vnafs.content import packfile
from vnafs.content.bases import Bases
from vnafs.domain.files import Seal
from vnafs.domain.ids import Inode, PackId, PackNumber, Sha256, Span, Version
from vnafs.domain.recipes import PieceRef, Recipe
from vnafs.domain.repositories import Repository


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One version that is, or will be, some content."""

    inode: Inode
    version: Version
    seal: Seal


@dataclasses.dataclass(slots=True)
class Pending:
    """A content in a pack that is not recorded yet."""

    recipe: Recipe
    span: Span
    leans_on: tuple[PackNumber, ...]
    files: list[File]


class FilledPack:
    """A pack while it is filled, and until its rows are written."""

    def __init__(self, number: PackNumber, writer: packfile.PackWriter, began: float) -> None:
        self.number = number
        self.writer = writer
        self.began = began
        self.contents: dict[Sha256, Pending] = {}
        self.pieces: dict[Sha256, PieceRef] = {}
        self.bases = Bases()


class Domain:
    """One repository and retention class: what may share a pack. See the module."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.lock = threading.Lock()
        self.open: FilledPack | None = None
        self.closing: collections.OrderedDict[PackId, FilledPack] = collections.OrderedDict()
