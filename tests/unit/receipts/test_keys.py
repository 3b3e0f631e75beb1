"""The key of receipts: made once, private, never replaced by another."""

import os
import stat

import pytest

from vnafs.domain.errors import Damaged
from vnafs.receipts import jws, keys


def test_the_key_is_made_once_and_readable_by_its_owner_alone(tmp_path):
    folder = str(tmp_path / "keys")
    first, first_is_new = keys.ensure(folder)
    second, second_is_new = keys.ensure(folder)
    assert (first_is_new, second_is_new) == (True, False)
    assert jws.key_id(first.public_key()) == jws.key_id(second.public_key())
    assert os.listdir(folder) == [keys.FILE_NAME]
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(folder, keys.FILE_NAME)).st_mode) == 0o600


def test_a_key_that_cannot_be_read_is_not_replaced(tmp_path):
    (tmp_path / keys.FILE_NAME).write_text("nonsense")
    with pytest.raises(Damaged):
        keys.ensure(str(tmp_path))
    assert (tmp_path / keys.FILE_NAME).read_text() == "nonsense"


def test_a_key_is_found_taken_out_and_the_same_from_its_bytes(tmp_path):
    assert keys.find(str(tmp_path)) is None
    key, _ = keys.ensure(str(tmp_path))
    os.utime(tmp_path / keys.FILE_NAME, ns=(1, 1_700_000_000_000_000_000))
    found, written = keys.find(str(tmp_path))
    assert written == 1_700_000_000_000_000_000
    assert keys.secret_of(found) == keys.secret_of(key)
    assert keys.public_bytes(keys.private_key(keys.secret_of(key))) == keys.public_bytes(key)
    keys.remove(str(tmp_path))
    keys.remove(str(tmp_path))
    assert os.listdir(tmp_path) == []
