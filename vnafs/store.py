"""The composition root: an archive's folders become engines, a tree or tiering. Nothing else knows all the parts.

An archive is one folder:

    vnafs.toml   namespace/   names, states          (sole writer: mount)
    spool/       local bytes of files                (sole writer: mount)
    store/       contents, packs, copies             (sole writer: tierd)
    packs/       packs being built or waiting        (sole writer: tierd)
    staging/     recalled bytes, until mount takes them
    cache/       packs fetched ahead
    frozen/      copies of files that stay open, while they are packed (sole writer: tierd)
    manifests/   what rebuilds this index, as it is on every target (sole writer: tierd)
    quarantine/  damaged bytes, as they were before they were replaced (sole writer: tierd)
    keys/        the keyring of an encrypted archive (sole writer: tierd) and the secret that opens it; of any other
                 the key that signs receipts
    mirrors/     what is known of each plain mirror (sole writer: tierd)
    run/         control sockets, and what is being encoded should that kill tierd
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vnafs.domain.clock import BootClock, Clock
from vnafs.domain.errors import IndexBroken, KeyMissing, KeyWrong, NotYet
from vnafs.domain.faults import Faults
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.settings import Settings
from vnafs.fs.takeover import NOTHING_OPEN, OpenBefore
from vnafs.fs.xattrs import CopiesOf
from vnafs.index import entries, keys, meta, recount, repositories, signers
from vnafs.index.engine import Engine
from vnafs.index.engines.environment import OwnerLock
from vnafs.index.engines.lmdb import LmdbEngine
from vnafs.index.engines.log import LogSettings
from vnafs.index.migrations import Migration, migrate
from vnafs.index.signers import Signer
from vnafs.local import keyfile
from vnafs.local.spool import Spool
from vnafs.pipeline.tree import Tree

if TYPE_CHECKING:
    from vnafs.content.keyring import Unlocked
    from vnafs.pipeline.keys import Keys
    from vnafs.pipeline.runner import Tiering
    from vnafs.pipeline.settings import TieringSettings
    from vnafs.receipts.timestamps import TimestampService
    from vnafs.upkeep.certify import Certifier
    from vnafs.upkeep.collect import Collector, CollectSettings
    from vnafs.upkeep.erase import Eraser
    from vnafs.upkeep.issue import Issuer
    from vnafs.upkeep.manifests import Manifests
    from vnafs.upkeep.mirrors import Mirrors
    from vnafs.upkeep.renewal import Renewal
    from vnafs.upkeep.scrub import Scrub, ScrubSettings
    from vnafs.upkeep.signing import Signing

DRILL = "drill-"
FOLDERS = (
    "namespace",
    "spool",
    "store",
    "packs",
    "staging",
    "cache",
    "frozen",
    "quarantine",
    "manifests",
    "keys",
    "mirrors",
    "run",
)


def _schema_1(_: object) -> bool:
    """The first schema needs nothing moved."""
    return True


NAMESPACE_MIGRATIONS = (
    Migration(1, "first", _schema_1),
    Migration(2, "use of repositories", recount.count_used),
    Migration(3, "folded names", entries.fold_names),
)
MIRROR_MIGRATIONS = (Migration(1, "first", _schema_1),)
STORE_MIGRATIONS = (
    Migration(1, "first", _schema_1),
    Migration(2, "counts", recount.correct),
    Migration(3, "removals", recount.tell_removals_apart),
)


def folder(archive: str, name: str) -> str:
    """One of FOLDERS."""
    return os.path.join(archive, name)


def make(archive: str) -> None:
    """Make an archive's folders and its identity. Raises ArchiveBusy, StorageFailed, NoSpace."""
    for name in FOLDERS:
        os.makedirs(folder(archive, name), mode=0o700, exist_ok=True)
    engine = open_namespace(archive)
    try:
        with engine.write() as tx:
            if meta.get_bytes(tx, meta.ARCHIVE_ID) is None:
                meta.set_bytes(tx, meta.ARCHIVE_ID, os.urandom(16))
        engine.sync(engine.position)
    finally:
        engine.close()


