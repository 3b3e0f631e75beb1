"""What every command has in hand: the archive's configuration, its daemons, and where answers go."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from appliance.cli.console import Console
from appliance.config import Configuration
from appliance.control.client import ControlClient
from vnafs.domain.errors import InvalidArgument, NotFound


@dataclasses.dataclass(frozen=True, slots=True)
class Asking:
    """One invocation's surroundings."""

    console: Console
    configuration: Configuration
    environ: Mapping[str, str]
    on_behalf_of: int | None = None
    """The user who had it done with sudo, as the environment claims."""

    def mount(self) -> ControlClient:
        """The mount daemon."""
        return self._client("mount")

    def tierd(self) -> ControlClient:
        """The tiering daemon; verification of everything may take hours, so it never times out."""
        return self._client("tierd")

    def _client(self, name: str) -> ControlClient:
        path = os.path.join(self.configuration.folder("run"), f"{name}.sock")
        return ControlClient(path, name, timeout_seconds=None, on_behalf_of=self.on_behalf_of)

    def inodes(self, paths: Sequence[str]) -> dict[int, str]:
        """Inode to path of every regular file at or below *paths*, which lie in the mount. Raises NotFound."""
        found: dict[int, str] = {}
        device = self._device()
        for path in paths:
            for file in _files(path):
                status = os.lstat(file)
                if status.st_dev != device:
                    raise InvalidArgument(why=f"{path} is not below the mount {self.configuration.mount}")
                found.setdefault(status.st_ino, file)
        return found

    def below_mount(self, path: str) -> str:
        """A path as the tree knows it, with its repository first; what it leads to need not be there any more.

        Raises InvalidArgument when it lies elsewhere.
        """
        whole = os.path.abspath(path)
        for root in (os.path.abspath(self.configuration.mount), os.path.realpath(self.configuration.mount)):
            for candidate in (whole, os.path.realpath(whole)):
                if candidate.startswith(f"{root}/"):
                    return candidate[len(root) + 1 :]
        raise InvalidArgument(why=f"{path} is not below the mount {self.configuration.mount}")

    def _device(self) -> int:
        mount = self.configuration.mount
        if not os.path.ismount(mount):
            raise NotFound(what=f"A mount at {mount}")
        return os.stat(mount).st_dev


def _files(path: str) -> Iterator[str]:
    if not os.path.lexists(path):
        raise NotFound(what=path)
    if not os.path.isdir(path) or os.path.islink(path):
        if os.path.isfile(path) and not os.path.islink(path):
            yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if not os.path.islink(file) and os.path.isfile(file):
                yield file
