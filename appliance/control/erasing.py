"""What tierd answers about erasures: what is left of one, and a signed certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control.erasure import number_of, shown
from appliance.control.server import Method
from vnafs.upkeep.certify import Certifier


def erasing_methods(certifier: Certifier) -> list[Method]:
    """Their declarations."""

    def status(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        certifier.eraser.hurry()
        erasure, row, found = certifier.eraser.standing(number_of(params["id"]))
        return {
            "packs_left": 0,
            "local_left": 0,
            "waits": False,
            **found,
            **shown(erasure),
            "completed_ns": row.completed,
        }

    def certify(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        issued = certifier.certify(number_of(params["id"]))
        return {
            "certificate": issued.envelope,
            "key_is_new": issued.key_is_new,
            "no_timestamp": issued.no_timestamp,
        }

    return [
        Method("erase.status", status, role="viewer"),
        Method("erase.certify", certify, role="administrator", audit="erasure:files:certified"),
    ]
