"""The top of the repository: folders that are the architecture, the usual files, and nothing that a run left there."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"appliance", "packer", "ansible", "vnafs", "webui", "tests", "ova", ".ci"}
FILES = {
    *("README.md", "CHANGELOG.md", "FORMAT.md", "SEMANTICS.md", "LICENSE"),
    *("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock", ".gitignore"),
}


def test_the_top_holds_what_belongs_there_and_nothing_else() -> None:
    words = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(words, capture_output=True, check=True, cwd=ROOT).stdout.split(b"\0")
    top = {path.partition(b"/")[0].decode() for path in listed if path}
    assert top - FOLDERS - FILES == set()
    assert {"README.md", "vnafs", "tests"} <= top


def test_no_two_test_files_have_one_name() -> None:
    """Pytest takes the second for the first, and leaves it out."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
