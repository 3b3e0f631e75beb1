"""The main job on real input: files in, verified copies out, files back."""

import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess

import pytest

from tests import studies
from tests.servers.fixtures import azurite_server, moto_server, radosgw_server  # noqa: F401 - fixtures work by name
from tests.system.archives import an_archive, until

pytestmark = pytest.mark.system


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def real_input():
    """Real DICOM of every kind at hand and files that are none, by name."""
    found = {}
    for path in studies.real_dicom_files():
        with open(path, "rb") as file:
            found[f"{len(found):03d}-{os.path.basename(path)}"] = file.read()
    found |= {item.name: item.data for item in studies.real_ct_study()[:12]}
    found |= {f"other-{item.name}": item.data for item in studies.other_files()}
    return found


def copy_in(archive, files, folder="study"):
    place = archive.share / folder
    place.mkdir(exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


def test_real_files_come_back_equal_after_eviction(tmp_path):
    files = real_input()
    assert len(files) > 60
    with an_archive(tmp_path) as archive:
        place = copy_in(archive, files)
        archive.wait()
        archive.evict(place)
        for name in files:
            assert archive.state(place / name) == "stub"
            assert (place / name).stat().st_blocks == 0
        for name, data in files.items():
            assert (place / name).read_bytes() == data, name
            assert archive.state(place / name) == ("replicated")


def test_each_file_tells_its_state_hash_copies_and_level(tmp_path):
    with an_archive(tmp_path) as archive:
        path = archive.share / "a"
        path.write_bytes(b"x" * 10_000)
        archive.wait()
        until(lambda: archive.state(path) == "replicated", "replicated")
        assert os.getxattr(path, "user.vna.sha256").decode() == hashlib.sha256(b"x" * 10_000).hexdigest()
        (copy,) = json.loads(os.getxattr(path, "user.vna.copies"))
        assert copy["target"] == "one"
        assert os.getxattr(path, "user.vna.ack") == b"durable"
        assert os.listxattr(path) == []
        subprocess.run(["cp", "-a", path, archive.share / "b"], check=True)
        assert (archive.share / "b").read_bytes() == path.read_bytes()


def test_a_study_on_two_servers_comes_back_from_either(tmp_path, radosgw_server, azurite_server):  # noqa: F811
    """Ceph's gateway and Azurite; each alone is enough."""
    s3, azure = radosgw_server, azurite_server
    targets = {"ceph": s3.target_url(s3.make_bucket()), "azure": azure.target_url(azure.make_container())}
    files = {item.name: item.data for item in studies.real_ct_study()[:20]}
    with an_archive(tmp_path, targets, environ={**s3.environ(), **azure.environ()}) as archive:
        place = copy_in(archive, files)
        archive.wait(copies=2)
        assert archive.vna("verify")["checked"] >= 2
        for gone in targets:
            archive.evict(place)
            shutil.rmtree(archive.archive / "cache", ignore_errors=True)
            (archive.archive / "cache").mkdir()
            assert {name: (place / name).read_bytes() for name in files} == files, gone


def test_a_study_on_moto_comes_back(tmp_path, moto_server):  # noqa: F811
    targets = {"moto": moto_server.target_url(moto_server.make_bucket())}
    files = {item.name: item.data for item in studies.real_ct_study()[:5]}
    with an_archive(tmp_path, targets, environ=moto_server.environ()) as archive:
        place = copy_in(archive, files)
        archive.wait()
        archive.evict(place)
        assert {name: (place / name).read_bytes() for name in files} == files


def stored_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.pack"))


def test_a_corrected_header_and_an_identical_export_cost_next_to_nothing(tmp_path):
    originals = {item.name: item.data for item in studies.synthetic_ct_study(slices=40)}
    total = sum(map(len, originals.values()))
    with an_archive(tmp_path) as archive:
        copy_in(archive, originals, "first")
        archive.wait()
        first = stored_bytes(tmp_path / "one")
        copy_in(archive, originals, "again")
        archive.wait()
        again = stored_bytes(tmp_path / "one")
        corrected = {name: studies.with_corrected_header(data) for name, data in originals.items()}
        assert all(corrected[name] != originals[name] for name in originals)
        place = copy_in(archive, corrected, "corrected")
        archive.wait()
        third = stored_bytes(tmp_path / "one")
        assert (again - first) <= 0.001 * total
        assert (third - again) <= 0.01 * first
        archive.evict(archive.share)
        assert {name: (place / name).read_bytes() for name in corrected} == corrected


def test_a_new_target_is_back_filled_and_the_only_copy_is_not_removable(tmp_path):
    with an_archive(tmp_path) as archive:
        place = copy_in(archive, {"a": b"a" * 100_000, "b": b"b" * 5})
        archive.wait()
        assert archive.vna("target", "remove", "one", check=3)["error"]["code"] == "Refused"
        archive.vna("target", "add", "two", f"file://{tmp_path}/two")
        archive.wait(copies=2)
        archive.vna("target", "remove", "one")
        shutil.rmtree(tmp_path / "one")
        archive.evict(place)
        assert (place / "a").read_bytes() == b"a" * 100_000
        assert [row["name"] for row in archive.vna("target", "list")] == ["two"]


def test_a_large_stub_is_read_by_range_and_recalled_to_be_written(tmp_path):
    settings = """
[file_system]
quiet_seconds = 0.3
recall_whole_bytes_max = 1048576
[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0
[packs]
age_seconds_max = 0.5
"""
    slide = tmp_path / "slide"
    studies.a_large_slide(str(slide), 96 * 1024 * 1024)
    with an_archive(tmp_path, settings=settings) as archive:
        path = archive.share / "slide.svs"
        shutil.copyfile(slide, path)
        archive.wait()
        archive.evict(path)
        with open(path, "rb") as far, open(slide, "rb") as near:
            for offset in (0, 50_000_001, 96 * 1024 * 1024 - 10):
                far.seek(offset)
                near.seek(offset)
                assert far.read(100_000) == near.read(100_000)
        assert archive.state(path) == "stub"
        with open(path, "r+b") as changed:
            changed.seek(7)
            changed.write(b"changed")
        with open(slide, "r+b") as changed:
            changed.seek(7)
            changed.write(b"changed")
        assert sha256(path) == sha256(slide)
        archive.wait()
        archive.evict(path)
        archive.vna("recall", path)
        assert archive.state(path) == "replicated"
        assert sha256(path) == sha256(slide)


def test_repositories_are_added_changed_and_removed_and_the_root_refuses_everything_else(tmp_path):
    with an_archive(tmp_path) as archive:
        archive.vna("repository", "add", "radiology", "--ack", "written")
        (archive.mount / "radiology" / "x").write_bytes(b"x")
        assert os.getxattr(archive.mount / "radiology" / "x", "user.vna.ack") == b"written"
        with pytest.raises(PermissionError):
            (archive.mount / "folder").mkdir()
        with pytest.raises(PermissionError):
            (archive.mount / "file").write_bytes(b"")
        assert "root_refused" in archive.log.read_text()
        with pytest.raises(OSError, match="cross-device"):
            os.rename(archive.mount / "radiology" / "x", archive.share / "x")
        assert archive.vna("repository", "remove", "radiology", check=3)
        (archive.mount / "radiology" / "x").unlink()
        archive.vna("repository", "set", "radiology", "--copies", "2")
        archive.vna("repository", "remove", "radiology")
        assert [row["name"] for row in archive.vna("repository", "list")] == ["archive"]


def test_a_second_daemon_on_the_same_archive_is_refused(tmp_path):
    with an_archive(tmp_path) as archive:
        assert archive.vna("tierd", check=3)["error"]["code"] == "ArchiveBusy"
        assert archive.vna("mount", check=3)["error"]["code"] == "ArchiveBusy"


def test_a_wrong_configuration_is_refused_with_key_value_and_fix(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        config = archive.archive / "vnafs.toml"
        config.write_text(config.read_text().replace("quiet_seconds = 0.3", 'quiet_seconds = "soon"'))
        message = archive.vna("serve", check=2)["error"]["message"]
        assert all(part in message for part in ("file_system.quiet_seconds", "'soon'", "float"))


def test_lost_lists_what_has_no_copy_yet(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        archive.start("mount")
        (archive.share / "precious").write_bytes(b"p" * 1000)
        tierd = archive.start("tierd")
        archive.wait()
        assert archive.vna("lost") == []
        with open(archive.share / "being-written", "wb") as file:
            file.write(b"half")
            file.flush()
            (row,) = archive.vna("lost")
            assert row["path"] == "archive/being-written"
        assert tierd.poll() is None


def test_a_target_missing_from_the_configuration_still_counts_and_one_that_moved_is_refused(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        config = archive.archive / "vnafs.toml"
        original = config.read_text()
        archive.start("mount")
        tierd = archive.start("tierd")
        place = copy_in(archive, {"a": b"a" * 100_000})
        archive.wait()
        archive.evict(place)
        config.write_text(original[: original.index("[[target]]")])
        archive.vna("repository", "set", "archive", "--copies", "1")  # tierd follows the file as it is now
        assert archive.vna("target", "list") == []
        assert json.loads(os.getxattr(place / "a", "user.vna.copies"))[0]["target"] == "one"
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            (place / "a").read_bytes()
        config.write_text(original.replace("/one", "/elsewhere"))
        moved = archive.vna("repository", "set", "archive", "--copies", "1", check=2)
        assert "its copies are at" in moved["error"]["message"]
        config.write_text(original)
        archive.vna("repository", "set", "archive", "--copies", "1")
        assert (place / "a").read_bytes() == b"a" * 100_000
        assert tierd.poll() is None


def test_a_reader_waits_while_tierd_restarts(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        archive.start("mount")
        tierd = archive.start("tierd")
        place = copy_in(archive, {"a": b"a" * 100_000})
        archive.wait()
        archive.evict(place)
        tierd.kill()
        tierd.wait()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit((place / "a").read_bytes)
            with pytest.raises(concurrent.futures.TimeoutError):
                reading.result(timeout=1.0)
            archive.start("tierd")
            assert reading.result(timeout=30) == b"a" * 100_000
