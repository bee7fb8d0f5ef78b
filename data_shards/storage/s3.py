"""Files in S3: a prefix in a bucket, on AWS or any server that speaks S3. The only module that imports boto3.

It follows the ordinary AWS settings (credentials, `AWS_REGION`, `AWS_ENDPOINT_URL` or `AWS_ENDPOINT_URL_S3` for other
servers). `s3_object.py` reads one object through faults.
"""

# ruff: noqa: D102 - the methods are described in `Store`.

import base64
import functools
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data_shards.errors import DataError
from data_shards.settings import ReadSettings
from data_shards.storage.s3_object import ObjectRead
from data_shards.storage.store import FileVersion, Sink, Store, write_at

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 8
_CONNECT_SECONDS = 10
_WRITE_SECONDS = 60
_MULTIPART_BYTES = 16 * 1024 * 1024


class S3Store(Store):
    """The objects below a prefix of a bucket. Nothing is contacted before the first call."""

    def __init__(self, bucket: str, prefix: str, reading: ReadSettings) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.reading = reading
        self.location = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def client(self) -> "S3Client":
        """The client of this process's environment, for writing."""
        return _shared_client(_ATTEMPTS, _WRITE_SECONDS)

    @property
    def asking_client(self) -> "S3Client":
        """The same for questions about objects, which wait no longer than reads do."""
        return _shared_client(_ATTEMPTS, self.reading.timeout_seconds)

    def read_bytes(self, name: str) -> bytes:
        data = bytearray()

        def take(block: bytes, offset: int) -> None:
            # A read starts again at offset 0 if the object was replaced: drop the bytes of the old one.
            data[offset:] = block

        self._object(name).read(take)
        return bytes(data)

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        with self._explained("write", name):
            if len(data) < _MULTIPART_BYTES:
                self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=bytes(data))
            else:
                self.client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name))

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        with self._explained("write", name):
            self.client.upload_file(os.fspath(path), self.bucket, self._key(name))

    def fetch(self, name: str, file: int, *, ranges: int = 1, stop: threading.Event | None = None) -> int:
        return self._object(name, stop).read(lambda block, offset: write_at(file, block, offset), ranges=ranges)

    def stream(self, name: str, sink: Sink) -> None:
        # A sink cannot take back bytes, so a read of an object that is replaced meanwhile must fail.
        self._object(name).read(lambda block, _: sink.write(block), again=False)

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with self._explained("read", name):
            try:
                self.asking_client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # A HEAD has no body to tell a missing object from a missing bucket.
                self.asking_client.head_bucket(Bucket=self.bucket)
                return False
        return True

    def version(self, name: str) -> FileVersion:
        with self._explained("read", name):
            answer: Any = self.asking_client.head_object(
                Bucket=self.bucket, Key=self._key(name), ChecksumMode="ENABLED"
            )
        checksums = {}
        # A multipart upload has a checksum of its parts' checksums, which ends in their number.
        for algorithm in ("sha256", "sha1", "crc32"):
            value = str(answer.get(f"Checksum{algorithm.upper()}") or "")
            if value and "-" not in value and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
                checksums[algorithm] = base64.b64decode(value).hex()
        etag = str(answer.get("ETag") or "").strip('"')
        # With a key of the customer or of KMS the ETag is not the MD5 of the bytes.
        own_key = answer.get("SSECustomerAlgorithm") or str(answer.get("ServerSideEncryption", "")).startswith(
            "aws:kms"
        )
        if re.fullmatch("[0-9a-f]{32}", etag) and not own_key:
            checksums["md5"] = etag
        return FileVersion(int(answer.get("ContentLength", -1)), f"{etag} {answer.get('LastModified', '')}", checksums)

    def list_names(self) -> list[str]:
        start = f"{self.prefix}/" if self.prefix else ""
        with self._explained("list", ""):
            pages = self.asking_client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            return sorted(item["Key"][len(start) :] for page in pages for item in page.get("Contents", []))

    def delete(self, name: str) -> None:
        with self._explained("delete", name):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def check_readable(self) -> None:
        with self._explained("list", ""):
            self.asking_client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def _object(self, name: str, stop: threading.Event | None = None) -> ObjectRead:
        with self._explained("read", name):
            client = _shared_client(1, self.reading.timeout_seconds)

        def explain(error: BaseException, attempts: str) -> str:
            return self._explain(error, "read", name, attempts)

        return ObjectRead(client, self.bucket, self._key(name), self.reading, explain, stop)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # The transfer manager wraps the server's answer.
            cause: BaseException = error
            while isinstance(cause, Boto3Error) and (cause.__cause__ or cause.__context__):
                cause = cause.__cause__ or cause.__context__ or cause
            raise DataError(self._explain(cause, action, name)) from error

    def _explain(self, error: BaseException, action: str, name: str, attempts: str = "") -> str:
        from botocore import exceptions

        what = f"cannot {action} s3://{self.bucket}/{self._key(name)}{f' ({attempts})' if attempts else ''}"
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                f"{what}: there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "a profile, or an instance role."
            )
        if isinstance(error, exceptions.ResponseStreamingError | exceptions.IncompleteReadError):
            return f"{what}: the connection broke before the end. Check the network."
        if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
            tried = "" if attempts else f" after {_ATTEMPTS} attempts"
            return (
                f"{what}: {self.client.meta.endpoint_url} does not answer{tried} "
                f"({type(error).__name__}). Check AWS_ENDPOINT_URL and the network."
            )
        if not isinstance(error, exceptions.ClientError):
            return f"{what}: {error}."
        code = _code(error)
        if code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket"):
            return f"{what}: there is no bucket {self.bucket!r}. Create it, or check its name and region."
        if code in ("NoSuchKey", "404", "NotFound"):
            return f"{what}: bucket {self.bucket!r} has no object {self._key(name)!r}. Check the location."
        if code in _REFUSED:
            return (
                f"{what}: bucket {self.bucket!r} refuses these credentials ({code}). Check the access key, "
                f"its secret, and that its policy allows it to {action} here."
            )
        message = str(error.response.get("Error", {}).get("Message", error))
        return f"{what}: {code}, {message.rstrip('.')}."


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


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if "AWS_" in item[0]))


_making_client = threading.Lock()


def _shared_client(attempts: int, read_seconds: float) -> "S3Client":
    """Return the one client of all stores of a process.

    Raises:
        DataError: the endpoint is not an address.
    """
    # Without the lock, ten threads that begin to fetch would each make one and keep a core busy for two seconds.
    with _making_client:
        return _client(os.getpid(), _environment(), attempts, read_seconds)


@functools.lru_cache(maxsize=8)
def _client(process: int, environment: tuple[tuple[str, str], ...], attempts: int, read_seconds: float) -> "S3Client":
    """Make a client. A forked process needs its own, as it must not use its parent's sockets; so do other settings."""
    import boto3
    from botocore.config import Config

    other_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=min(_CONNECT_SECONDS, read_seconds),
        read_timeout=read_seconds,
        max_pool_connections=64,
        # Other servers rarely resolve bucket names as hosts, and many reject the newer checksum trailers.
        s3={"addressing_style": "path" if other_server else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        # boto3's default session is not safe to create from several threads.
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise DataError(f"{error}. Set AWS_ENDPOINT_URL to an address, such as http://HOST:9000.") from error
