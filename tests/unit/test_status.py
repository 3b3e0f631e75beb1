"""What `vna status` says to people about recalls, and `vna target test` about a credential."""

import dataclasses
from types import SimpleNamespace

from appliance.cli import erasure, mirrors, quarantine
from appliance.cli.files import _recalls_shown, _state
from appliance.cli.targets import show_tested
from appliance.cli.versions import OUTCOMES
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.copies import Capabilities
from vnafs.domain.locks import Powers
from vnafs.fs.retrace import Outcome

RULES = {"name": "r", "recall_bytes_per_day": 10 * 1024 * 1024, "recall_requests_per_day": 0}


def test_budgets_and_refusals_are_shown_where_there_are_any():
    answer = {"repositories": [RULES], "recalled_today": [], "recalls_refused": {"RecallForbidden": 0}}
    assert _recalls_shown(answer) == []
    answer["recalled_today"] = [{"repository": "r", "size_bytes": 5 * 1024 * 1024, "requests": 7}]
    answer["recalls_refused"] = {"RecallBudgetSpent": 2, "RecallForbidden": 0, "Rehydrating": 1, "Other": 3}
    assert _recalls_shown(answer) == [
        "recalled today: r 5.0 MiB of 10.0 MiB, 7 requests of any",
        "recalls refused since mount began: 3 Other, 2 past a budget, 1 while bytes come back from an archive class",
    ]


def test_a_stub_whose_bytes_are_on_their_way_says_so():
    thaw = {"since": 0, "until": 1_700_000_000 * NANOSECONDS}
    assert _state({"state": "stub", "rehydrating": thaw}).startswith("rehydrating, expected by 2023-11-1")
    assert _state({"state": "replicated", "rehydrating": thaw}) == "replicated"
    assert _state({"state": "stub", "rehydrating": None}) == "stub"


class Paper:
    """A console that remembers."""

    def __init__(self):
        self.rows, self.lines = {}, []

    def table(self, _, rows):
        self.rows = dict(rows)

    def say(self, text):
        self.lines.append(text)


def test_what_a_credential_can_do_is_shown_with_what_to_do_about_it():
    paper = Paper()
    found = dataclasses.asdict(Capabilities(True, False, True, True, True, versioning=True, identity="x"))
    powers = Powers(can_delete=True, can_shorten=None, default_retention="30 days, governance")
    told = {"credential": dataclasses.asdict(powers), "warnings": powers.warnings(locks=False, versioning=False)}
    show_tested({**found, **told}, SimpleNamespace(console=paper))
    assert paper.rows["exclusive create multipart"] == "no"
    assert paper.rows["versioning"] == "yes"
    assert paper.rows["default retention"] == "30 days, governance"
    assert paper.rows["credential can delete"] == "yes"
    assert paper.rows["credential can shorten"] == "unknown, or nothing to ask"
    assert "identity" not in paper.rows
    (line,) = paper.lines
    assert line.startswith("Warning: The daily credential can delete")
    assert line.endswith("removal_credentials_file.")


def test_what_is_in_plain_text_left_out_or_held_on_a_mirror_is_said():
    quiet = {"name": "m", "in_plain": [], "left_out": [], "held": 0}
    assert mirrors.lines(quiet) == []
    plain, left_out, held = mirrors.lines({**quiet, "in_plain": ["a"], "left_out": ["b", "c"], "held": 7})
    assert plain == "PLAIN TEXT: mirror m has encrypted repositories as they are: a"
    assert left_out.startswith("mirror m leaves out encrypted repositories: b, c;")
    assert held.startswith("ALERT: mirror m keeps 7 names as they were")


def test_pending_erasures_are_said_with_what_the_oldest_waits_for():
    assert erasure.lines({"pending": 0, "oldest": None}) == []
    row = {"id": "2a", "since_ns": 1_700_000_000 * NANOSECONDS, "stage": "over", "frozen": False, "packs_left": 3}
    away = {"name": "b", "why": "no route", "locked_until_ns": 0}
    locked = {"name": "c", "why": "", "locked_until_ns": 1_800_000_000 * NANOSECONDS}
    (line,) = erasure.lines({"pending": 1, "oldest": {**row, "targets": [away]}})
    assert line.startswith("erasures pending: 1; 2a, since 2023-11-1")
    assert line.endswith(" waits for 3 packs to be emptied and target b (no route)")
    (line,) = erasure.lines({"pending": 2, "oldest": {**row, "packs_left": 0, "targets": [away, locked]}})
    assert "; the oldest, 2a, since 2023-11-1" in line
    assert "waits for targets b (no route), c (locked until 2027-01-1" in line
    (line,) = erasure.lines({"pending": 1, "oldest": {**row, "packs_left": 0, "targets": []}})
    assert line.endswith("waits for local files or a mirror: `vna erase --status 2a`")
    (line,) = erasure.lines({"pending": 1, "oldest": {**row, "frozen": True, "targets": [away]}})
    assert "tripwire" in line
    (line,) = erasure.lines({"pending": 1, "oldest": {**row, "stage": "taking", "targets": []}})
    assert line.endswith("is still being given its files")


def test_every_outcome_of_a_rollback_has_its_words():
    assert OUTCOMES.keys() == {outcome.value for outcome in Outcome}


def test_a_quarantine_is_spoken_of_once_there_is_something_in_it():
    assert quarantine.lines({"count": 0, "size_bytes": 0, "oldest_ns": 0}) == []
    (line,) = quarantine.lines({"count": 3, "size_bytes": 5 << 20, "oldest_ns": 1_700_000_000 * NANOSECONDS})
    assert line.startswith("in quarantine: 3 damaged things (5.0 MiB), the first since 2023-11-1")
