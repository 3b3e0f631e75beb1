"""Names on a plain mirror."""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

from vnafs.domain.plainnames import LONG, METADATA, escaped, metadata_name, object_name, unescaped


def test_ordinary_names_stay_what_they_are() -> None:
    for name in ("1.2.840.113619", "Müller^Änne (2).dcm", "日本", "a b", ".hidden", "x.vna", "CON", "a:b*c?"):
        assert escaped(name.encode()) == name


def test_escaping_is_reversible_so_no_two_names_are_one() -> None:
    names = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
    names += [bytes([first, second]) for first in (0x25, 0x2E, 0x41, 0xC3, 0xE2, 0xFF) for second in range(128, 256)]
    names += [os.urandom(9).replace(b"/", b"_") for _ in range(2000)]
    names += [b"%2Evna", b".vna", b".vnafs-mirror.json", METADATA.encode(), b"...", b"a.", b"a ", b" "]
    texts = {escaped(name) for name in names}
    assert len(texts) == len(set(names))
    for name in names:
        text = escaped(name)
        assert unescaped(text) == unquote_to_bytes(text) == name
        assert not text.startswith(".vna")
        assert not text.endswith((".", " "))
        assert all(character.isprintable() or character.isspace() or ord(character) > 0xA0 for character in text)
        assert not any(ord(character) < 0x20 or character == "\\" for character in text)


def test_names_that_are_too_long_have_one_of_their_own() -> None:
    assert object_name([b"r", b"n" * 255]) == "r/" + "n" * 255
    assert object_name([b"r", b"\xff" * 86]).startswith(f"{LONG}/")  # 258 when escaped
    deep = [b"r", *[b"x" * 99] * 9]
    assert len(object_name(deep[:-1])) < 900
    assert object_name(deep).startswith(f"{LONG}/")
    assert object_name(deep) != object_name([*deep[:-1], b"y" * 99])
    assert metadata_name(deep) == object_name(deep) + ".jsonl"
    assert object_name([b"r"] * 200) == "r/" * 199 + "r"
    assert object_name([b"r"] * 201).startswith(f"{LONG}/")
    assert metadata_name([b"r"]) == f"r/{METADATA}"
    assert metadata_name([]) == METADATA