def open_to_fill(archive: str) -> tuple[LmdbEngine, LmdbEngine]:
    """Both environments of an archive that is being rebuilt, empty, without a log: nobody serves them yet."""
    for name in FOLDERS:
        os.makedirs(folder(archive, name), mode=0o700, exist_ok=True)
    path = folder(archive, "namespace")
    namespace = LmdbEngine(path, tables=keys.NAMESPACE_TABLES)
    _migrate(namespace, NAMESPACE_MIGRATIONS, path)
    return namespace, open_store(archive)


def sweep(base: str) -> None:
    """Remove what drills left that were killed; of one that still runs nothing is touched."""
    for entry in os.scandir(base):
        if entry.name.startswith(DRILL) and entry.is_dir(follow_symlinks=False):
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def scratch(base: str) -> Iterator[tuple[tuple[LmdbEngine, LmdbEngine], tuple[str, str]]]:
    """Two empty environments, and folders for staged files and fetched packs; all gone in the end."""
    os.makedirs(base, mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=DRILL, dir=base) as place, contextlib.ExitStack() as stack:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # goes with this process, however that ends
        engines = open_to_fill(place)
        try:
            yield engines, (folder(place, "staging"), folder(place, "cache"))
        finally:
            for engine in engines:
                engine.close()


@contextlib.contextmanager
def served_by_nobody(archive: str) -> Iterator[None]:
    """No mount process has the archive, and none gets it meanwhile. Raises ArchiveBusy."""
    lock = OwnerLock(folder(archive, "namespace"))
    try:
        yield
    finally:
        lock.release()


def open_namespace(archive: str, *, faults: Faults | None = None, log: LogSettings | None = None) -> LmdbEngine:
    """Mount's index, for its sole writer. Raises ArchiveBusy, FormatUnknown, IndexBroken."""
    path = folder(archive, "namespace")
    engine = LmdbEngine(path, log=log or LogSettings(), faults=faults, tables=keys.NAMESPACE_TABLES)
    _migrate(engine, NAMESPACE_MIGRATIONS, path)
    return engine


def open_store(archive: str, *, faults: Faults | None = None) -> LmdbEngine:
    """Tierd's index, for its sole writer. Raises ArchiveBusy, FormatUnknown, IndexBroken."""
    path = folder(archive, "store")
    engine = LmdbEngine(path, faults=faults, tables=keys.STORE_TABLES)
    _migrate(engine, STORE_MIGRATIONS, path)
    return engine


def _migrate(engine: Engine, migrations: tuple[Migration, ...], path: str) -> None:
    try:
        migrate(engine, migrations, what=path)
    except BaseException:
        engine.close()
        raise


def read_namespace(archive: str) -> LmdbEngine:
    """Mount's index for everyone else: what is folded, read-only. Raises NotYet before mount ever ran."""
    return LmdbEngine(folder(archive, "namespace"), read_only=True, tables=keys.NAMESPACE_TABLES)


def read_store(archive: str) -> LmdbEngine:
    """Tierd's index for everyone else. Raises NotYet before tierd ever ran."""
    return LmdbEngine(folder(archive, "store"), read_only=True, tables=keys.STORE_TABLES)


def archive_id(engine: Engine, archive: str) -> bytes:
    """The archive's 16 bytes. Raises IndexBroken when there are none."""
    with engine.read() as reader:
        found = meta.get_bytes(reader, meta.ARCHIVE_ID)
    if found is None:
        raise IndexBroken(what=archive, why="it has no identity; it was not made by `vna init`")
    return found


def open_tree(  # noqa: PLR0913 - each named where it is wired
    archive: str,
    engine: Engine,
    settings: Settings,
    *,
    clock: Clock,
    faults: Faults,
    copies_of: CopiesOf,
    boot_id: str,
    boot_clock: BootClock | None = None,
    open_before: OpenBefore = NOTHING_OPEN,
) -> Filesystem:
    """The tree over the archive's spool, repaired if need be."""
    spool = Spool(folder(archive, "spool"))
    return Filesystem(
        engine, spool, clock, faults, settings, copies_of=copies_of, boot_id=boot_id, boot_clock=boot_clock,
        open_before=open_before,
    )  # fmt: skip


