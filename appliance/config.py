"""Configuration: one TOML file in, one frozen value out, or a message that names the key, the value and the fix.

Only entry points call this. Secrets are never in the file: a target names a credentials file, or its provider's
usual environment variables are used.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from appliance.domain import settings as domains
from appliance.domain.settings import DomainSettings
from appliance.shares import settings as shared
from appliance.shares.settings import ShareSettings, SharingSettings
from vnafs.domain.errors import ConfigurationInvalid

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE
FILE_NAME = "vnafs.toml"
ENGINES = ("auto", "kernel", "pyfuse3")
"""That serve the mount: the protocol on /dev/fuse itself, and the portable one."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileSystemSettings:
    """[file_system]: how the tree behaves."""

    engine: str = "auto"
    """Chosen for you: "kernel" where root and Linux 6.9 let it read and write local files itself, else "pyfuse3"."""
    quiet_seconds: float = 5.0
    """Without a write for this long, a closed file is sealed."""
    unprotected_seconds_max: float = 3600.0
    """Open for longer than this, a file is copied as it is, and again as it changes; older bytes are a warning."""
    hold_seconds_max: float = 3.0
    """Writers of a file that is copied while it is open wait no longer than this, where it cannot be cloned."""
    allow_other: bool = True
    """Other users than the one who runs the mount may use it (needs root or user_allow_other)."""
    open_files_max: int = 65536
    recall_whole_bytes_max: int = 64 * MEBIBYTE
    """A larger stub opened for reading is read by range instead of being brought back first."""
    recall_seconds_max: float = 300.0
    """An open that waits longer than this for its bytes fails with EIO."""


