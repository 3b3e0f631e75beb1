"""Tables of vnafs.toml that commands add and remove: `[[target]]`, `[[mirror]]` and `[[share]]`; and `[domain]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import AoT

from appliance import config
from appliance.cli.archives import write
from appliance.cli.asking import Asking
from appliance.config import Configuration
from vnafs.domain.errors import DaemonUnreachable

FOLLOWED = frozenset({"target", "mirror"})
"""By tierd, at once."""


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


def put(asking: Asking, name: str, values: Mapping[str, Any]) -> None:
    """Set keys of a table that there is once, such as `[domain]`. Raises ConfigurationInvalid."""
    _replace(asking, name, _updated(asking, name, values))


def with_keys(asking: Asking, name: str, values: Mapping[str, Any]) -> Configuration:
    """What `put` would make of the configuration; writes nothing. Raises ConfigurationInvalid."""
    return _parsed(asking, _updated(asking, name, values))


def set_key(asking: Asking, kind: str, name: str, key: str, value: str) -> None:
    """Of the one of that name, which is there; an empty *value* leaves the key out. Raises ConfigurationInvalid."""
    document = _read(asking)
    for table in document[kind]:
        if table["name"] == name:
            table.pop(key, None)
            if value:
                table[key] = value
    _replace(asking, kind, document)


def _updated(asking: Asking, name: str, values: Mapping[str, Any]) -> tomlkit.TOMLDocument:
    document = _read(asking)
    if name not in document:
        document[name] = tomlkit.table()
    document[name].update(values)
    return document


def _table(values: Mapping[str, Any]) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.update(values)
    return table


def _read(asking: Asking) -> tomlkit.TOMLDocument:
    with open(asking.configuration.file, encoding="utf-8") as stream:
        return tomlkit.load(stream)


def _parsed(asking: Asking, document: tomlkit.TOMLDocument) -> Configuration:
    configuration = asking.configuration
    return config.parse(document.unwrap(), archive=configuration.archive, file=configuration.file)


def _replace(asking: Asking, kind: str, document: tomlkit.TOMLDocument) -> bool:
    _parsed(asking, document)
    write(asking.configuration.file, document)
    if kind not in FOLLOWED:
        return False
    try:
        asking.tierd().call(f"{kind}s.reload")
    except DaemonUnreachable:
        asking.console.say("tierd is not running; it follows when it starts.")
        return False
    return True