def open_keys(archive: str, namespace: Engine, secret: bytes | None, *, clock: Clock, faults: Faults) -> Keys | None:
    """The keys of an encrypted archive, opened with *secret*; None for one that is not encrypted.

    Raises KeyMissing when an encrypted repository is left without them, KeyWrong, Damaged.
    """
    from vnafs.content import keyring  # noqa: PLC0415 - loads a crypto library that mount does not need
    from vnafs.pipeline.keys import Keys  # noqa: PLC0415

    place = folder(archive, "keys")
    if not keyfile.exists(place):
        with namespace.read() as reader:
            if any(repository.encrypted for repository in repositories.every(reader)):
                raise KeyMissing(what=f"Archive {archive}", why=f"{place} holds no keyring; put it back, or restore")
        return None
    if secret is None:
        raise KeyMissing(what=f"Archive {archive}", why="no secret that opens its keyring was given")
    unlocked = keyring.unlock(keyfile.load(place), secret)
    if unlocked.keyring.archive != archive_id(namespace, archive):
        raise KeyWrong(what=f"archive {archive}: its keyring is that of another one")
    save = functools.partial(keyfile.save, place)
    return Keys(unlocked, save=save, random=os.urandom, clock=clock, faults=faults)


def open_tiering(  # noqa: PLR0913 - parts and exits, each named where it is wired
    archive: str,
    store: Engine,
    namespace: Engine,
    tree: Tree,
    settings: Callable[[bytes], TieringSettings],
    keys: Keys | None = None,
    *,
    clock: Clock,
    faults: Faults,
    fatal: Callable[[BaseException], None],
) -> Tiering:
    """Tiering over the archive's store; *settings* is given the archive's id."""
    # Loads pydicom, which costs mount and the command line a second and 60 MB for nothing.
    from vnafs.pipeline.namespace import Namespace  # noqa: PLC0415
    from vnafs.pipeline.runner import Tiering  # noqa: PLC0415

    spool = Spool(folder(archive, "spool"))
    return Tiering(
        store,
        Namespace(namespace),
        tree,
        spool.local_path,
        settings(archive_id(namespace, archive)),
        keys,
        clock=clock,
        faults=faults,
        fatal=fatal,
    )


def open_manifests(  # noqa: PLR0913 - parts and exits, each named where it is wired
    archive: str,
    store: Engine,
    namespace: Engine,
    tiering: Tiering,
    *,
    fold: Callable[[], None],
    configuration: Callable[[], str],
    superseded: Callable[[str], None],
    seconds_max: float,
    kept_seconds: float,
    clock: Clock,
    faults: Faults,
    fatal: Callable[[BaseException], None],
) -> Manifests:
    """What records and sends the archive's manifests, to the targets that tiering has."""
    from vnafs.upkeep.manifests import Manifests  # noqa: PLC0415 - only tierd needs it

    return Manifests(
        folder(archive, "manifests"),
        store,
        namespace,
        archive=archive_id(namespace, archive),
        fold=fold,
        configuration=configuration,
        places=tiering.replicators,
        superseded=superseded,
        seconds_max=seconds_max,
        kept_seconds=kept_seconds,
        keys=tiering.keys,
        quarantine=tiering.quarantine,
        clock=clock,
        faults=faults,
        fatal=fatal,
    )


