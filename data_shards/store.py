"""Where files lie: a folder or an S3 bucket, behind one small interface.

A write is all or nothing: a folder gets a temporary file that is renamed, S3 a single PUT or a multipart upload
that appears when it is complete. The S3 side follows the ordinary AWS settings (credentials, `AWS_REGION`,
`AWS_ENDPOINT_URL` or `AWS_ENDPOINT_URL_S3` for other servers) and is the only module that imports boto3.
"""

import errno
import functools
import io
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast

from data_shards.errors import DataError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 8
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_MULTIPART_BYTES = 16 * 1024 * 1024
_PROBE = ".aweigh-write-check"


class Sink(Protocol):
    """Takes bytes in order: a file, or a digest of what passes by."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Store(ABC):
    """A place with named files. Names are relative, with `/` between folders."""

    location: str
    """The place as a user writes it: a folder, or `s3://bucket/prefix`."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """The whole file; raises DataError where there is none."""

    @abstractmethod
    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Create or replace a file; others see the old bytes or the new ones, never a part."""

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        """Copy a local file into the store, with the same promise as `write_bytes`."""

    @abstractmethod
    def download(self, name: str, path: str | os.PathLike[str]) -> None:
        """Copy a file of the store to a local path, replacing what is there when all of it has arrived."""

    @abstractmethod
    def stream(self, name: str, sink: "Sink") -> None:
        """Write the whole file into a sink, from its first byte to its last; raises DataError where there is none."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def list_names(self) -> list[str]:
        """Names of all files, sorted; empty where the place does not exist yet."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abstractmethod
    def check_readable(self) -> None:
        """Raise DataError unless the place exists and lets us read."""

    def check_writable(self) -> None:
        """Raise DataError unless a file can be written here; leaves none behind."""
        self.write_bytes(_PROBE, b"")
        self.delete(_PROBE)

    def local_path(self, name: str) -> Path | None:
        """The file itself where it can be opened in place, else None."""
        return None


def open_store(location: str | os.PathLike[str]) -> Store:
    """The store at a location: a folder, or `s3://bucket/prefix`. Nothing is contacted yet.

    Raises:
        DataError: the location is of another kind, or names no bucket.
    """
    location = os.fspath(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        return _FolderStore(location)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"cannot open {location!r}: give a folder, or s3://BUCKET/PREFIX.")
    return _S3Store(bucket, prefix.strip("/"))


