import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.storage.open import open_store
from data_shards.storage.store import Store
from tests.conftest import reset_auth


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"{request.getfixturevalue('s3')}/some/prefix")


def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
    assert not store.exists("a/one.bin")
    store.write_bytes("a/one.bin", b"one")
    store.write_bytes("two.bin", memoryview(b"two"))
    store.write_bytes("two.bin", b"second")
    assert store.read_bytes("a/one.bin") == b"one"
    assert store.read_bytes("two.bin") == b"second"
    assert store.exists("a/one.bin")
    assert store.list_names() == ["a/one.bin", "two.bin"]
    store.delete("two.bin")
    store.delete("never was")
    assert store.list_names() == ["a/one.bin"]


def test_files_go_up_and_come_down_whole(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.storage.s3._MULTIPART_BYTES", 8 * 1024 * 1024)
    # Above the 8 MiB from which S3 takes several parts, both ways.
    content = os.urandom(9 * 1024 * 1024)
    (tmp_path / "up.bin").write_bytes(content)
    store.upload(tmp_path / "up.bin", "big.bin")
    for ranges in (1, 4):
        with open(tmp_path / "down.bin", "w+b") as file:
            assert store.fetch("big.bin", file.fileno(), ranges=ranges) == len(content)
            assert file.read() == content
    store.write_bytes("again.bin", content)
    assert store.read_bytes("again.bin") == content


def test_a_store_that_works_is_checked_without_a_trace(store: Store) -> None:
    store.write_bytes("one", b"1")
    store.check_readable()
    store.check_writable()
    assert store.list_names() == ["one"]


def test_checking_a_new_folder_leaves_none_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    open_store(tmp_path / "old" / "new" / "train").check_writable()
    open_store(tmp_path / "old").check_writable()
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_store_goes_to_another_process(store: Store) -> None:
    store.write_bytes("one", b"1")
    other = pickle.loads(pickle.dumps(store))
    assert other.read_bytes("one") == b"1"
    assert other.location == store.location


def test_a_missing_file_of_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*/store/gone\.tar; check the path"):
        open_store(tmp_path / "store").read_bytes("gone.tar")


def test_a_name_that_cannot_be_looked_up_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*xxx/manifest\.json: File name too long\. Check the path"):
        open_store(tmp_path / (300 * "x")).exists("manifest.json")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*/nowhere; check the path"):
        open_store(tmp_path / "nowhere").check_readable()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        DataError, match=r"cannot write .*/file/sub/\.aweigh-write-check: (Not a directory|File exists)"
    ):
        open_store(tmp_path / "file" / "sub").check_writable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match=r"Permission denied\. Choose another folder, or change its permissions"):
            open_store(tmp_path).check_writable()
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_never_shows_a_half_written_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("data.bin", b"old")
    with pytest.raises(DataError, match="cannot write"):
        store.upload(tmp_path, "data.bin")  # a folder cannot be copied as a file
    assert store.read_bytes("data.bin") == b"old"
    assert os.listdir(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("location", ["gs://bucket/x", "s3://", "s3:///prefix", "https://host/x"])
def test_an_unknown_location_is_refused(location: str) -> None:
    with pytest.raises(DataError, match=r"cannot open '.*': give a folder, or s3://BUCKET/PREFIX"):
        open_store(location)


@pytest.mark.parametrize("action", ["read", "write", "list", "exists"])
def test_a_missing_bucket_is_named(s3: str, action: str) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    with pytest.raises(DataError, match=r"there is no bucket 'no-such-bucket-here'\. Create it, or check its name"):
        _do(store, action)


def test_a_missing_object_is_named_with_bucket_and_key(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/prefix")
    message = (
        r"cannot read s3://shards-test/prefix/gone\.tar \(1 attempt\): bucket 'shards-test' has no object "
        r"'prefix/gone\.tar'"
    )
    with pytest.raises(DataError, match=message):
        store.read_bytes("gone.tar")
    for ranges in (1, 4):
        with open(tmp_path / "down.bin", "w+b") as file, pytest.raises(DataError, match=message):
            store.fetch("gone.tar", file.fileno(), ranges=ranges)


@pytest.mark.parametrize("action", ["read", "write", "list", "exists", "check_writable", "upload"])
def test_refused_credentials_are_named(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOTKNOWNHERE0000")
    reset_auth(s3_endpoint, "0")
    with pytest.raises(DataError, match=r"bucket 'shards-test' refuses these credentials \((InvalidAccessKeyId|403)\)"):
        _do(open_store(f"{s3}/prefix"), action)


def test_missing_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"there are no AWS credentials\. Set AWS_ACCESS_KEY_ID"):
        open_store(f"{s3}/prefix").check_writable()


def test_an_endpoint_that_does_not_answer_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Bound but not listening: connections are refused at once, and nobody else can take the port.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setattr("data_shards.storage.s3._ATTEMPTS", 2)  # the port is new, so is the client
        with pytest.raises(DataError, match=rf"{endpoint}/? does not answer after 2 attempts .*AWS_ENDPOINT_URL"):
            open_store(f"{s3}/prefix").check_readable()


@pytest.mark.parametrize("action", ["read", "exists"])
def test_an_endpoint_that_is_no_address_is_named(s3: str, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(DataError, match=r"Invalid endpoint: minio:9000\. Set AWS_ENDPOINT_URL to an address"):
        _do(open_store(f"{s3}/prefix"), action)


def _do(store: Store, action: str) -> None:
    if action == "read":
        store.read_bytes("name")
    elif action == "write":
        store.write_bytes("name", b"x")
    elif action == "list":
        store.list_names()
    elif action == "exists":
        store.exists("name")
    elif action == "upload":
        store.upload(__file__, "name")
    else:
        store.check_writable()


def test_threads_of_a_process_share_one_client(s3: str) -> None:
    store = open_store(s3)
    with ThreadPoolExecutor(10) as pool:
        clients = list(pool.map(lambda _: store.client, range(10)))  # type: ignore[attr-defined]
    assert len(set(map(id, clients))) == 1