def open_mirrors(
    archive: str,
    namespace: Engine,
    tiering: Tiering,
    *,
    clock: Clock,
    faults: Faults,
    fatal: Callable[[BaseException], None],
) -> Mirrors:
    """What keeps the archive's plain mirrors like its tree; none so far."""
    from vnafs.pipeline.namespace import Namespace  # noqa: PLC0415 - only tierd needs them
    from vnafs.upkeep.mirrors import Mirrors  # noqa: PLC0415

    def open_rows(path: str) -> LmdbEngine:
        engine = LmdbEngine(path, faults=faults, tables=keys.MIRROR_TABLES)
        _migrate(engine, MIRROR_MIGRATIONS, path)
        return engine

    return Mirrors(
        folder(archive, "mirrors"),
        namespace,
        open_rows=open_rows,
        every=Namespace(namespace).repositories,
        local_path=Spool(folder(archive, "spool")).local_path,
        bytes_of=tiering.recaller.reading,
        taking_room=tiering.room.taking,
        clock=clock,
        faults=faults,
        fatal=fatal,
    )


def open_scrub(
    archive: str,
    store: Engine,
    namespace: Engine,
    tiering: Tiering,
    settings: ScrubSettings,
    manifests: Manifests,
    *,
    clock: Clock,
    fatal: Callable[[BaseException], None],
) -> Scrub:
    """What looks at the archive's copies and local files again."""
    from vnafs.pipeline.namespace import Namespace  # noqa: PLC0415 - only tierd needs them
    from vnafs.upkeep.scrub import Scrub  # noqa: PLC0415

    return Scrub(
        store,
        Namespace(namespace),
        Spool(folder(archive, "spool")).local_path,
        settings,
        copyists=tiering.replicators,
        evict=lambda inodes: [decision.yes for decision in tiering.evictor.evict_many(inodes)],
        manifests=manifests.look_again,
        quarantine=tiering.quarantine,
        clock=clock,
        fatal=fatal,
    )


def open_collector(  # noqa: PLR0913 - parts and exits, each named where it is wired
    store: Engine,
    namespace: Engine,
    tiering: Tiering,
    settings: CollectSettings,
    manifests: Manifests,
    *,
    fold: Callable[[], None],
    clock: Clock,
    faults: Faults,
    fatal: Callable[[BaseException], None],
) -> Collector:
    """What removes packs that no file needs any more."""
    from vnafs.pipeline.namespace import Namespace  # noqa: PLC0415 - only tierd needs them
    from vnafs.pipeline.repack import Repacker  # noqa: PLC0415
    from vnafs.upkeep.collect import Collector  # noqa: PLC0415

    return Collector(
        store,
        namespace,
        settings,
        shelf=tiering.shelf,
        repacker=Repacker(store, Namespace(namespace), tiering.recaller, tiering.packer, faults),
        fold=fold,
        covers=manifests.covers,
        leads=manifests.leads,
        storage_seconds_min=lambda: {one.number: one.storage_seconds_min for one in tiering.replicators()},
        may_pack=tiering.may_pack,
        kick=tiering.kick,
        gone=tiering.contents_gone,
        clock=clock,
        faults=faults,
        fatal=fatal,
    )


def open_eraser(  # noqa: PLR0913 - parts and exits, each named where it is wired
    archive: str,
    store: Engine,
    namespace: Engine,
    tiering: Tiering,
    manifests: Manifests,
    collector: Collector,
    *,
    fold: Callable[[], None],
    mirrors: Mirrors,
    clock: Clock,
    faults: Faults,
    fatal: Callable[[BaseException], None],
) -> Eraser:
    """What sees to it that erased files go from packs, targets and the local disk, and proves it."""
    from vnafs.local.spool import QUARANTINE  # noqa: PLC0415 - only tierd needs them
    from vnafs.local.traces import Traces  # noqa: PLC0415
    from vnafs.upkeep.erase import Eraser  # noqa: PLC0415

    spool = folder(archive, "spool")

    def recorded_to() -> tuple[int, int]:
        here = manifests.ledger.position()
        return here.namespace_cursor, here.number

    return Eraser(
        store,
        namespace,
        shelf=tiering.shelf,
        traces=Traces(
            Spool(spool).local_path,
            [folder(archive, "staging"), folder(archive, "frozen"), os.path.join(spool, QUARANTINE)],
        ),
        quarantine=tiering.quarantine,
        places=tiering.replicators,
        manifests=manifests,
        recorded_to=recorded_to,
        under_way=tiering.packer.has,
        fold=fold,
        kick=collector.wake,
        gone=tiering.contents_gone,
        mirrors=mirrors.left,
        clock=clock,
        faults=faults,
        fatal=fatal,
    )


