"""What tierd answers about plain mirrors. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.control.server import Method
from vnafs.domain.ids import TargetName
from vnafs.upkeep.mirrors import Mirrors


def mirror_methods(mirrors: Mirrors, *, reload: Callable[[], None]) -> list[Method]:
    """Their declarations. *reload* follows the configuration file as it is now."""

    def status(_: Mapping[str, Any], __: object) -> list[dict[str, Any]]:
        return mirrors.status()

    def test(params: Mapping[str, Any], _: object) -> None:
        mirrors.test(TargetName(params["name"]))

    def follow(_: Mapping[str, Any], __: object) -> None:
        reload()

    def forget(params: Mapping[str, Any], _: object) -> None:
        mirrors.forget(TargetName(params["name"]))

    return [
        Method("mirrors.status", status, role="viewer"),
        Method("mirrors.test", test, role="administrator", audit="mirrors:mirror:tested"),
        Method("mirrors.reload", follow, role="administrator", audit="mirrors:configuration:reloaded"),
        Method("mirrors.forget", forget, role="administrator", audit="mirrors:mirror:forgotten"),
    ]
