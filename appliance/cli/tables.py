"""Tables of vnafs.toml that commands add and remove: `[[target]]` and `[[mirror]]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import AoT

from appliance import config
from appliance.cli.archives import write
from appliance.cli.asking import Asking
from vnafs.domain.errors import DaemonUnreachable


def add(asking: Asking, kind: str, values: Mapping[str, Any]) -> None:
    """Append one; a running tierd follows. Raises ConfigurationInvalid."""
    document = _read(asking)
    existing = document.get(kind)
    if not isinstance(existing, AoT):
        existing = tomlkit.aot()
        document[kind] = existing
    existing.append(_table(values))
    _replace(asking, kind, document)


def remove(asking: Asking, kind: str, name: str) -> bool:
    """Leave out the one of that name, which is there; whether tierd follows already."""
    document = _read(asking)
    kept = tomlkit.aot()
    for values in document[kind].unwrap():
        if values["name"] != name:
            kept.append(_table(values))
    del document[kind]
    if kept:
        document.add(kind, kept)
    return _replace(asking, kind, document)


def _table(values: Mapping[str, Any]) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.update(values)
    return table


def _read(asking: Asking) -> tomlkit.TOMLDocument:
    with open(asking.configuration.file, encoding="utf-8") as stream:
        return tomlkit.load(stream)


def _replace(asking: Asking, kind: str, document: tomlkit.TOMLDocument) -> bool:
    configuration = asking.configuration
    config.parse(document.unwrap(), archive=configuration.archive, file=configuration.file)
    write(configuration.file, document)
    try:
        asking.tierd().call(f"{kind}s.reload")
    except DaemonUnreachable:
        asking.console.say("tierd is not running; it follows when it starts.")
        return False
    return True
