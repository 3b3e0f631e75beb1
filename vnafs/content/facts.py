"""What is known of a DICOM object for queries: a plain value.

Apart from `dicom`, which fills it, so that whoever only carries facts does not load pydicom (a second of start-up
and tens of megabytes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Keyword (PS3.6) to text; several values stay joined by backslashes, as DICOM writes them."""

    attributes: Mapping[str, str]

    @property
    def study(self) -> str:
        """StudyInstanceUID, or empty."""
        return self.attributes.get("StudyInstanceUID", "")

    @property
    def series(self) -> str:
        """SeriesInstanceUID, or empty."""
        return self.attributes.get("SeriesInstanceUID", "")

    @property
    def instance(self) -> str:
        """SOPInstanceUID, or empty."""
        return self.attributes.get("SOPInstanceUID", "")
