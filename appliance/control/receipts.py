"""What tierd answers about receipts: how files stand, and signed receipts of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Method
from vnafs.upkeep.issue import Issuer

NAMES_SECONDS_MAX = 30.0
"""Waited for manifests, however long was asked for: the daemon must be able to end."""


def receipt_methods(issuer: Issuer) -> list[Method]:
    """Their declarations."""

    def standing(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        found = issuer.custodian.look(_paths(params))
        if found.waits_for_names:  # as long as copies are missing nobody needs manifests in a hurry
            found = issuer.custodian.look(_paths(params), names_seconds_max=_seconds(params))
        return {"files": len(found.files), "not_safe": found.not_safe, "why": found.why}

    def issue(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        issued = issuer.issue(_paths(params), names_seconds_max=_seconds(params))
        return {
            "receipt": issued.envelope,
            "key_is_new": issued.key_is_new,
            "no_timestamp": issued.no_timestamp,
        }

    return [
        Method("receipt.standing", standing, role="viewer"),
        Method("receipt.issue", issue, audit="receipt:files:vouched"),
    ]


def _paths(params: Mapping[str, Any]) -> list[bytes]:
    return [wire.name(path) for path in params["paths"]]


def _seconds(params: Mapping[str, Any]) -> float:
    return min(NAMES_SECONDS_MAX, float(params.get("seconds_max", 0.0)))
