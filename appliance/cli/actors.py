"""Who did something, for people; claims are called claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def said(who: Mapping[str, Any] | None) -> str:
    """`root (0), claims to act for jane (1000)`, `1001 through the mount`, `the system`; empty where nobody knows."""
    door = "unknown" if who is None else who["by"]
    if who is None or door == "unknown":
        return ""
    if door == "system":
        return "the system"
    text = _user(who) + (" through the mount" if door == "mount" else "")
    claim = who.get("on_behalf_of")
    return text if claim is None else f"{text}, claims to act for {_user(claim)}"


def _user(user: Mapping[str, Any]) -> str:
    return f"{user['login']} ({user['uid']})" if user.get("login") else str(user["uid"])
