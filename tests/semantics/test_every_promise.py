"""Every numbered promise has a test that bears its number, and every such test has its promise."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "SEMANTICS.md"


def _promised() -> list[int]:
    return [int(number) for number in re.findall(r"^- \*\*P-(\d+)\*\*", DOCUMENT.read_text(), re.MULTILINE)]


def _tested() -> set[int]:
    found: set[int] = set()
    for path in HERE.glob("test_promises_*.py"):
        found |= {int(number) for number in re.findall(r"^def test_p(\d+)_", path.read_text(), re.MULTILINE)}
    return found


def test_promises_are_numbered_from_one_without_gaps() -> None:
    assert _promised() == list(range(1, len(_promised()) + 1))


def test_every_promise_has_a_test() -> None:
    assert sorted(set(_promised()) - _tested()) == []


def test_every_numbered_test_has_its_promise() -> None:
    assert sorted(_tested() - set(_promised())) == []
