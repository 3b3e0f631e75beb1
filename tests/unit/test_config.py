import dataclasses
import re
from pathlib import Path

import pytest

from appliance import config
from appliance.daemons.tierd import destinations
from appliance.domain.settings import DomainSettings
from appliance.shares.settings import ShareSettings, SharingSettings
from vnafs.domain.errors import ConfigurationInvalid

SECTIONS = {
    "[file_system]": config.FileSystemSettings,
    "[spool]": config.SpoolSettings,
    "[packs]": config.PackSettings,
    "[manifests]": config.ManifestSettings,
    "[scrub]": config.ScrubSettings,
    "[collection]": config.CollectionSettings,
    "[encryption]": config.EncryptionSettings,
    "[drill]": config.DrillSettings,
    "[receipts]": config.ReceiptSettings,
    "[recall]": config.RecallSettings,
    "[sharing]": SharingSettings,
    "[domain]": DomainSettings,
    "[[target]]": config.TargetSettings,
    "[[mirror]]": config.MirrorSettings,
    "[[share]]": ShareSettings,
}


def parse(**document):
    return config.parse({"mount": "/mnt/x", **document}, archive="/srv/archive", file="vnafs.toml")


def refused(**document):
    with pytest.raises(ConfigurationInvalid) as caught:
        parse(**document)
    return str(caught.value)


def test_an_empty_file_but_for_the_mount_gives_every_default():
    found = parse()
    assert found.file_system == config.FileSystemSettings()
    assert found.targets == ()


@pytest.mark.parametrize(
    ("document", "key", "value"),
    [
        ({"mount": "relative"}, "mount", "'relative'"),
        ({"mount": "/srv/archive/mnt"}, "mount", "/srv/archive/mnt"),
        ({"mount": "/srv"}, "mount", "/srv"),
        ({"version": 2}, "version", "2"),
        ({"surprise": 1}, "surprise", "1"),
        ({"spool": {"surprise": 1}}, "spool.surprise", "1"),
        ({"spool": 7}, "spool", "7"),
        ({"packs": {"workers": "two"}}, "packs.workers", "'two'"),
        ({"packs": {"workers": 0}}, "packs.workers", "0"),
        ({"packs": {"target_bytes": 5}}, "packs.target_bytes", "5"),
        ({"packs": {"compression_level": 99}}, "packs.compression_level", "99"),
        ({"spool": {"reserve_bytes": -1}}, "spool.reserve_bytes", "-1"),
        ({"spool": {"low_watermark_percent": 90.0}}, "spool.low_watermark_percent", "90.0"),
        ({"file_system": {"allow_other": "yes"}}, "file_system.allow_other", "'yes'"),
        ({"receipts": {"timestamp_url": "ftp://x"}}, "receipts.timestamp_url", "'ftp://x'"),
        ({"receipts": {"files_max": 0}}, "receipts.files_max", "0"),
        ({"recall": {"never_processes": "find"}}, "recall.never_processes", "'find'"),
        ({"recall": {"never_uids": ["root"]}}, "recall.never_uids", "['root']"),
        ({"recall": {"never_hosts": ["10.1.2.3", "ct.example"]}}, "recall.never_hosts[1]", "ct.example"),
        ({"target": [{"name": "a"}]}, "target[0].url", "None"),
        ({"target": [{"name": "a b", "url": "file:///x"}]}, "target[0].name", "'a b'"),
        ({"target": [{"name": "a", "url": "file:///x"}] * 2}, "target[1].name", "'a'"),
        ({"target": [{"name": "a", "url": "file:///x", "transfers_max": 0}]}, "target[0].transfers_max", "0"),
        ({"target": {"name": "a"}}, "target", "a"),
        (
            {"target": [{"name": "a", "url": "file:///x"}, {"name": "b", "url": "file:///x"}]},
            "target[1].url",
            "file:///x",
        ),
        ({"target": [{"name": "a", "url": "file:///srv/archive/t"}]}, "target[0].url", "file:///srv/archive/t"),
        ({"target": [{"name": "a", "url": "file:///mnt/x"}]}, "target[0].url", "file:///mnt/x"),
        ({"mirror": [{"name": "a b", "url": "file:///x"}]}, "mirror[0].name", "'a b'"),
        ({"mirror": [{"name": "a", "url": "file:///x"}, {"name": "a", "url": "file:///y"}]}, "mirror[1].name", "'a'"),
        ({"mirror": [{"name": "a", "url": "ftp://acc/con"}]}, "mirror[0].url", "ftp://acc/con"),
        (
            {
                "target": [{"name": "t", "url": "azure://acc/con/x"}],
                "mirror": [{"name": "a", "url": "azure://acc/con"}],
            },
            "mirror[0].url",
            "azure://acc/con",
        ),
        ({"mirror": [{"name": "a", "url": "file:///x", "removals": "maybe"}]}, "mirror[0].removals", "'maybe'"),
        ({"mirror": [{"name": "a", "url": "file:///x", "transfers_max": 0}]}, "mirror[0].transfers_max", "0"),
        ({"mirror": [{"name": "a", "url": "file:///x", "repositories": "r"}]}, "mirror[0].repositories", "'r'"),
        ({"mirror": [{"name": "a", "url": "file:///srv/archive/m"}]}, "mirror[0].url", "file:///srv/archive/m"),
        ({"mirror": [{"name": "a", "url": "file:///srv"}]}, "mirror[0].url", "file:///srv"),
        (
            {"target": [{"name": "t", "url": "s3://bucket/x/y"}], "mirror": [{"name": "a", "url": "s3://bucket/x"}]},
            "mirror[0].url",
            "s3://bucket/x",
        ),
        (
            {"mirror": [{"name": "a", "url": "file:///x/"}, {"name": "b", "url": "file:///x/y"}]},
            "mirror[1].url",
            "file:///x/y",
        ),
    ],
)
def test_a_wrong_value_names_file_key_value_and_fix(document, key, value):
    message = refused(**document)
    assert message.startswith(f"vnafs.toml: {key} = ")
    assert value in message
    assert message.count(". ") >= 1 or message.endswith(".")