def open_signing(archive: str, store: Engine, keys: Keys | None, *, clock: Clock) -> Signing:
    """What signs the archive's receipts, with the keys of an encrypted archive."""
    from vnafs.upkeep.signing import Signing  # noqa: PLC0415 - only tierd needs it

    return Signing(store, folder(archive, "keys"), keys, clock=clock)


def open_certifier(
    archive: str,
    namespace: Engine,
    eraser: Eraser,
    signing: Signing,
    *,
    service: TimestampService | None,
    clock: Clock,
) -> Certifier:
    """What signs how the archive's erasures stand."""
    from vnafs.upkeep.certify import Certifier  # noqa: PLC0415 - only tierd needs it

    return Certifier(
        eraser,
        archive=archive_id(namespace, archive),
        signing=signing,
        service=service,
        clock=clock,
    )


def open_renewal(
    store: Engine,
    namespace: Engine,
    tiering: Tiering,
    manifests: Manifests,
    *,
    clock: Clock,
    fatal: Callable[[BaseException], None],
) -> Renewal:
    """What renews the locks of objects on targets."""
    from vnafs.upkeep.renewal import Renewal  # noqa: PLC0415 - only tierd needs them
    from vnafs.upkeep.retained import Retained  # noqa: PLC0415

    return Renewal(
        store,
        holders=tiering.replicators,
        needed=manifests.needed,
        retained=Retained(store, namespace).until,
        clock=clock,
        fatal=fatal,
    )


def make_receipt_key(archive: str) -> None:
    """Make the key that signs the archive's receipts, unless there is one. Raises NoSpace, StorageFailed.

    That of an encrypted archive is in its keyring from the beginning.
    """
    from vnafs.receipts import keys as receipt_keys  # noqa: PLC0415 - loads a library that serving never needs

    if not keyfile.exists(folder(archive, "keys")):
        receipt_keys.ensure(folder(archive, "keys"))


def sign_after_restore(
    archive: str, store: Engine, unlocked: Unlocked | None, *, clock: Clock
) -> tuple[Unlocked | None, bool]:
    """See vnafs.upkeep.signing.after_restore."""
    from vnafs.upkeep import signing  # noqa: PLC0415 - no other command needs it

    return signing.after_restore(store, folder(archive, "keys"), unlocked, clock=clock, entropy=os.urandom)


def signers_of(archive: str) -> list[Signer]:
    """Every key that the archive's receipts were signed with, the one that signs now last; none before tierd ran."""
    try:
        store = read_store(archive)
    except NotYet:
        return []
    try:
        with store.read() as reader:
            return signers.every(reader)
    finally:
        store.close()


def open_issuer(  # noqa: PLR0913 - parts and exits, each named where it is wired
    archive: str,
    store: Engine,
    namespace: Engine,
    manifests: Manifests,
    *,
    fold: Callable[[], None],
    signing: Signing,
    files_max: int,
    service: TimestampService | None,
    clock: Clock,
) -> Issuer:
    """What vouches for the archive's files."""
    from vnafs.upkeep.custody import Custodian  # noqa: PLC0415 - only tierd needs them
    from vnafs.upkeep.issue import Issuer  # noqa: PLC0415 - the same

    custodian = Custodian(
        store,
        namespace,
        manifests,
        Spool(folder(archive, "spool")).local_path,
        fold=fold,
        files_max=files_max,
        clock=clock,
    )
    return Issuer(custodian, archive=archive_id(namespace, archive), signing=signing, service=service)


class LateStore:
    """The store for readers that may start before tierd ever did: None until it is there."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._engine: LmdbEngine | None = None

    def get(self) -> LmdbEngine | None:
        """The read-only store."""
        if self._engine is None:
            try:
                self._engine = read_store(self._archive)
            except NotYet:
                return None
        return self._engine