@dataclasses.dataclass(frozen=True, slots=True)
class SpoolSettings:
    """[spool]: the local disk."""

    high_watermark_percent: float = 80.0
    """Above this share of the disk, replicated files lose their local bytes, oldest first."""
    low_watermark_percent: float = 70.0
    """Eviction stops here."""
    reserve_bytes: int = 512 * MEBIBYTE
    """Writers get ENOSPC while less than this is free, so that index, log and packs can always go on."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackSettings:
    """[packs]: how pieces become objects."""

    target_bytes: int = 32 * MEBIBYTE
    """A pack closes when it reaches this."""
    age_seconds_max: float = 15.0
    """A pack closes this long after its first piece."""
    compression_level: int = 1
    """zstd's, for what is no image."""
    encode_seconds_per_gigabyte_max: float = 20.0
    """Processor time that storing pixels may take; the smallest codec within it wins. 0: only zstd."""
    workers: int = 2
    """Threads that hash, split and compress."""
    waiting_bytes_max: int = 8 * GIBIBYTE
    """Packs that wait on the local disk for a target; past it, packs with one verified copy go, then packing waits."""
    recall_cache_bytes_max: int = 2 * GIBIBYTE
    """Packs fetched ahead of recalls."""
    recall_parts_bytes_max: int = 2 * GIBIBYTE
    """Parts of large stubs that were read by range; past it, those of the file that was not read for longest go."""


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestSettings:
    """[manifests]: what rebuilds the index from a target."""

    seconds_max: float = 60.0
    """Changes reach the targets no later than this, and are lost with this machine before."""
    kept_seconds: float = 2_592_000.0
    """What is older and needed by no restore is removed from targets (30 days); 0: nothing is."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScrubSettings:
    """[scrub]: copies and local files are looked at again before they are needed."""

    period_seconds: float = 2_592_000.0
    """Every copy is verified again, and every local file compared, within this (30 days)."""
    bytes_per_second_max: int = 20 * MEBIBYTE
    """Read for it, from targets and the local disk together; 0 for no limit."""
    quarantine_bytes_max: int = 2 * GIBIBYTE
    """Damaged bytes that are kept when they are replaced; past it the oldest go. 0: none are kept."""
    quarantine_kept_seconds: float = 7_776_000.0
    """They go after this (90 days); 0: only past quarantine_bytes_max."""


@dataclasses.dataclass(frozen=True, slots=True)
class CollectionSettings:
    """[collection]: packs that no file needs any more go."""

    after_seconds: float = 604_800.0
    """A pack that no file needs is removed no sooner than this after it was found (7 days); 0: nothing is removed."""
    live_percent_min: float = 40.0
    """A pack of whose contents less is needed is packed again, and removed; 0: never."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncryptionSettings:
    """[encryption]: where the secret is that opens the keyring of an encrypted archive."""

    key_file: str = ""
    """A file that only its owner may read, with a key or a passphrase; unless told, keys/master.key of the archive."""
    key_environment: str = ""
    """The name of an environment variable that has it instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class DrillSettings:
    """[drill]: the worst day rehearsed, by `vna drill` and by `vna serve`."""

    period_seconds: float = 2_592_000.0
    """`vna serve` holds a drill on each target this often (30 days); 0: only by hand."""
    key_file: str = ""
    """A file with the recovery key of an encrypted archive, best on a medium that is there only then."""
    files: int = 100
    """Drawn by lot and read back."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptSettings:
    """[receipts]: what senders are told."""

    timestamp_url: str = ""
    """A service that stamps each receipt (RFC 3161); empty for none."""
    timestamp_ca_file: str = ""
    """Certificates in PEM that its answers must lead to."""
    files_max: int = 10_000
    """In one receipt."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecallSettings:
    """[recall]: who never makes bytes come back from targets."""

    never_processes: tuple[str, ...] = (
        "updatedb",
        "updatedb.mlocate",
        "updatedb.plocate",
        "find",
        "mdworker",
        "mdworker_shared",
        "tracker-extract-3",
        "tracker-miner-fs-3",
        "baloo_file",
        "baloo_file_extractor",
    )
    """Programs by name; they get EACCES when they open a stub."""
    never_uids: tuple[int, ...] = ()
    """Users by number; the same."""
    never_hosts: tuple[str, ...] = ()
    """Clients of a Samba on this machine by address or network (10.1.0.0/16); the same."""


@dataclasses.dataclass(frozen=True, slots=True)
class TargetSettings:
    """One [[target]]."""

    name: str
    url: str
    credentials_file: str = ""
    transfers_max: int = 4
    """Uploads at once."""
    bytes_per_second_max: int = 0
    """0 for no limit."""
    storage_days_min: int = 0
    """Charged for each object at least (Standard-IA 30, Glacier 90, Azure Archive 180): not collected before."""
    price_per_gigabyte_month: float = 0.0
    """For what `vna collect` says of costs."""
    removal_credentials_file: str = ""
    """Another credential, used for nothing but to delete; then `credentials_file` needs no right to."""
    lock_seconds: int = 0
    """Each object is locked for this long (S3 Object Lock), and again before that ends while it is needed; 0: never."""
    lock_mode: str = "governance"
    """Or "compliance", which nobody can shorten."""


@dataclasses.dataclass(frozen=True, slots=True)
class MirrorSettings:
    """One [[mirror]]: files as they are, for other software."""

    name: str
    url: str
    repositories: tuple[str, ...] = ()
    """Those that are mirrored; all of them, if none is named."""
    plain: bool = False
    """Encrypted repositories too, in plain text."""
    removals: str = "follow"
    """`keep`: what is removed or renamed in the tree stays on the mirror."""
    removals_after_seconds: float = 60.0
    """What is on the mirror is overwritten or removed so long after it was in the tree, unless a tripwire says no."""
    credentials_file: str = ""
    transfers_max: int = 4
    """Uploads at once."""
    bytes_per_second_max: int = 0
    """0 for no limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """All of vnafs.toml, valid as a whole."""

    archive: str
    mount: str
    file_system: FileSystemSettings = FileSystemSettings()
    spool: SpoolSettings = SpoolSettings()
    packs: PackSettings = PackSettings()
    manifests: ManifestSettings = ManifestSettings()
    scrub: ScrubSettings = ScrubSettings()
    collection: CollectionSettings = CollectionSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    drill: DrillSettings = DrillSettings()
    receipts: ReceiptSettings = ReceiptSettings()
    recall: RecallSettings = RecallSettings()
    sharing: SharingSettings = SharingSettings()
    domain: DomainSettings = DomainSettings()
    targets: tuple[TargetSettings, ...] = ()
    mirrors: tuple[MirrorSettings, ...] = ()
    shares: tuple[ShareSettings, ...] = ()

    @property
    def file(self) -> str:
        """Where it was read from."""
        return os.path.join(self.archive, FILE_NAME)

    def folder(self, name: str) -> str:
        """A folder of the archive: namespace, store, spool, staging, packs or run."""
        return os.path.join(self.archive, name)


