"""tierd: seals, packs, replicates, evicts and recalls. Wiring only.

Any thread of tiering that fails ends the process at once: what is in hand is found again from rows by the next one.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Mapping
from typing import NoReturn

from appliance import config, keys, system
from appliance.config import Configuration, MirrorSettings, TargetSettings
from appliance.control.client import ControlClient
from appliance.control.collection import collection_methods
from appliance.control.erasing import erasing_methods
from appliance.control.mirrors import mirror_methods
from appliance.control.quarantine import quarantine_methods
from appliance.control.recall import recall_methods
from appliance.control.receipts import receipt_methods
from appliance.control.server import ControlServer
from appliance.control.tiering import TieringControl
from appliance.control.tree import TreeClient
from vnafs import store as archive_store
from vnafs.domain.clock import Clock, SystemClock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import ConfigurationInvalid, Damaged, FormatUnknown, InvalidArgument, NotFound
from vnafs.domain.faults import Faults
from vnafs.domain.ids import TargetName
from vnafs.domain.locks import Lock
from vnafs.index.engine import Engine
from vnafs.pipeline.settings import Destination, TieringSettings
from vnafs.receipts.timestamps import TimestampService
from vnafs.targets.address import Address, parse_address
from vnafs.targets.credentials import Credentials, find_credentials
from vnafs.targets.limits import Limits
from vnafs.targets.mirror import Mirror
from vnafs.targets.open import check_lock, open_mirror, open_target
from vnafs.targets.port import Target
from vnafs.upkeep.collect import CollectSettings
from vnafs.upkeep.mirroring import MirrorRules
from vnafs.upkeep.mirrors import WantedMirror
from vnafs.upkeep.scrub import ScrubSettings
from vnafs.upkeep.signing import Signing

log = logging.getLogger(__name__)

EXIT_FAILED = 70
"""EX_SOFTWARE of sysexits.h: the supervisor starts the daemon again."""
MOUNT_ANSWER_SECONDS_MAX = 60.0
ANSWERS_SECONDS_MAX = 1.0
"""For answers under way when we are to stop; whoever asked asks the next process."""
LEAN_PERIODS = 2
"""Of scrub: what was not verified for longer, although it should have been, holds nothing new."""
DAY_SECONDS = 86400.0
YOUNG_SECONDS = 3600.0
"""A pack is no younger when it is condemned."""
RECALL_REQUESTS = 16
"""Kept free of uploads, so that a reader never waits behind the drain."""


def run(configuration: Configuration, environ: Mapping[str, str], faults: Faults) -> int:
    """Serve until SIGTERM or SIGINT. Raises ArchiveBusy, ConfigurationInvalid and what opening an archive raises."""
    clock = SystemClock()
    archive = configuration.archive
    # Waited for below: no handler runs inside anybody's lock.
    system.hold_stop_signals()
    # A lease that is broken while it is held sends SIGIO, whose default is to end the process (fcntl(2)).
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    wanted = destinations(configuration, environ)
    secret = keys.secret(configuration, environ)
    service = _timestamp_service(configuration)
    system.raise_open_files()
    engine = archive_store.open_store(archive, faults=faults)
    namespace = archive_store.read_namespace(archive)
    mount = ControlClient(
        os.path.join(configuration.folder("run"), "mount.sock"), "mount", timeout_seconds=MOUNT_ANSWER_SECONDS_MAX
    )
    tree = TreeClient(mount)
    tiering = archive_store.open_tiering(
        archive,
        engine,
        namespace,
        tree,
        lambda identity: tiering_settings(configuration, identity),
        archive_store.open_keys(archive, namespace, secret, clock=clock, faults=faults),
        clock=clock,
        faults=faults,
        fatal=_end,
    )

    def superseded(why: str) -> None:
        tiering.suspend(why)
        mirrors.suspend(why)
        for part in (scrub, collector, eraser):
            part.stop()
        tree.supersede(why)

    manifests = archive_store.open_manifests(
        archive,
        engine,
        namespace,
        tiering,
        fold=tree.fold,
        configuration=functools.partial(config.text, archive),
        superseded=superseded,
        seconds_max=configuration.manifests.seconds_max,
        kept_seconds=configuration.manifests.kept_seconds,
        clock=clock,
        faults=faults,
        fatal=_end,
    )
    scrub = archive_store.open_scrub(
        archive,
        engine,
        namespace,
        tiering,
        ScrubSettings(configuration.scrub.period_seconds, configuration.scrub.bytes_per_second_max),
        manifests,
        clock=clock,
        fatal=_end,
    )
    collector = archive_store.open_collector(
        engine,
        namespace,
        tiering,
        CollectSettings(
            configuration.collection.after_seconds,
            configuration.collection.live_percent_min,
            # where nothing is collected, what was erased still waits for what is on its way to its rows
            min(YOUNG_SECONDS, configuration.collection.after_seconds or YOUNG_SECONDS),
        ),
        manifests,
        fold=tree.fold,
        clock=clock,
        faults=faults,
        fatal=_end,
    )
    renewal = archive_store.open_renewal(engine, namespace, tiering, manifests, clock=clock, fatal=_end)
    mirrors = archive_store.open_mirrors(archive, namespace, tiering, clock=clock, faults=faults, fatal=_end)
    eraser = archive_store.open_eraser(
        archive,
        engine,
        namespace,
        tiering,
        manifests,
        collector,
        fold=tree.fold,
        mirrors=mirrors,
        clock=clock,
        faults=faults,
        fatal=_end,
    )
    signing = archive_store.open_signing(archive, engine, tiering.keys, clock=clock)
    wanted_mirrors = functools.partial(_mirrors, engine=namespace, environ=environ, clock=clock)
    control = TieringControl(
        tiering,
        manifests,
        scrub,
        collector,
        renewal,
        signing,
        engine,
        namespace,
        reload=lambda: tiering.set_targets(destinations(config.load(archive), environ)),
        clock=clock,
        quiet_seconds=configuration.file_system.quiet_seconds,
    )
    issuer = archive_store.open_issuer(
        archive,
        engine,
        namespace,
        manifests,
        fold=tree.fold,
        signing=signing,
        files_max=configuration.receipts.files_max,
        service=service,
        clock=clock,
    )
    certifier = archive_store.open_certifier(archive, namespace, eraser, signing, service=service, clock=clock)
    _note_signer(signing)
    tiering.set_targets(wanted)
    server = ControlServer(
        os.path.join(configuration.folder("run"), "tierd.sock"),
        [
            *recall_methods(tiering.recaller),
            *control.methods(),
            *receipt_methods(issuer),
            *quarantine_methods(tiering.quarantine, namespace),
            *erasing_methods(certifier),
            *collection_methods(
                collector,
                tiering,
                engine,
                {target.name: target.price_per_gigabyte_month for target in configuration.targets},
                enabled=bool(configuration.collection.after_seconds),
            ),
            *mirror_methods(mirrors, reload=lambda: mirrors.follow(wanted_mirrors(config.load(archive)))),
        ],
    )
    if not manifests.compare():
        for part in (scrub, collector, eraser):
            part.start()
    renewal.start()  # also for an archive that went on elsewhere: longer locks are in nobody's way
    tiering.start()
    server.start()
    manifests.start()
    if not manifests.rival:
        mirrors.follow(wanted_mirrors(configuration))
    log.info("tierd.ready", extra={"targets": len(wanted)})
    signal.sigwait(system.STOPPING)
    log.info("tierd.stopping")
    answered = server.close(ANSWERS_SECONDS_MAX)
    ended = [part.stop() for part in (mirrors, manifests, scrub, collector, eraser, renewal, tiering)]
    if not all(ended) or not answered:
        _abandon(engine)
    engine.close()
    namespace.close()
    return 0


def _note_signer(signing: Signing) -> None:
    """Put the key of receipts on record, so that manifests tell of it before the first one.

    One that cannot be used keeps nothing else from working; whoever asks for a receipt is told.
    """
    try:
        signing.key()
    except (Damaged, FormatUnknown) as problem:
        log.warning("receipt.no_key", extra={"why": str(problem)})


def _timestamp_service(configuration: Configuration) -> TimestampService | None:
    """Raises ConfigurationInvalid for certificates that cannot be used."""
    settings = configuration.receipts
    try:
        return TimestampService(settings.timestamp_url, settings.timestamp_ca_file) if settings.timestamp_url else None
    except (NotFound, InvalidArgument) as problem:
        raise ConfigurationInvalid(
            file=configuration.file,
            key="receipts.timestamp_ca_file",
            value=repr(settings.timestamp_ca_file),
            why=str(problem).rstrip("."),
            fix="Name a file of certificates in PEM",
        ) from problem


def _abandon(engine: Engine) -> NoReturn:
    """End at once, because something hangs on a target that does not answer.

    Its thread may be in the middle of reading an index, so no index is closed beneath it: the end of the process
    closes them as kill -9 would, and every commit was synced before anybody was told of it.
    """
    log.warning("tierd.abandoned")
    engine.sync(engine.position)
    logging.shutdown()
    os._exit(0)


def _end(problem: BaseException) -> None:
    log.critical("tierd.failed", exc_info=problem)
    logging.shutdown()
    os._exit(EXIT_FAILED)


def destinations(configuration: Configuration, environ: Mapping[str, str]) -> dict[TargetName, Destination]:
    """The configured targets, ready to be opened. Raises ConfigurationInvalid."""
    found = {}
    for number, target in enumerate(configuration.targets):
        key = f"target[{number}]"
        address = parse_address(target.url, file=configuration.file, key=f"{key}.url")
        credentials = find_credentials(
            address, file=target.credentials_file, environ=environ, key=f"{key}.credentials_file"
        )
        removal = None
        if target.removal_credentials_file:
            file, removal_key = target.removal_credentials_file, f"{key}.removal_credentials_file"
            removal = find_credentials(address, file=file, environ={}, key=removal_key)
        lock = check_lock(address, target.lock_seconds, target.lock_mode, file=configuration.file, key=key)
        opened = functools.partial(_open, target, address, credentials, removal, lock)
        found[TargetName(target.name)] = Destination(
            opened,
            target.url,
            target.transfers_max,
            lock,
            storage_seconds_min=target.storage_days_min * DAY_SECONDS,
        )
    return found


def _open(
    target: TargetSettings,
    address: Address,
    credentials: Credentials,
    removal: Credentials | None,
    lock: Lock | None,
    known: Capabilities | None,
) -> Target:
    limits = Limits(
        requests_max=target.transfers_max * 2 + RECALL_REQUESTS,
        bytes_per_second_max=target.bytes_per_second_max or None,
        attempts_max=2,  # the replicator has its own patience, and a reader wants the next copy
    )
    name = TargetName(target.name)
    return open_target(name, address, credentials, SystemClock(), limits, known, removal=removal, lock=lock)


def _mirrors(
    configuration: Configuration, *, engine: Engine, environ: Mapping[str, str], clock: Clock
) -> dict[TargetName, WantedMirror]:
    """The configured mirrors. What is wrong with one shows when it is opened, and holds up nothing else."""
    identity = archive_store.archive_id(engine, configuration.archive)
    found = {}
    for number, mirror in enumerate(configuration.mirrors):
        rules = MirrorRules(
            mirror.url,
            mirror.repositories,
            mirror.plain,
            keeps_removed=mirror.removals == "keep",
            harm_seconds=mirror.removals_after_seconds,
            transfers_max=mirror.transfers_max,
            bytes_per_second_max=mirror.bytes_per_second_max,
        )
        opened = functools.partial(
            _open_mirror, mirror, configuration.file, f"mirror[{number}]", environ, identity, clock
        )
        found[TargetName(mirror.name)] = WantedMirror(rules, opened)
    return found


def _open_mirror(
    mirror: MirrorSettings, file: str, key: str, environ: Mapping[str, str], identity: bytes, clock: Clock
) -> Mirror:
    """Raises ConfigurationInvalid."""
    address = parse_address(mirror.url, file=file, key=f"{key}.url")
    credentials = find_credentials(
        address, file=mirror.credentials_file, environ=environ, key=f"{key}.credentials_file"
    )
    limits = Limits(requests_max=mirror.transfers_max * 2, attempts_max=1)  # mirroring has its own patience
    return open_mirror(TargetName(mirror.name), address, credentials, identity, clock, limits)


def tiering_settings(configuration: Configuration, identity: bytes) -> TieringSettings:
    """What tiering needs of the configuration."""
    packs, spool = configuration.packs, configuration.spool
    return TieringSettings(
        archive_id=identity,
        spool_folder=configuration.folder("spool"),
        packs_folder=configuration.folder("packs"),
        staging_folder=configuration.folder("staging"),
        recall_cache_folder=configuration.folder("cache"),
        frozen_folder=configuration.folder("frozen"),
        quarantine_folder=configuration.folder("quarantine"),
        quiet_seconds=configuration.file_system.quiet_seconds,
        unprotected_seconds_max=configuration.file_system.unprotected_seconds_max,
        hold_seconds_max=configuration.file_system.hold_seconds_max,
        pack_target_bytes=packs.target_bytes,
        pack_age_seconds_max=packs.age_seconds_max,
        compression_level=packs.compression_level,
        encode_seconds_per_gigabyte_max=packs.encode_seconds_per_gigabyte_max,
        attempts_file=os.path.join(configuration.folder("run"), "attempts"),
        workers=packs.workers,
        waiting_bytes_max=packs.waiting_bytes_max,
        recall_cache_bytes_max=packs.recall_cache_bytes_max,
        recall_parts_bytes_max=packs.recall_parts_bytes_max,
        high_watermark_percent=spool.high_watermark_percent,
        low_watermark_percent=spool.low_watermark_percent,
        reserve_bytes=spool.reserve_bytes,
        lean_seconds_max=configuration.scrub.period_seconds * LEAN_PERIODS,
        quarantine_bytes_max=configuration.scrub.quarantine_bytes_max,
        quarantine_kept_seconds=configuration.scrub.quarantine_kept_seconds,
    )
