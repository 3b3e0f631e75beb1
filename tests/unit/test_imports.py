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
    "subprocess": (
        "vnafs/fuse/stale.py",
        "vnafs/fuse/kernel/herald.py",
        "appliance/daemons/supervisor.py",
        "appliance/system.py",
    ),
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
    allowed = {"appliance/cli/main.py", "appliance/cli/daemons.py", EXTRACTOR}
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


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def needed_first(path, known):
    """The modules of ours that are loaded while this one is."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in below if name in known)
            if node.module in known and not all(name in known for name in below):
                yield node.module


def test_every_module_can_be_the_first_that_is_loaded():
    known = {module_of(path): path for path in sources()}
    needs = {name: set(needed_first(path, known)) - {name} for name, path in known.items()}
    while ready := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in ready:
            del needs[name]
    assert needs == {}, "they need each other"
