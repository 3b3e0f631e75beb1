"""Servers as fixtures: `from tests.servers.fixtures import *` in a conftest.py, or the one that is needed by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.shared import shared

__all__ = ["azurite_server", "moto_server", "radosgw_server"]


@pytest.fixture(scope="session")
def radosgw_server() -> Iterator[S3Endpoint]:
    """The shared Ceph gateway."""
    with shared("radosgw") as endpoint:
        assert isinstance(endpoint, S3Endpoint)
        yield endpoint


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Endpoint]:
    """The shared moto server."""
    with shared("moto") as endpoint:
        assert isinstance(endpoint, S3Endpoint)
        yield endpoint


@pytest.fixture(scope="session")
def azurite_server() -> Iterator[AzureEndpoint]:
    """The shared Azurite."""
    with shared("azurite") as endpoint:
        assert isinstance(endpoint, AzureEndpoint)
        yield endpoint
