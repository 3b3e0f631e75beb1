"""How the command line shows things: tables and bars on a terminal, one JSON document with --json."""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vnafs.domain.errors import InvalidArgument

Advance = Callable[[int, int | None, str], None]
"""Shows how far work is: done, total (None while unknown), and what it waits for."""


class Console:
    """Where a command's answers go."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._error = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def result(self, value: Mapping[str, Any] | Sequence[Any], show: Callable[[], None] | None = None) -> None:
        """A command's answer: *value* as JSON, or whatever *show* prints."""
        if self._as_json:
            sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        elif show is not None:
            show()

    def say(self, text: str) -> None:
        """A line for people; nothing with --json."""
        if not self._as_json:
            self._out.print(text, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows for people."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        self._out.print(table, markup=False)

    def asker(self) -> Callable[[str], str] | None:
        """Asks the person at the terminal for a line; None where nobody is there."""
        if self._as_json or not (sys.stdin.isatty() and self._error.is_terminal):
            return None
        return self._ask

    def _ask(self, question: str) -> str:
        self._error.print(question, end="", markup=False)
        return sys.stdin.readline()

    def password(self, question: str, *, is_new: bool = False) -> str:
        """Asked at the terminal, where it is not shown; elsewhere the first line of standard input.

        A new one is asked for twice at the terminal. Raises InvalidArgument when the two differ.
        """
        if not sys.stdin.isatty():
            return sys.stdin.readline().rstrip("\r\n")
        text = getpass.getpass(question)
        if is_new and getpass.getpass("Once more: ") != text:
            raise InvalidArgument(why="The two passwords differ; nothing was changed")
        return text

    def problem(self, code: str, message: str, exit_code: int) -> None:
        """Why a command failed, on standard error."""
        if self._as_json:
            sys.stdout.write(json.dumps({"error": {"code": code, "message": message, "exit_code": exit_code}}) + "\n")
        else:
            self._error.print(f"vna: {printable(message)}", markup=False)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """A bar on a terminal; silence elsewhere."""
        if self._as_json or not self._error.is_terminal:
            yield _silent
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._error, transient=True) as bars:
            task = bars.add_task(what, total=None)

            def advance(done: int, total: int | None, waits: str) -> None:
                bars.update(task, completed=done, total=total, description=f"{what} {waits}".strip())

            yield advance


def _silent(_: int, __: int | None, ___: str) -> None:
    """Nobody watches."""


def printable(text: str) -> str:
    """Odd bytes of file names as escapes, so that a terminal shows a name and obeys none."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(seconds: float) -> str:
    """A time span for people."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
