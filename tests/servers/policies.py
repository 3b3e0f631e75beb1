"""The bucket policy of README, for a bucket and a user of a test: what is shown there is what is tried."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def daily_policy(bucket: str, user: str) -> str:
    """What the daily credential may do, and what it may not."""
    found = re.search(r"```json\n(\{.*?\n\})\n```", README.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1).replace("BUCKET", bucket).replace("DAILY", f"arn:aws:iam:::user/{user}")