class _FolderStore(Store):
    """A folder of this machine, or of a file system that all machines mount."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.location = str(self.folder)

    def read_bytes(self, name: str) -> bytes:
        with self._explained("read", name):
            return (self.folder / name).read_bytes()

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        with self._explained("write", name), self._replacing(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        with self._explained("write", name), self._replacing(self.folder / name) as temporary:
            shutil.copyfile(path, temporary)

    def download(self, name: str, path: str | os.PathLike[str]) -> None:
        with self._explained("read", name), self._replacing(Path(path)) as temporary:
            shutil.copyfile(self.folder / name, temporary)

    def stream(self, name: str, sink: Sink) -> None:
        with self._explained("read", name), open(self.folder / name, "rb") as file:
            while block := file.read(1 << 20):
                sink.write(block)

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def list_names(self) -> list[str]:
        with self._explained("list", ""):
            return sorted(
                path.relative_to(self.folder).as_posix()
                for path in self.folder.rglob("*")
                if path.is_file() and not path.name.endswith(".part")
            )

    def delete(self, name: str) -> None:
        with self._explained("delete", name):
            (self.folder / name).unlink(missing_ok=True)

    def check_readable(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.location}; check the path.")
        with self._explained("list", ""):
            os.listdir(self.folder)

    def local_path(self, name: str) -> Path | None:
        return self.folder / name

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two processes writing the same file cannot mix their bytes.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"there is no file {self.folder / name}; check the path.") from error
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            advice = {
                errno.ENOSPC: "Free some space there.",
                errno.EACCES: "Choose another folder, or change its permissions.",
                errno.EROFS: "Choose another folder; this file system is read-only.",
            }.get(error.errno or 0, "Check the path.")
            raise DataError(f"cannot {action} {self.folder / name}: {cause}. {advice}") from error


class _S3Store(Store):
    """A prefix in an S3 bucket, on AWS or any server that speaks S3."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.location = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def client(self) -> "S3Client":
        """boto3's client for the environment of this process."""
        return _shared_client(os.getpid(), tuple(sorted(item for item in os.environ.items() if "AWS_" in item[0])))

    def read_bytes(self, name: str) -> bytes:
        with self._explained("read", name):
            return self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        with self._explained("write", name):
            if len(data) < _MULTIPART_BYTES:
                self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=bytes(data))
            else:
                self.client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name))

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        with self._explained("write", name):
            self.client.upload_file(os.fspath(path), self.bucket, self._key(name))

    def download(self, name: str, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # boto3 writes beside the path and renames when the last part has arrived.
        with self._explained("read", name):
            self.client.download_file(self.bucket, self._key(name), str(path))

    def stream(self, name: str, sink: Sink) -> None:
        # Without a seek method, boto3 hands the parts over in order; it also fetches a broken one again.
        with self._explained("read", name):
            self.client.download_fileobj(self.bucket, self._key(name), cast(IO[bytes], sink))

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with self._explained("read", name):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # A HEAD has no body to tell a missing object from a missing bucket.
                self.client.head_bucket(Bucket=self.bucket)
                return False
        return True

    def list_names(self) -> list[str]:
        start = f"{self.prefix}/" if self.prefix else ""
        with self._explained("list", ""):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            return sorted(item["Key"][len(start) :] for page in pages for item in page.get("Contents", []))

    def delete(self, name: str) -> None:
        with self._explained("delete", name):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def check_readable(self) -> None:
        with self._explained("list", ""):
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # The transfer manager wraps what the server said.
            cause: BaseException = error
            while isinstance(cause, Boto3Error) and (cause.__cause__ or cause.__context__):
                cause = cause.__cause__ or cause.__context__ or cause
            raise DataError(self._explain(cause, action, name)) from error

    def _explain(self, error: BaseException, action: str, name: str) -> str:
        from botocore import exceptions

        what = f"cannot {action} s3://{self.bucket}/{self._key(name)}"
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                f"{what}: there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "a profile, or an instance role."
            )
        if isinstance(error, exceptions.EndpointConnectionError | exceptions.HTTPClientError):
            endpoint = self.client.meta.endpoint_url
            return (
                f"{what}: {endpoint} does not answer after {_ATTEMPTS} attempts "
                f"({type(error).__name__}). Check AWS_ENDPOINT_URL and the network."
            )
        if not isinstance(error, exceptions.ClientError):
            return f"{what}: {error}"
        code = _code(error)
        if code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket"):
            return f"{what}: there is no bucket {self.bucket!r}. Create it, or check its name and region."
        if code in ("NoSuchKey", "404", "NotFound"):
            return f"{what}: bucket {self.bucket!r} has no object {self._key(name)!r}. Check the location."
        if code in _REFUSED:
            return (
                f"{what}: bucket {self.bucket!r} refuses these credentials ({code}). Check the access key, "
                f"its secret, and that its policy allows to {action} here."
            )
        return f"{what}: {code}, {error.response.get('Error', {}).get('Message', error)}"


_REFUSED = {
    "AccessDenied",
    "403",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "AllAccessDisabled",
}


def _code(error: BaseException) -> str:
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


@functools.lru_cache(maxsize=4)
def _shared_client(process: int, environment: tuple[tuple[str, str], ...]) -> "S3Client":
    """One client for all stores of a process: making one takes longer than most requests.

    A forked process must not use its parent's sockets, and changed settings need a new client; that is what
    the arguments, which are not read, are for.
    """
    import boto3
    from botocore.config import Config

    other_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=32,
        # Other servers rarely resolve bucket names as hosts, and many reject the newer checksum trailers.
        s3={"addressing_style": "path" if other_server else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of our own: boto3's default one is shared and not safe to make from several threads.
    return boto3.session.Session().client("s3", config=config)
