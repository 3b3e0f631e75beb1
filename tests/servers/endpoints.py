"""What a test needs to know of a running server, and how to make a bucket or container there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any
from urllib.parse import urlencode

import boto3
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import ContainerClient
from botocore.config import Config


@dataclasses.dataclass(frozen=True)
class S3Endpoint:
    """An S3 server."""

    kind: str
    url: str
    access_key_id: str
    secret_access_key: str

    def client(self) -> Any:
        """A plain client, independent of the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={},
                max_pool_connections=16,
            ),
        )

    def make_bucket(self, bucket: str | None = None, **options: object) -> str:
        """A new bucket (or the named one, unless it exists); its name."""
        name = bucket or f"b-{os.urandom(6).hex()}"
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name, **options)
        return name

    def target_url(self, bucket: str, prefix: str = "", url: str | None = None) -> str:
        """As vnafs.toml wants it; *url* puts something between, such as a proxy."""
        return f"s3://{bucket}/{prefix}?{urlencode({'endpoint': url or self.url, 'region': 'us-east-1'})}"

    def environ(self) -> dict[str, str]:
        """The provider's usual variables."""
        return {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}


@dataclasses.dataclass(frozen=True)
class AzureEndpoint:
    """An Azure Blob server; *url* is without the account."""

    kind: str
    url: str
    account: str
    account_key: str

    def client(self, container: str) -> ContainerClient:
        """A plain client, independent of the code under test; to be closed."""
        return ContainerClient(f"{self.url}/{self.account}", container, credential=self.account_key)

    def make_container(self, container: str | None = None) -> str:
        """A new container (or the named one, unless it exists); its name."""
        name = container or f"c-{os.urandom(6).hex()}"
        with (
            self.client(name) as client,
            contextlib.suppress(ResourceExistsError),
        ):
            client.create_container()
        return name

    def put_blob(self, container: str, blob: str, data: bytes) -> None:
        """Write, or write over, one blob."""
        with self.client(container) as client:
            client.upload_blob(blob, data, overwrite=True)

    def target_url(self, container: str, prefix: str = "", url: str | None = None) -> str:
        """As vnafs.toml wants it; *url* puts something between, such as a proxy."""
        return f"azure://{self.account}/{container}/{prefix}?{urlencode({'endpoint': url or self.url})}"

    def environ(self) -> dict[str, str]:
        """The provider's usual variables."""
        return {"AZURE_STORAGE_KEY": self.account_key}
