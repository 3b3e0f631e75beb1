"""Where to cut a content into pieces, and what it is. Stages use what is exported here."""

from vnafs.content.splitters.choose import Examined, ExaminedFile, examine, examine_file, split

__all__ = ["Examined", "ExaminedFile", "examine", "examine_file", "split"]
