"""The key of receipts: made once, private, never replaced by another."""

import os
import stat

import pytest

from vnafs.domain.errors import Damaged, InvalidArgument, NotFound
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


def test_a_public_key_comes_back_from_its_pem(tmp_path):
    key = keys.ensure(str(tmp_path))[0].public_key()
    (tmp_path / "public.pem").write_text(keys.public_pem(key))
    assert jws.jwk(keys.read_public(str(tmp_path / "public.pem"))) == jws.jwk(key)
    with pytest.raises(NotFound):
        keys.read_public(str(tmp_path / "none"))
    with pytest.raises(InvalidArgument):
        keys.read_public(str(tmp_path / keys.FILE_NAME))
