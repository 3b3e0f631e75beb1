"""Who may make bytes come back: by program, by user; refusals are counted, and logged now and then."""

import logging
import os
import subprocess
import threading

import pytest

from tests.semantics.trees import HandClock
from tests.system.archives import until
from vnafs.domain.errors import RecallForbidden, Rehydrating
from vnafs.fs.caller import Caller
from vnafs.fuse.admission import LOG_SECONDS, Admission


def a_process(proc, pid, name, group=None):
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "comm").write_bytes(name + b"\n")
    (folder / "status").write_bytes(b"Name:\tx\nTgid:\t%d\n" % (group or pid))


def test_a_program_is_refused_by_the_name_it_runs_under(tmp_path):
    a_process(tmp_path, 7, b"updatedb")
    a_process(tmp_path, 8, b"viewer")
    admission = Admission(["updatedb"], proc=str(tmp_path))
    with pytest.raises(RecallForbidden, match="process updatedb"):
        admission.check(Caller(1000, 1000, 7))
    admission.check(Caller(1000, 1000, 8))


def test_a_thread_is_refused_for_its_process(tmp_path):
    a_process(tmp_path, 7, b"baloo_file_extr")
    a_process(tmp_path, 9, b"pool-3", group=7)
    with pytest.raises(RecallForbidden, match="baloo_file_extr"):
        Admission(["baloo_file_extractor"], proc=str(tmp_path)).check(Caller(0, 0, 9))


def test_names_are_compared_as_the_kernel_cuts_them(tmp_path):
    a_process(tmp_path, 7, b"tracker-extract")
    with pytest.raises(RecallForbidden):
        Admission(["tracker-extract-3"], proc=str(tmp_path)).check(Caller(0, 0, 7))


def test_a_user_is_refused_by_number():
    admission = Admission(never_uids=[33])
    with pytest.raises(RecallForbidden, match="user 33"):
        admission.check(Caller(33, 33))
    admission.check(Caller(0, 0))


@pytest.mark.parametrize("pid", [0, 12345])
def test_a_process_that_nobody_can_see_is_not_refused(tmp_path, pid):
    Admission(["find"], proc=str(tmp_path)).check(Caller(0, 0, pid))


def name_of(process):
    with open(f"/proc/{process}/comm") as file:
        return file.read().strip()


def test_the_names_of_real_processes_and_threads_are_found():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            until(lambda: name_of(process.pid) == "sleep", "it is itself")  # until execve(2) it has our name
            with pytest.raises(RecallForbidden, match="process sleep"):
                Admission(["sleep"]).check(Caller(0, 0, process.pid))
        finally:
            process.kill()
    own = name_of("self")
    found = []

    def check():
        try:
            Admission([own]).check(Caller(0, 0, threading.get_native_id()))
        except RecallForbidden as refused:
            found.append(refused)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert len(found) == 1
    Admission([own + "x"]).check(Caller(0, 0, os.getpid()))


def test_refusals_are_counted_by_reason_and_a_storm_leaves_few_lines(caplog):
    clock = HandClock()
    admission = Admission(clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            admission.note(RecallForbidden(who="x", why="y"))
        admission.note(Rehydrating(what="x", since="a", until="b"))
        clock.sleep(LOG_SECONDS)
        admission.note(RecallForbidden(who="x", why="y"))
    assert admission.refused() == {"RecallForbidden": 1001, "Rehydrating": 1}
    lines = [(record.code, record.times) for record in caplog.records if record.message == "recall.refused"]
    assert lines == [("RecallForbidden", 1), ("Rehydrating", 1), ("RecallForbidden", 1000)]
