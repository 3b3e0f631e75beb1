"""Which targets hold a content: the answer every door gives, from rows alone and in any process that can read them."""

from __future__ import annotations

from vnafs.domain.copies import Copy
from vnafs.domain.ids import RepositoryId, Sha256
from vnafs.index import contents, copies, targets
from vnafs.index.engine import Engine


def copies_of_content(store: Engine, sha256: Sha256, repository: RepositoryId) -> list[Copy]:
    """Targets that hold every byte of a content verified, from any process that can read the store."""
    with store.read() as reader:
        content = contents.find(reader, sha256, repository)
        if content is None:
            return []
        current = targets.current(reader)
        held = copies.verified_on(reader, content.packs())
        return [Copy(current[number].name, when) for number, when in sorted(held.items()) if number in current]
