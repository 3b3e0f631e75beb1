"""What `vna serve` and a service manager say to each other, and the units that are rendered."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.service.systemd import ServiceManager, manager_of
from appliance.service.units import MOUNT, SERVICE, units
from vnafs.domain.errors import Refused


def test_what_was_given_to_another_process_is_not_taken() -> None:
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "PATH": "/bin"}
    manager, rest = manager_of(environ)
    assert manager.given == {}
    assert rest == {"PATH": "/bin"}, "and nobody who is started from here takes it"


def test_without_a_service_manager_nothing_is_said() -> None:
    manager = ServiceManager()
    manager.ready()
    manager.keep("a", 0)
    assert not manager.listens


def test_a_descriptor_is_sent_with_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "n"))
        reading, writing = os.pipe()
        ServiceManager(str(tmp_path / "n")).keep("vnafs-mount", writing)
        words, [copy], _, _ = socket.recv_fds(end, 4096, 4)
        os.write(copy, b"the same pipe")
        assert os.read(reading, 100) == b"the same pipe"
        assert words.decode().split("\n") == ["FDSTORE=1", "FDNAME=vnafs-mount", "FDPOLL=0"]
        for one in (reading, writing, copy):
            os.close(one)


def test_an_abstract_address_begins_with_a_zero_byte() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0vnafs-test-{os.getpid()}")
        ServiceManager(f"@vnafs-test-{os.getpid()}").ready()
        assert end.recv(100) == b"READY=1"


def test_a_service_manager_that_is_gone_holds_up_nobody(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).ready()


def test_the_same_archive_gives_the_same_units() -> None:
    assert units("/srv/a", "/opt/python") == units("/srv/a", "/opt/python")
    assert set(units("/srv/a", "/opt/python")) == {SERVICE, MOUNT}


def test_words_of_a_unit_keep_their_characters() -> None:
    text = units("/srv/100% of $it", "/opt/python")[SERVICE]
    assert '--archive "/srv/100%% of $$it"' in text
    assert 'RequiresMountsFor="/srv/100%% of $it"' in text, "where systemd knows no variables"


def test_units_of_another_archive_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render = ["service", "render", "--into", str(tmp_path / "units"), "--archive"]
    for name in "ab":
        assert main(["init", str(tmp_path / name), "--mount", str(tmp_path / f"{name}.mnt")]) == 0
    assert main([*render, str(tmp_path / "a")]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "units").iterdir()}
    assert main([*render, str(tmp_path / "b")]) == 3
    assert f"it serves {tmp_path / 'a'}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "units").iterdir()} == before
    assert main([*render, str(tmp_path / "a")]) == 0


@pytest.mark.parametrize("archive", ['/srv/"a"', "/srv/a\nExecStart=x", "/srv/a\\b"])
def test_a_path_that_a_unit_cannot_name_is_refused(archive: str) -> None:
    with pytest.raises(Refused):
        units(archive, "/opt/python")


@pytest.mark.parametrize("option", ["ProtectSystem", "PrivateTmp", "ProtectHome", "ReadWritePaths", "PrivateDevices"])
def test_a_service_has_no_view_of_the_file_system_of_its_own(option: str) -> None:
    assert not [text for text in units("/srv/a", "/opt/python").values() if f"\n{option}=" in text]
