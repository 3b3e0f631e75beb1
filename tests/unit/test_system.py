"""Which engine serves a mount where the administrator leaves it to us."""

from __future__ import annotations

import pytest

from appliance.system import engine_for

ROOT = "Name:\tvna\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n"
IN_A_CONTAINER = "Name:\tvna\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n"
NOBODY = "Name:\tvna\nCapEff:\t0000000000000000\n"


@pytest.mark.parametrize(
    ("release", "status", "engine"),
    [
        ("6.12.41+deb13-amd64", ROOT, "kernel"),
        ("6.9.0", ROOT, "kernel"),
        ("7.0-rc1", ROOT, "kernel"),
        ("6.8.12-generic", ROOT, "pyfuse3"),
        ("6.1.0-37-amd64", ROOT, "pyfuse3"),
        ("6.12.41+deb13-amd64", IN_A_CONTAINER, "pyfuse3"),
        ("6.12.41+deb13-amd64", NOBODY, "pyfuse3"),
        ("unheard of", ROOT, "pyfuse3"),
        ("6.12.41", "", "pyfuse3"),
    ],
)
def test_the_kernel_serves_where_it_is_new_enough_and_we_may_ask_it_to(release, status, engine):
    assert engine_for("auto", release=release, status=status) == engine


def test_an_administrator_who_chose_has_chosen():
    assert engine_for("pyfuse3", release="6.12.0", status=ROOT) == "pyfuse3"
    assert engine_for("kernel", release="6.1.0", status=NOBODY) == "kernel"


def test_this_machine_is_understood():
    assert engine_for("auto") in {"kernel", "pyfuse3"}
