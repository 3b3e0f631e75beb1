"""Whether a file's local bytes may go. A pure decision: `vna evict`, the eviction stage and the UI all ask here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vnafs.domain.copies import Copy
from vnafs.domain.files import FileFacts, FileState
from vnafs.domain.repositories import Repository


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Yes, or no with the reason that an administrator would want to read."""

    yes: bool
    why: str


OPEN = Decision(yes=False, why="somebody has it open")
YES = Decision(yes=True, why="")


def may_evict(file: FileFacts, repository: Repository, copies: Sequence[Copy]) -> Decision:
    """Local bytes may go once enough targets hold a verified copy and nobody has the file open."""
    if file.state is FileState.STUB:
        return Decision(yes=False, why="its bytes are only on targets already")
    if len(copies) < max(1, repository.copies_min):
        held = ", ".join(copy.target for copy in copies) or "none"
        return Decision(
            yes=False,
            why=f"{repository.copies_min} verified copies are asked for and there are {len(copies)} ({held}); "
            f"it is {file.state.label}",
        )
    if file.state is not FileState.REPLICATED:
        return Decision(yes=False, why=f"it is {file.state.label}, not yet replicated")
    if file.handles_open:
        return OPEN
    return YES
