"""The house's import rules, as tests: which room may use which, and where each foreign library may appear."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EXTRACTOR = "vnafs/extract/vna_extract.py"
"""A program of its own, which runs without the rest."""

ONLY_IN = {
    "pyfuse3": ("vnafs/fuse/",),
    "trio": ("vnafs/fuse/", "appliance/daemons/mount.py"),
    "boto3": ("vnafs/targets/s3", EXTRACTOR),
    "botocore": ("vnafs/targets/s3", EXTRACTOR),
    "azure": ("vnafs/targets/azure", EXTRACTOR),
    "pydicom": ("vnafs/content/",),
    "lmdb": ("vnafs/index/engines/",),
    "numpy": ("vnafs/content/codecs.py", "vnafs/content/rasters.py", EXTRACTOR),
    "imagecodecs": ("vnafs/content/rasters.py", EXTRACTOR),
    "zstandard": ("vnafs/content/", EXTRACTOR),
    "fastcdc": ("vnafs/content/splitters/",),
    "rich": ("appliance/cli/",),
    "tomlkit": ("appliance/cli/",),
    "rfc3161_client": ("vnafs/receipts/timestamps.py",),
    "subprocess": ("vnafs/fuse/stale.py", "appliance/daemons/supervisor.py"),
}


def sources():
    return [p for folder in ("vnafs", "appliance") for p in sorted((ROOT / folder).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_imports_run_downward():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_foreign_library_appears_only_where_it_belongs(library):
    strangers = [
        str(path.relative_to(ROOT))
        for path in sources()
        if library in imported(path) and not str(path.relative_to(ROOT)).startswith(ONLY_IN[library])
    ]
    assert strangers == []


def test_the_extractor_imports_nothing_of_ours():
    assert {"vnafs", "appliance", "tests"}.isdisjoint(imported(ROOT / EXTRACTOR))


def test_every_rule_still_guards_something():
    used = {library for path in sources() for library in imported(path)}
    assert set(ONLY_IN) <= used


def test_only_entry_points_read_the_environment():
    allowed = {"appliance/cli/main.py", EXTRACTOR}
    readers = [
        str(path.relative_to(ROOT))
        for path in sources()
        if any(
            isinstance(node, ast.Attribute)
            and node.attr in {"environ", "getenv"}
            and getattr(node.value, "id", "") == "os"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert set(readers) <= allowed


def test_no_module_is_named_for_nothing():
    vague = {"utils", "common", "helpers", "manager", "misc", "util", "core_utils"}
    assert [p for p in sources() if p.stem in vague] == []
