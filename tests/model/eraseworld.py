"""An archive in which files are erased for good: see `collectworld`."""

from __future__ import annotations

from tests.model.collectworld import Collecting
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.fs.erasure import LEFT_SECONDS, Wanted
from vnafs.index import erasing
from vnafs.index.erasing import Erasing, There
from vnafs.local.traces import Traces
from vnafs.upkeep.erase import Eraser
from vnafs.upkeep.pending import Pending, pending


class Erases(Collecting):
    """Manifests are trimmed when that is asked for, unless a test says no."""

    trims = True

    def begin(self) -> None:
        super().begin()
        self._trim_now = self.manifests.trim_now
        self.manifests.trim_now = self._trim  # type: ignore[method-assign]
        self.eraser = Eraser(
            self._store,
            self._namespace,
            shelf=self.tiering.shelf,
            traces=Traces(
                self.fs.local_path,
                [str(self.home / name) for name in ("staging", "frozen", "spool/quarantine")],
            ),
            quarantine=self.tiering.quarantine,
            places=self.tiering.replicators,
            manifests=self.manifests,
            recorded_to=self._recorded_to,
            under_way=self.tiering.packer.has,
            fold=self.fs.fold,
            kick=self.collector.wake,
            gone=self.tiering.contents_gone,
            clock=self.clock,
            faults=self.fate,
            fatal=_raise,
        )

    def _recorded_to(self) -> tuple[int, int]:
        here = self.manifests.ledger.position()
        return here.namespace_cursor, here.number

    def _trim(self) -> None:
        if self.trims:
            self._trim_now()

    # -- erasing -------------------------------------------------------------------------------------------------

    def wanted(self, *names: bytes) -> list[Wanted]:
        found: dict[Inode, list[tuple[Inode, bytes]]] = {}
        for name in names:
            found.setdefault(self.inode(name), []).append((self.share, name))
        return [Wanted(inode, tuple(those)) for inode, those in found.items()]

    def erase(self, *names: bytes, past: tuple[Inode, ...] = ()) -> int:
        """Out of the tree; what follows takes its time."""
        number = self.fs.erasures.begin(RepositoryId(self.share), "asked for").number
        wanted = [*self.wanted(*names), *map(Wanted, past)]
        assert self.fs.erasures.add(number, wanted) == [()] * len(wanted)
        self.fs.erasures.finish(number)
        self.expire()
        return number

    def collect(self, seconds: float = LEFT_SECONDS) -> None:
        """Let so much time pass, with everything that goes on in it."""
        passed = 0.0
        while passed < seconds:
            super().collect(1)
            self.fs.reap()
            self.eraser.step()
            passed += 61

    def erasing(self, number: int) -> Erasing:
        with self.reading() as reader:
            return erasing.get(reader, number)

    def there(self, number: int) -> dict[int, There]:
        with self.reading() as reader:
            return erasing.there(reader, number)

    def pending(self) -> Pending | None:
        return pending(self._namespace, self._store)

    def until_complete(self, number: int, seconds_max: float = 20_000.0) -> None:
        """Let time pass until an erasure is proven everywhere."""
        passed = 0.0
        while not self.erasing(number).completed:
            assert passed < seconds_max, self.eraser.standing(number)
            self.collect(300)
            passed += 300

    def has_bytes(self, marker: bytes) -> list[str]:
        """Where in the archive's folder or on its targets some bytes are."""
        found = [
            str(path.relative_to(self.home))
            for path in self.home.rglob("*")
            if path.is_file() and marker in path.read_bytes()
        ]
        for target, store in self.stores.items():
            found += [f"{target}:{name}" for name in store.list() if marker in b"".join(store.get(name))]
        return found


def _raise(problem: BaseException) -> None:
    raise problem
