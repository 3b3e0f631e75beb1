"""How this room has commands run: what it asks for, and what it gets back. Runs none itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from vnafs.domain.errors import Refused

SECRET = "{secret}"  # noqa: S105 - it stands for one
"""Among a command's words: the name of a file with the secret, which lies in memory and goes with the command."""
PACKAGES = "apt-get install samba winbind libnss-winbind smbclient"


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """A command that came to its end."""

    code: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """The last thing that it said, for a message."""
        lines = [line.strip() for line in f"{self.output}\n{self.errors}".splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with {self.code} and said nothing"


class Run(Protocol):
    """Runs a command."""

    def __call__(self, words: Sequence[str], *, text: str = "", secret: str = "") -> Ran:
        """To its end; *text* is its standard input. Raises Refused when it cannot run or does not end."""
        ...


def must(run: Run, words: Sequence[str], what: str, *, text: str = "", secret: str = "") -> None:
    """Run one that succeeds. Raises Refused: *what* went wrong, with what it said."""
    ran = run(words, text=text, secret=secret)
    if ran.code:
        raise Refused(what=what, why=ran.reason)
