"""The README's tour, run as it is written: each command succeeds and says what is printed there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from tests.system.archives import ROOT, Archive

pytestmark = pytest.mark.system


def tour():
    """(command, the lines it prints), in order."""
    steps = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def as_pattern(line):
    """`…` stands for anything, and any white space for any other."""
    return r"\s+".join(r".*" if word == "…" else r".*".join(map(re.escape, word.split("…"))) for word in line.split())


def test_the_tour_prints_what_the_readme_shows(tmp_path):
    steps = tour()
    assert len(steps) >= 12
    venv = tmp_path / ".venv"
    (venv / "lib/python3/site-packages/pydicom/data").mkdir(parents=True)
    data = Path(pydicom.__file__).parent / "data/test_files"
    shutil.copytree(data, venv / "lib/python3/site-packages/pydicom/data/test_files")
    os.symlink(Path(sys.executable).parent, venv / "bin")
    archive = Archive(tmp_path, {"local": f"file://{tmp_path}/demo/target"}, {}, "")
    archive.archive, archive.mount = tmp_path / "demo/archive", tmp_path / "demo/share"
    archive._environ["VNA_ARCHIVE"] = str(archive.archive)
    archive.init()
    try:
        archive.start("serve")
        script = ["set -eu"]
        for number, (command, _) in enumerate(steps):
            script += [f"echo '@@{number}'", command]
        environ = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + archive.tail()
    finally:
        archive.stop()
    said = dict(re.findall(r"@@(\d+)\n(.*?)(?=@@|\Z)", done.stdout, re.DOTALL))
    for number, (command, expected) in enumerate(steps):
        lines = [line.rstrip() for line in said[str(number)].splitlines() if line.strip()]
        assert len(lines) == len(expected), (command, lines)
        for line, wanted in zip(lines, expected, strict=True):
            assert re.fullmatch(as_pattern(wanted), line.strip()), (command, line, wanted)