def load(archive: str) -> Configuration:
    """Read and check DIR/vnafs.toml. Raises ConfigurationInvalid."""
    file = os.path.join(archive, FILE_NAME)
    try:
        with open(file, "rb") as stream:
            document = tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigurationInvalid(
            file=file,
            key="archive",
            value=archive,
            why="there is no archive here",
            fix="Make one with `vna init DIR --mount PATH`, or name another with --archive or VNA_ARCHIVE",
        ) from None
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise ConfigurationInvalid(
            file=file, key="(file)", value=file, why=str(problem), fix="Mend the file and start again"
        ) from problem
    return parse(document, archive=os.path.abspath(archive), file=file)


def text(archive: str) -> str:
    """The file as it is, for the archive's manifests: it holds no secret. Empty when it cannot be read."""
    try:
        with open(os.path.join(archive, FILE_NAME), encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return ""


def parse(document: Mapping[str, Any], *, archive: str, file: str) -> Configuration:
    """Check a parsed document as a whole. Raises ConfigurationInvalid at the first problem."""
    table = _Table(document, file, "")
    lists = {"target", "mirror", "share"}
    sections = {field.name for field in dataclasses.fields(Configuration)} - {"archive", *(f"{one}s" for one in lists)}
    table.only({"version", *lists, *sections})
    version = table.get("version", int, 1)
    if version != 1:
        table.fail("version", version, "this program knows version 1", "Use a newer vnafs")
    mount = table.get("mount", str, None)
    if not os.path.isabs(mount):
        table.fail("mount", mount, "is not an absolute path", "Write the whole path, from /")
    configuration = Configuration(
        archive=archive,
        mount=mount,
        file_system=_section(table, "file_system", FileSystemSettings),
        spool=_section(table, "spool", SpoolSettings),
        packs=_section(table, "packs", PackSettings),
        manifests=_section(table, "manifests", ManifestSettings),
        scrub=_section(table, "scrub", ScrubSettings),
        collection=_section(table, "collection", CollectionSettings),
        encryption=_section(table, "encryption", EncryptionSettings),
        drill=_section(table, "drill", DrillSettings),
        receipts=_section(table, "receipts", ReceiptSettings),
        recall=_section(table, "recall", RecallSettings),
        sharing=_section(table, "sharing", SharingSettings),
        domain=_section(table, "domain", DomainSettings),
        targets=tuple(_targets(table)),
        mirrors=tuple(_mirrors(table)),
        shares=tuple(_fill(section, ShareSettings) for section in table.sections("share")),
    )
    _check(configuration, table)
    return configuration


class _Table:
    """One TOML table with the name it has in the file, so that messages can say where."""

    def __init__(self, rows: Mapping[str, Any], file: str, name: str) -> None:
        self._rows = rows
        self._file = file
        self._name = name

    def fail(self, key: str, value: object, why: str, fix: str) -> NoReturn:
        raise ConfigurationInvalid(file=self._file, key=self._name + key, value=repr(value), why=why, fix=fix)

    def only(self, known: set[str]) -> None:
        for key in self._rows:
            if key not in known:
                self.fail(key, self._rows[key], "is not a known key", f"Known are: {', '.join(sorted(known))}")

    def get(self, key: str, kind: type, default: Any) -> Any:
        if key not in self._rows:
            if default is None:
                self.fail(key, None, "is missing", f"Add a line `{key} = …`")
            return default
        value = self._rows[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            self.fail(key, value, f"is not of type {kind.__name__}", f"Write a value of type {kind.__name__}")
        return value

    def many(self, key: str, kind: type, default: Any) -> Any:
        """A list of plain values, as a tuple."""
        values = self._rows.get(key, default)
        if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
            self.fail(key, values, f"is not a list of {kind.__name__}", "Write for example [] for none")
        return tuple(values)

    def section(self, key: str) -> _Table:
        rows = self._rows.get(key, {})
        if not isinstance(rows, dict):
            self.fail(key, rows, "is not a table", f"Begin it with a line `[{key}]`")
        return _Table(rows, self._file, f"{self._name}{key}.")

    def sections(self, key: str) -> list[_Table]:
        rows = self._rows.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.fail(key, rows, "is not a list of tables", f"Begin each with a line `[[{key}]]`")
        return [_Table(row, self._file, f"{key}[{number}].") for number, row in enumerate(rows)]


_T = TypeVar(
    "_T",
    FileSystemSettings,
    SpoolSettings,
    PackSettings,
    ManifestSettings,
    ScrubSettings,
    CollectionSettings,
    EncryptionSettings,
    DrillSettings,
    ReceiptSettings,
    RecallSettings,
    SharingSettings,
    DomainSettings,
    TargetSettings,
    MirrorSettings,
    ShareSettings,
)
_KINDS: Mapping[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
_LISTS: Mapping[str, type] = {"tuple[str, ...]": str, "tuple[int, ...]": int}


def _section(table: _Table, name: str, kind: type[_T]) -> _T:
    return _fill(table.section(name), kind)


def _fill(table: _Table, kind: type[_T]) -> _T:
    fields = dataclasses.fields(kind)
    table.only({field.name for field in fields})
    values = {}
    for field in fields:
        default = None if field.default is dataclasses.MISSING else field.default
        inner = _LISTS.get(str(field.type))
        if inner is not None:
            values[field.name] = table.many(field.name, inner, default)
            continue
        values[field.name] = table.get(field.name, _KINDS[str(field.type)], default)
        if isinstance(values[field.name], int | float) and values[field.name] < 0:
            table.fail(field.name, values[field.name], "is negative", "Write zero or more")
    return kind(**values)


def _targets(table: _Table) -> list[TargetSettings]:
    found: list[TargetSettings] = []
    for section in table.sections("target"):
        target = _fill(section, TargetSettings)
        if not target.name or not target.name.replace("-", "").replace("_", "").isalnum():
            section.fail("name", target.name, "is not a name", "Use letters, digits, - and _")
        if target.name in {other.name for other in found}:
            section.fail("name", target.name, "is used twice", "Give each target its own name")
        if target.transfers_max < 1:
            section.fail("transfers_max", target.transfers_max, "is less than one", "Write 1 or more")
        if target.url in {other.url for other in found}:
            section.fail("url", target.url, "is used twice", "One place is one copy: give each target its own")
        found.append(target)
    return found


def _mirrors(table: _Table) -> list[MirrorSettings]:
    found: list[MirrorSettings] = []
    for section in table.sections("mirror"):
        mirror = _fill(section, MirrorSettings)
        if not mirror.name or not mirror.name.replace("-", "").replace("_", "").isalnum():
            section.fail("name", mirror.name, "is not a name", "Use letters, digits, - and _")
        if mirror.name in {other.name for other in found}:
            section.fail("name", mirror.name, "is used twice", "Give each mirror its own name")
        if not mirror.url.startswith(("file://", "s3://", "azure://")):
            section.fail("url", mirror.url, "is no place that a target has", "Begin with file://, s3:// or azure://")
        if mirror.removals not in {"follow", "keep"}:
            section.fail("removals", mirror.removals, "is not known", "Write follow or keep")
        if mirror.transfers_max < 1:
            section.fail("transfers_max", mirror.transfers_max, "is less than one", "Write 1 or more")
        found.append(mirror)
    return found


def _check_places(configuration: Configuration, table: _Table) -> None:
    """Targets and mirrors lie apart: a mirror removes what the tree has not, and everything in it is plain text."""
    folders = [("the archive", f"file://{configuration.archive}"), ("the mount", f"file://{configuration.mount}")]
    others = folders + [(f"target {target.name}", target.url) for target in configuration.targets]
    for number, mirror in enumerate(configuration.mirrors):
        for what, url in others:
            if _is_within(mirror.url, url) or _is_within(url, mirror.url):
                table.fail(
                    f"mirror[{number}].url", mirror.url, f"is, holds or lies inside {what}", "Name a place of its own"
                )
        others.append((f"mirror {mirror.name}", mirror.url))


def _is_within(url: str, other: str) -> bool:
    inner, outer = (os.path.normpath(one.partition("?")[0]) + "/" for one in (url, other))
    return inner.startswith(outer)


def _check_periods(configuration: Configuration, table: _Table) -> None:
    if (seconds := configuration.manifests.seconds_max) < 0.05:
        table.fail("manifests.seconds_max", seconds, "is less than 0.05", "60 is a good choice")
    if 0 < (seconds := configuration.manifests.kept_seconds) < 1:
        table.fail("manifests.kept_seconds", seconds, "is less than one", "2592000 (30 days) is a good choice")
    if (seconds := configuration.scrub.period_seconds) < 1:
        table.fail("scrub.period_seconds", seconds, "is less than one", "2592000 (30 days) is a good choice")
    if 0 < (seconds := configuration.collection.after_seconds) < 1:
        table.fail("collection.after_seconds", seconds, "is less than one", "604800 (7 days) is a good choice")
    if (percent := configuration.collection.live_percent_min) > 90:
        table.fail("collection.live_percent_min", percent, "is more than 90", "40 is a good choice")
    if 0 < (seconds := configuration.drill.period_seconds) < 3600:
        table.fail("drill.period_seconds", seconds, "is less than an hour", "2592000 (30 days) is a good choice")


def _check_hosts(recall: RecallSettings, table: _Table) -> None:
    for number, text in enumerate(recall.never_hosts):
        try:
            ipaddress.ip_network(text)
        except ValueError:
            fix = "Write an address or a network, such as 10.1.2.3 or 10.1.0.0/16"
            table.fail(f"recall.never_hosts[{number}]", text, "is neither an address nor a network", fix)


def _check_receipts(receipts: ReceiptSettings, table: _Table) -> None:
    url = receipts.timestamp_url
    if url and not url.startswith(("http://", "https://")):
        table.fail(
            "receipts.timestamp_url", url, "is not an http or https URL", "Write for example https://tsa.example"
        )
    if receipts.files_max < 1:
        table.fail("receipts.files_max", receipts.files_max, "is less than one", "10000 is a good choice")


def _check(configuration: Configuration, table: _Table) -> None:
    """What one key cannot know of another."""
    spool, packs = configuration.spool, configuration.packs
    if not 0 < spool.low_watermark_percent < spool.high_watermark_percent <= 100:
        table.fail(
            "spool.low_watermark_percent",
            spool.low_watermark_percent,
            f"is not between 0 and spool.high_watermark_percent = {spool.high_watermark_percent}",
            "Choose low < high <= 100, for example 70 and 80",
        )
    if not MEBIBYTE <= packs.target_bytes <= 64 * MEBIBYTE:
        table.fail("packs.target_bytes", packs.target_bytes, "is not 1 to 64 MiB", "33554432 (32 MiB) is a good choice")
    if not 1 <= packs.compression_level <= 19:
        table.fail("packs.compression_level", packs.compression_level, "is not 1 to 19", "1 is fast, 3 a bit smaller")
    if packs.recall_parts_bytes_max < 64 * MEBIBYTE:
        table.fail(
            "packs.recall_parts_bytes_max",
            packs.recall_parts_bytes_max,
            "is less than 64 MiB",
            "2147483648 (2 GiB) is a good choice",
        )
    if (engine := configuration.file_system.engine) not in ENGINES:
        table.fail("file_system.engine", engine, "is not an engine", f"Choose one of {', '.join(ENGINES)}")
    _check_places(configuration, table)
    _check_periods(configuration, table)
    _check_receipts(configuration.receipts, table)
    _check_hosts(configuration.recall, table)
    domains.check(configuration.domain, table.fail)
    in_domain = configuration.domain.is_set
    shared.check(configuration.sharing, configuration.shares, table.fail, in_domain=in_domain)
    if packs.workers < 1:
        table.fail("packs.workers", packs.workers, "is less than one", "Write the number of processors")
    for number, target in enumerate(configuration.targets):
        place = target.url.removeprefix("file://")
        for folder in (configuration.mount, configuration.archive) if place != target.url else ():
            if os.path.commonpath([folder, os.path.normpath(place)]) == folder:
                table.fail(f"target[{number}].url", target.url, f"lies inside {folder}", "Name a folder outside of it")
    inside = os.path.commonpath([configuration.mount, configuration.archive])
    if inside in {configuration.mount, configuration.archive}:
        table.fail(
            "mount",
            configuration.mount,
            f"lies inside the archive {configuration.archive} or holds it",
            "Mount on a path outside the archive",
        )
