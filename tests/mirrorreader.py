"""A plain mirror read as README describes it, with nothing of ours: what another program would do."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

FOLDER = ".vna-metadata.jsonl"


def rebuilt(objects: Mapping[str, bytes]) -> dict[bytes, dict[str, Any]]:
    """The tree by path: type, bytes, attributes. Fails over anything that is not as README says."""
    tree: dict[bytes, dict[str, Any]] = {}
    used = set()
    for name, data in objects.items():
        leaf = name.rpartition("/")[2]
        if not (leaf == FOLDER or (name.startswith(".vna-long/") and name.endswith(".jsonl"))):
            continue
        used.add(name)
        first, *rest = [json.loads(line) for line in data.decode().splitlines()]
        assert first.pop("vnafs_mirror") == 1
        folder = unquote_to_bytes(first.pop("path"))
        tree.setdefault(folder, {})["own"] = first
        for line in (first, *rest):
            if "xattrs" in line:
                line["xattrs"] = {
                    unquote_to_bytes(key): base64.b64decode(value) for key, value in line["xattrs"].items()
                }
        for line in rest:
            path = b"/".join(filter(None, (folder, unquote_to_bytes(line.pop("name")))))
            found = tree.setdefault(path, {})
            if "object" in line:
                held = line.pop("object")
                used.add(held)
                assert len(objects[held]) == line["size"]
                assert hashlib.sha256(objects[held]).hexdigest() == line["sha256"]
                found["bytes"] = objects[held]
                if not held.startswith(".vna-long/"):  # a name can be read without metadata
                    assert unquote_to_bytes(held) == path
            if "target" in line:
                line["target"] = unquote_to_bytes(line["target"])
            found |= line
    assert set(objects) == used, f"nothing tells of {sorted(set(objects) - used)[:5]}"
    return tree
