from __future__ import annotations

from pathlib import Path

import pytest

from transfer.config import StorageConfig
from transfer.errors import ConfigError, StorageError
from transfer.storage import open_store


def open_uri(uri, **details):
    return open_store(StorageConfig(uri=uri, **details))


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/data/store", "/data/store"),
        ("file:///data/my%20store", "/data/my store"),
        ("file://localhost/data/store", "/data/store"),
        ("~/store", "~/store"),
        ("store", "store"),
        ("./store/", "store"),
    ],
)
def test_folders_are_named_by_path_or_file_address(uri, folder):
    assert open_uri(uri).uri == str(Path(folder).expanduser().absolute())


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/deep/prefix", "s3://bucket/prefix/"])
def test_buckets_are_named_with_and_without_a_prefix(s3_server, uri):
    assert open_uri(uri, endpoint_url=s3_server).uri == uri.rstrip("/")


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "http://host/path", "s3a://bucket", "hdfs://host/path"])
def test_other_services_are_refused_naming_those_that_are_supported(uri):
    with pytest.raises(ConfigError, match="s3://bucket/prefix") as caught:
        open_uri(uri)
    assert uri.split(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3:/bucket", "s3:bucket", "s3://", "s3:///prefix", "s3://b", "file://host/path", "file:/path"]
)
def test_addresses_that_name_no_place_are_refused(uri):
    with pytest.raises(ConfigError):
        open_uri(uri)


@pytest.mark.parametrize("prefix", ["../other", "a//b", "/a"])
def test_prefixes_that_are_not_plain_are_refused(prefix):
    with pytest.raises((ConfigError, StorageError)):
        open_uri(f"s3://bucket/{prefix}")


@pytest.mark.parametrize(
    "details",
    [
        {"uri": "s3://AKIAKEY:verysecret@bucket/prefix"},
        {"uri": "s3://AKIAKEY:verysecret/prefix"},
        {"uri": "s3://verysecret@bucket"},
        {"uri": "s3://bucket/prefix?access_key=AKIAKEY&secret_key=verysecret"},
        {"uri": "https://user:verysecret@host/bucket"},
        {"uri": "s3://bucket", "endpoint_url": "http://AKIAKEY:verysecret@minio:9000"},
        {"uri": "s3://bucket", "endpoint_url": "http://minio:9000/?key=verysecret"},
        {"uri": "s3://bucket", "endpoint_url": "AKIAKEY:verysecret@minio:9000"},
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(details):
    with pytest.raises(ConfigError) as caught:
        open_store(StorageConfig(**details))
    assert "verysecret" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_the_address_of_the_service_may_come_from_the_environment(s3_storage, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_storage.endpoint_url)
    store = open_uri(s3_storage.uri)
    assert store.put("object", b"content") is True