def test_an_integer_is_good_enough_for_a_number_with_a_fraction():
    assert parse(file_system={"quiet_seconds": 3}).file_system.quiet_seconds == 3.0


def test_a_list_of_names_or_numbers_replaces_the_default():
    found = parse(recall={"never_processes": [], "never_uids": [33, 65534]}).recall
    assert (found.never_processes, found.never_uids) == ((), (33, 65534))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lock_seconds": 60}, r"target\[0\]\.lock_seconds = 60: a directory has no locks\. Set it to 0"),
        ({"lock_mode": "firm"}, r"target\[0\]\.lock_mode = 'firm'"),
        (
            {"url": "s3://bucket", "removal_credentials_file": "/nowhere"},
            r"target\[0\]\.removal_credentials_file = /nowhere: cannot be read",
        ),
    ],
)
def test_a_target_that_cannot_be_as_it_is_configured_is_refused_at_the_start(wrong, message):
    found = parse(target=[{"name": "a", "url": "file:///x", **wrong}])
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.raises(ConfigurationInvalid, match=message):
        destinations(found, keys)


def test_a_second_credential_is_never_taken_from_the_environment(tmp_path):
    empty = tmp_path / "removal.toml"
    empty.touch(mode=0o600)
    found = parse(target=[{"name": "a", "url": "s3://bucket", "removal_credentials_file": str(empty)}])
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.raises(ConfigurationInvalid, match="removal_credentials_file"):
        destinations(found, keys)


def test_a_missing_archive_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigurationInvalid, match="vna init"):
        config.load(str(tmp_path))


def test_the_readme_lists_every_key_with_its_default():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    listed = {
        (section, key): default
        for section, key, default in re.findall(r"^\| `(\[+\w+\]+)` `(\w+)` \| (?:`(.*?)`)? ?\|", readme, re.MULTILINE)
    }
    expected = {}
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            value = field.default
            if value is dataclasses.MISSING:
                shown = ""
            elif isinstance(value, tuple):
                shown = repr(list(value)).replace("'", '"')
            elif isinstance(value, bool):
                shown = str(value).lower()
            else:
                shown = repr(value).replace("'", '"')
            expected[section, field.name] = shown
    assert listed == expected
