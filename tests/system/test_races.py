"""Writers, readers, renames, sealing, eviction and recall at the same time: never a wrong byte.

And input that nobody would think of: names of any bytes, files that lie about what they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import threading
import time

import pytest

from tests import studies
from tests.system.archives import AT_ONCE, an_archive, in_background, until
from tests.system.load import Daemons, noise

pytestmark = pytest.mark.system


@contextlib.contextmanager
def racing(folder, *tierd_words):
    """An archive whose tierd dawdles where a test wants it to."""
    with an_archive(folder, settings=AT_ONCE, serve=False) as archive:
        archive.start("mount")
        archive.start("tierd", *tierd_words)
        ask = Daemons(archive)
        try:
            yield archive, ask
        finally:
            ask.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with racing(tmp_path_factory.mktemp("races")) as found:
        yield found


def settle(archive, ask, paths, seconds=60):
    until(
        lambda: ask.all_done() and all(archive.state(path) in {"replicated", "stub"} for path in paths),
        f"replicated\n{archive.tail()}",
        seconds,
    )


def from_the_target(archive, ask, expected):
    """Every file is what it should be, here and on the target."""
    settle(archive, ask, expected)
    for path, data in expected.items():
        assert path.read_bytes() == data, path
    ask.evict_all(*expected)
    for path, data in expected.items():
        assert path.read_bytes() == data, path


def test_a_file_is_not_sealed_while_a_shared_mapping_outlives_its_close(site):
    archive, ask = site
    path = archive.share / "mapped"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    settle(archive, ask, [path])
    descriptor = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    for number in range(12):
        mapping[number : number + 5] = b"%05d" % number
        time.sleep(0.1)
        assert archive.state(path) == "open"
        assert ask.evict(path)["evicted"] == 0
    mapping[-5:] = b"ended"
    expected = bytes(mapping)
    mapping.close()
    from_the_target(archive, ask, {path: expected})


def test_writers_while_files_are_sealed_and_packed(tmp_path):
    """Each moment of sealing is stretched, and files are changed, cut and replaced in it."""
    for point in ("seal.leased", "seal.hashed", "pack.appended"):
        folder = tmp_path / point
        folder.mkdir()
        with racing(folder, "--fault", f"{point}=delay:0.15") as (archive, ask):
            expected = {archive.share / f"{n}": noise((point, n), 60_000 + n) for n in range(4)}
            expected[archive.share / "large"] = noise((point, "large"), 2_500_000)
            for path, data in expected.items():
                path.write_bytes(data)
            dice = random.Random(point)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                path = dice.choice([*expected])
                what = dice.randrange(4)
                old = expected[path]
                if what == 0:
                    at, data = dice.randrange(len(old) + 1), dice.randbytes(20)
                    with open(path, "r+b", buffering=0) as file:
                        file.seek(at)
                        file.write(data)
                    expected[path] = old[:at] + data + old[at + 20 :]
                elif what == 1:
                    size = dice.randrange(40_000, 50_000)
                    os.truncate(path, size)
                    expected[path] = old[:size] + bytes(max(0, size - len(old)))
                elif what == 2:
                    expected[path] = dice.randbytes(dice.randrange(50_000))
                    path.write_bytes(expected[path])
                else:
                    beside = path.with_name("beside")
                    expected[path] = dice.randbytes(dice.randrange(50_000))
                    beside.write_bytes(expected[path])
                    beside.rename(path)
                assert path.read_bytes() == expected[path]
                time.sleep(dice.choice((0, 0.05, 0.15, 0.3)))
            from_the_target(archive, ask, expected)


def test_rename_over_a_file_being_sealed_shows_the_old_or_the_new_one(tmp_path):
    with racing(tmp_path, "--fault", "seal.hashed=delay:0.1") as (archive, ask):
        path = archive.share / "current"
        versions = {hashlib.sha256(noise(n, 30_000 + n)).digest() for n in range(30)}
        path.write_bytes(noise(0, 30_000))

        def read():
            assert hashlib.sha256(path.read_bytes()).digest() in versions

        with in_background(read), in_background(read):
            for number in range(1, 30):
                beside = archive.share / "beside"
                beside.write_bytes(noise(number, 30_000 + number))
                os.rename(beside, path)
                time.sleep(0.15)
        from_the_target(archive, ask, {path: noise(29, 30_029)})


def is_torn(data, original):
    """A read that overlaps a truncation may end early or see zeros up to a page's end, as on any Linux file system."""
    starts = range(0, len(data), 4096)
    return len(data) <= len(original) and all(
        original[at : at + 4096].startswith(data[at : at + 4096].rstrip(b"\0")) for at in starts
    )


def test_truncate_and_overwrite_during_recall(tmp_path):
    with racing(tmp_path, "--fault", "recall.written=delay:0.2") as (archive, ask):
        expected = {archive.share / f"{n}": noise(n, 50_000 + n) for n in range(12)}
        for path, data in expected.items():
            path.write_bytes(data)
        settle(archive, ask, expected)
        ask.evict_all(*expected)
        seen: dict = {}

        def read(path):
            seen[path] = path.read_bytes()

        readers = [threading.Thread(target=read, args=(path,)) for path in expected]
        originals = dict(expected)
        for reader in readers:
            reader.start()
        time.sleep(0.1)
        for number, path in enumerate(originals):
            if number % 4 == 0:
                os.truncate(path, 0)
                expected[path] = b""
            elif number % 4 == 1:
                path.write_bytes(b"new")
                expected[path] = b"new"
            elif number % 4 == 2:
                os.truncate(path, 1_000)
                expected[path] = originals[path][:1_000]
        for reader in readers:
            reader.join()
        for path, data in seen.items():
            assert data == expected[path] or is_torn(data, originals[path]), (path, len(data), data[:8])
        from_the_target(archive, ask, expected)
        assert [entry.name for entry in os.scandir(archive.archive / "staging")] == []


