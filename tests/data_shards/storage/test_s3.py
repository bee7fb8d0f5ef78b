"""What S3, and a folder, say of a file without reading it: its version and its checksums."""

import base64
import datetime
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_shards.errors import DataError
from data_shards.storage.open import open_store
from data_shards.storage.s3 import S3Store

MD5, SHA256 = hashlib.md5(b"abc").hexdigest(), hashlib.sha256(b"abc").hexdigest()
MODIFIED = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)


def test_an_object_has_another_version_after_it_is_replaced(s3: str) -> None:
    store = open_store(f"{s3}/versions")
    store.write_bytes("a", b"abc")
    first = store.version("a")
    assert (first.size, first.checksums["md5"]) == (3, MD5)
    assert store.version("a") == first
    store.write_bytes("a", b"abd")
    assert store.version("a").tag != first.tag
    with pytest.raises(DataError, match="has no object 'versions/b'"):
        store.version("b")


def test_a_file_has_another_version_after_it_is_replaced(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("a", b"abc")
    first = store.version("a")
    assert (first.size, first.checksums) == (3, {})
    store.write_bytes("a", b"abcd")
    assert store.version("a") != first
    with pytest.raises(DataError, match="there is no file"):
        store.version("b")


@pytest.mark.parametrize(
    ("answer", "checksums"),
    [
        ({"ETag": f'"{MD5}"'}, {"md5": MD5}),
        ({"ETag": f'"{MD5}-2"'}, {}),  # of a multipart upload
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, {"md5": MD5}),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms"}, {}),
        ({"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"}, {}),
        (
            {"ETag": '"of-its-own"', "ChecksumSHA256": base64.b64encode(bytes.fromhex(SHA256)).decode()},
            {"sha256": SHA256},
        ),
        ({"ETag": "", "ChecksumCRC32": "NSRBwg==", "ChecksumType": "FULL_OBJECT"}, {"crc32": "352441c2"}),
        ({"ETag": "", "ChecksumCRC32": "NSRBwg==", "ChecksumType": "COMPOSITE"}, {}),
        ({"ETag": "", "ChecksumSHA256": "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=-3"}, {}),
        ({}, {}),
    ],
)
def test_checksums_are_those_of_the_whole_file(
    answer: dict[str, Any], checksums: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SimpleNamespace(head_object=lambda **asked: {"ContentLength": 3, "LastModified": MODIFIED, **answer})
    monkeypatch.setattr(S3Store, "_ask", lambda self, action, name, ask: ask(client))
    version = open_store("s3://bucket/folder").version("a")
    assert version.size == 3
    assert version.checksums == checksums
    assert "2026-11-29" in version.tag
