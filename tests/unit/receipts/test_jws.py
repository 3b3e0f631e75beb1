"""Canonical JSON and envelopes, beside what others make of them."""

import json
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as jose
from joserfc.jwk import OKPKey

from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.receipts import jws

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(codec="ascii"), max_size=8)
NUMBERS = st.integers(-jws.INTEGER_MAX, jws.INTEGER_MAX)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_json_is_that_of_rfc_8785(value):
    assert jws.canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [1.5, 2**53, {"ä": 1}, {"a": b"bytes"}, [float("nan")], {1: 2}])
def test_what_canonical_json_would_change_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        jws.canonical(value)


@pytest.fixture(scope="module")
def key():
    return Ed25519PrivateKey.generate()


def test_an_envelope_gives_back_what_was_signed(key):
    assert jws.opened(jws.sign({"b": 1, "a": "ü"}, key), key.public_key()) == {"a": "ü", "b": 1}


def test_the_key_id_is_the_thumbprint_that_others_compute(key):
    assert jws.key_id(key.public_key()) == OKPKey.import_key(jws.jwk(key.public_key())).thumbprint()


def test_an_envelope_that_another_library_signed_is_opened(key):
    protected = {"alg": "EdDSA", "typ": jws.TYPE}
    member: Any = {"protected": protected}
    raw = OKPKey.import_key({**jws.jwk(key.public_key()), "d": jws.encode(key.private_bytes_raw())})
    envelope = jose.serialize_json(member, json.dumps({"x": 1}), raw, algorithms=["EdDSA"])
    assert jws.opened(envelope, key.public_key()) == {"x": 1}


@pytest.mark.parametrize("member", ["payload", "protected", "signature"])
def test_any_changed_character_is_refused(key, member):
    envelope = jws.sign({"a": "some text that is long enough to look at"}, key)
    for at in range(len(envelope[member])):
        for new in "A-":
            if envelope[member][at] != new:
                changed = envelope[member][:at] + new + envelope[member][at + 1 :]
                with pytest.raises((Damaged, FormatUnknown)):
                    jws.opened({**envelope, member: changed}, key.public_key())


@pytest.mark.parametrize(
    "envelope",
    [
        {},
        {"payload": 7, "protected": [], "signature": None},
        {"payload": "a b", "protected": "e30", "signature": "AA"},
        {"payload": "W10", "protected": "W10", "signature": ""},
    ],
)
def test_what_is_no_envelope_is_refused(key, envelope):
    with pytest.raises((Damaged, FormatUnknown)):
        jws.opened(envelope, key.public_key())


@pytest.mark.parametrize(
    "header", [{"alg": "none", "typ": jws.TYPE}, {"alg": "HS256", "typ": jws.TYPE}, {"alg": "EdDSA"}]
)
def test_an_algorithm_or_type_that_is_not_ours_is_refused_by_name(key, header):
    envelope = jws.sign({"a": 1}, key)
    protected = jws.encode(jws.canonical(header))
    signature = jws.encode(key.sign(f"{protected}.{envelope['payload']}".encode()))
    with pytest.raises(FormatUnknown):
        jws.opened({**envelope, "protected": protected, "signature": signature}, key.public_key())