def test_eviction_against_readers_and_writers(site):
    archive, ask = site
    folder = archive.share / "contended"
    folder.mkdir()
    paths = [folder / f"{n}" for n in range(12)]
    expected = {path: noise(path.name, 20_000) for path in paths}
    for path, data in expected.items():
        path.write_bytes(data)
    settle(archive, ask, paths)
    counts = {"evicted": 0, "read": 0, "written": 0}
    dice = random.Random(5)
    readable, changing = paths[:8], paths[8:]

    def evict():
        here = Daemons(archive)
        try:
            for _ in range(20):
                counts["evicted"] += here.evict(*paths)["evicted"]
        finally:
            here.close()

    def read():
        path = dice.choice(readable)
        with open(path, "rb") as file:
            first = file.read(7_000)
            time.sleep(dice.choice((0, 0.002)))
            assert first + file.read() == expected[path]
        counts["read"] += 1

    def write():
        path = dice.choice(changing)
        old = expected[path]
        at = dice.randrange(len(old) - 10)
        new = old[:at] + dice.randbytes(10) + old[at + 10 :]
        with open(path, "r+b", buffering=0) as file:
            assert file.read() == old
            file.seek(at)
            file.write(new[at : at + 10])
        expected[path] = new
        counts["written"] += 1
        time.sleep(0.02)

    with in_background(evict), in_background(read), in_background(read), in_background(write):
        time.sleep(8)
    assert min(counts.values()) > 20, counts
    from_the_target(archive, ask, expected)


def any_names():
    """Each byte that may be in a name alone, and names of 255 bytes that hold all of them."""
    allowed = [bytes([value]) for value in range(1, 256) if value != ord("/")]
    single = [name for name in allowed if name != b"."]
    every = b"".join(allowed)
    long = [(every * 2)[start : start + 255] for start in (0, 100, 200)]
    return [*single, *long, b"\xff" * 255, b" leading and trailing ", b"...", b"-rf", b"new\nline", b"\xed\xa0\x80"]


def test_names_of_any_bytes_go_through_everything(site):
    archive, ask = site
    folder = os.fsencode(archive.share / "names")
    os.mkdir(folder)
    odd = folder + b"/" + b"\x01\xfe\n" * 85
    os.mkdir(odd)
    places = {os.path.join(folder, name): b"in " + name for name in any_names()}
    places |= {os.path.join(odd, name): b"below " + name for name in any_names()[-8:]}
    for place, data in places.items():
        with open(place, "wb") as file:
            file.write(data)
    until(ask.all_done, "all of them are replicated", 60)
    assert set(os.listdir(folder)) == {*any_names(), os.path.basename(odd)}
    archive.vna("status", os.fsdecode(next(iter(places))))
    archive.evict(os.fsdecode(folder))
    for place, data in places.items():
        assert os.getxattr(place, "user.vna.state") == b"stub"
        with open(place, "rb") as file:
            assert file.read() == data
    long = os.path.join(folder, b"\xff" * 255)
    os.rename(long, os.path.join(odd, b"\xfe" * 255))
    with pytest.raises(OSError, match="too long"):
        open(os.path.join(folder, b"x" * 256), "wb").close()


def odd_objects():
    """DICOM that was cut, overwritten and taught to lie, and other things in its clothes."""
    dice = random.Random(11)
    found = []
    sources = [open(path, "rb").read() for path in studies.real_dicom_files() if os.path.getsize(path) < 300_000]  # noqa: SIM115
    sources.append(next(iter(studies.synthetic_ct_study(slices=1))).data)
    for number in range(120):
        data = bytearray(dice.choice(sources))
        match number % 6:
            case 0:
                del data[dice.randrange(len(data)) :]
            case 1:
                for _ in range(30):
                    data[dice.randrange(len(data))] = dice.randrange(256)
            case 2:  # lengths that lie
                for _ in range(4):
                    at = dice.randrange(132, max(133, min(len(data) - 4, 2_000)))
                    data[at : at + 4] = dice.choice((b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", b"\0\0\0\0"))
            case 3:  # a part is missing, a part is there twice
                at = dice.randrange(len(data))
                data[at : at + dice.randrange(5_000)] = data[at // 2 : at // 2 + dice.randrange(5_000)]
            case 4:
                data = data[:132] + dice.randbytes(dice.randrange(20_000))
            case 5:
                at = data.find(b"\xe0\x7f\x10\x00")
                data = data[: at + 4 if at > 0 else 200] + data
        found.append(bytes(data))
    return found


def test_damaged_and_lying_dicom_comes_back_byte_for_byte(site):
    archive, ask = site
    folder = archive.share / "odd"
    folder.mkdir()
    expected = {folder / f"{n}.dcm": data for n, data in enumerate(odd_objects())}
    for path, data in expected.items():
        path.write_bytes(data)
    from_the_target(archive, ask, expected)
    assert "seal.later" not in archive.tail(10_000)
