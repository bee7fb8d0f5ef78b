"""Files in S3: a prefix in a bucket, on AWS or any server that speaks S3. The only module that imports boto3.

It follows the ordinary AWS settings: credentials, `AWS_REGION`, `AWS_ENDPOINT_URL` or `AWS_ENDPOINT_URL_S3` for other
servers, and everything in `~/.aws/config`, which wins over the defaults here. Without credentials it reads unsigned, as
public buckets allow. `s3_object.py` reads one object through faults.
"""

# ruff: noqa: D102 - the methods are described in `Store`.

import base64
import functools
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from data_shards.addresses import proxy_hint, shown_address
from data_shards.errors import DataError
from data_shards.settings import ReadSettings
from data_shards.storage.s3_object import EXPIRED, ObjectRead, PlainError
from data_shards.storage.store import FileVersion, Sink, Store, write_at

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UNSIGNED = "AWEIGH_S3_UNSIGNED"
"""Variable that makes all reading unsigned, for public buckets that refuse the keys of this machine."""
REQUESTER_PAYS = "AWEIGH_S3_REQUESTER_PAYS"
"""Variable for buckets whose reader pays for requests and transfer."""

_ATTEMPTS = 8
_LISTINGS = 3
_CONNECT_SECONDS = 10
_WRITE_SECONDS = 60
_MULTIPART_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


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
        return _shared_client(_ATTEMPTS, _WRITE_SECONDS, reading=False)

    def read_bytes(self, name: str, *, most_bytes: int | None = None) -> bytes:
        data = bytearray()

        def take(block: bytes, offset: int) -> None:
            # A read starts again at offset 0 if the object was replaced: drop the bytes of the old one.
            data[offset:] = block

        self._object(name).read(take, most_bytes=most_bytes)
        return bytes(data)

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        def write(client: "S3Client") -> None:
            if len(data) < _MULTIPART_BYTES:
                client.put_object(Bucket=self.bucket, Key=self._key(name), Body=bytes(data))
            else:
                client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name))

        self._write("write", name, write)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        key = self._key(name)
        self._write("write", name, lambda client: client.upload_file(os.fspath(path), self.bucket, key))

    def fetch(
        self,
        name: str,
        file: int,
        *,
        ranges: int = 1,
        stop: threading.Event | None = None,
        most_bytes: int | None = None,
    ) -> int:
        def write(block: bytes, offset: int) -> None:
            write_at(file, block, offset)

        return self._object(name, stop).read(write, ranges=ranges, most_bytes=most_bytes)

    def stream(self, name: str, sink: Sink, *, most_bytes: int | None = None) -> None:
        # A sink cannot take back bytes, so a read of an object that is replaced meanwhile must fail.
        self._object(name).read(lambda block, _: sink.write(block), again=False, most_bytes=most_bytes)

    def exists(self, name: str) -> bool:
        return self._ask("read", name, lambda client: self._exists(client, self._key(name)))

    def _exists(self, client: "S3Client", key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            client.head_object(Bucket=self.bucket, Key=key, **_payer())
            return True
        except ClientError as error:
            if _code(error) in _NO_OBJECT:
                return self._is_missing(client, error)
            # A HEAD has no body, and some servers refuse HEAD alone: a GET says why.
            try:
                client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0", **_payer())["Body"].close()
                return True
            except ClientError as refusal:
                if _code(refusal) == "InvalidRange":
                    return True  # an empty object
                if _code(refusal) in _NO_OBJECT:
                    return False
                raise

    def _is_missing(self, client: "S3Client", missing: Exception) -> bool:
        """Return False if the bucket exists; a HEAD of an object does not tell which of the two is missing."""
        from botocore.exceptions import ClientError

        try:
            client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            # Whoever may read objects may not always ask about their bucket.
            if _code(error) in _NO_OBJECT or _code(error) == "NoSuchBucket":
                raise
        return False

    def version(self, name: str) -> FileVersion:
        key = self._key(name)
        answer: Any = self._ask(
            "read",
            name,
            lambda client: client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED", **_payer()),
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

        def names(client: "S3Client") -> list[str]:
            found: list[str] = []
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start, **_payer()):
                # An HTML page is XML enough for botocore, which takes it for an empty listing.
                if not {"Name", "IsTruncated", "KeyCount", "Contents"} & page.keys():
                    raise PlainError(_NO_S3)
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    raise _CutListingError(
                        "the listing is cut short without a way to ask for the rest. Check the store."
                    )
                keys = [item.get("Key", "") for item in page.get("Contents", [])]
                found += [key[len(start) :] for key in keys if key.startswith(start) and key != start]
            return sorted(found)

        for _ in range(_LISTINGS - 1):
            try:
                return self._ask("list", "", names)
            except DataError as error:
                if not isinstance(error.__cause__, _CutListingError):
                    raise
        return self._ask("list", "", names)

    def delete(self, name: str) -> None:
        self._write("delete", name, lambda client: client.delete_object(Bucket=self.bucket, Key=self._key(name)))

    def check_readable(self) -> None:
        def check(client: "S3Client") -> None:
            page = client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1, **_payer())
            if not {"Name", "IsTruncated", "KeyCount", "Contents"} & page.keys():
                raise PlainError(_NO_S3)

        self._ask("list", "", check)

    def _object(self, name: str, stop: threading.Event | None = None) -> ObjectRead:
        client = self._explained("read", name, self._single_client)

        def explain(error: BaseException, attempts: str) -> str:
            return self._explain(error, "read", name, attempts)

        def renew() -> "S3Client":
            _forget_credentials()
            return self._single_client()

        return ObjectRead(client, self.bucket, self._key(name), self.reading, explain, stop, renew, _payer())

    def _single_client(self) -> "S3Client":
        """Return a client that tries each request once."""
        return _shared_client(1, self.reading.timeout_seconds, reading=True)

    def _ask(self, action: str, name: str, ask: "Callable[[S3Client], T]") -> T:
        """Ask about objects; no request waits longer than one that reads."""
        return self._explained(
            action, name, lambda: ask(_shared_client(_ATTEMPTS, self.reading.timeout_seconds, reading=True))
        )

    def _write(self, action: str, name: str, write: "Callable[[S3Client], object]") -> None:
        self._explained(action, name, lambda: write(self.client))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _explained(self, action: str, name: str, do: Callable[[], T]) -> T:
        """Do something, once more if the credentials have been renewed since they were read."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        expected = (BotoCoreError, Boto3Error, ClientError, ResponseParserError, _CutListingError, PlainError)
        for last in (False, True):
            try:
                return do()
            except (*expected, KeyError, RecursionError) as error:
                # The transfer manager wraps the server's answer.
                cause: BaseException = error
                while isinstance(cause, Boto3Error) and (cause.__cause__ or cause.__context__):
                    cause = cause.__cause__ or cause.__context__ or cause
                if _code(cause) in EXPIRED and not last:
                    _forget_credentials()
                    continue
                raise DataError(self._explain(cause, action, name)) from error
        raise AssertionError("unreachable")

    def _explain(self, error: BaseException, action: str, name: str, attempts: str = "") -> str:
        from botocore import exceptions

        what = f"cannot {action} s3://{self.bucket}/{self._key(name)}{f' ({attempts})' if attempts else ''}"
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                f"{what}: there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "a profile, or an instance role."
            )
        if isinstance(error, exceptions.SSOError | exceptions.TokenRetrievalError):
            profile = os.environ.get("AWS_PROFILE")
            return (
                f"{what}: the AWS SSO session has expired or does not exist. Run "
                f"`aws sso login{f' --profile {profile}' if profile else ''}`, then the command again."
            )
        if isinstance(error, exceptions.ResponseStreamingError | exceptions.IncompleteReadError):
            return f"{what}: the connection broke before the end. Check the network."
        endpoint = _endpoint()
        hint = proxy_hint(endpoint)
        if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
            tried = "" if attempts else f" after {_ATTEMPTS} attempts"
            advice = hint or "Check AWS_ENDPOINT_URL and the network."
            return f"{what}: {shown_address(endpoint)} does not answer{tried} ({type(error).__name__}). {advice}"
        if isinstance(error, KeyError) or type(error).__name__ == "ResponseParserError":
            return f"{what}: {_NO_S3}{f' {hint}' if hint else ''}"
        if isinstance(error, RecursionError):
            # botocore follows a redirect by asking for the bucket's region, which is redirected too.
            return (
                f"{what}: {shown_address(endpoint)} redirects every request. Set AWS_REGION to the bucket's region, or "
                f"AWS_ENDPOINT_URL to the right server.{f' {hint}' if hint else ''}"
            )
        if isinstance(error, PlainError | _CutListingError):
            return f"{what}: {error}{f' {hint}' if hint else ''}"
        if not isinstance(error, exceptions.ClientError):
            return f"{what}: {shown_address(' '.join(str(error).split())).rstrip('.')}."
        return self._explain_refusal(error, action, name, what, hint)

    def _explain_refusal(self, error: Any, action: str, name: str, what: str, hint: str) -> str:
        code = _code(error)
        answer = error.response.get("ResponseMetadata", {})
        status, headers = answer.get("HTTPStatusCode", 0), answer.get("HTTPHeaders", {})
        if code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket"):
            return f"{what}: there is no bucket {self.bucket!r}. Create it, or check its name and region."
        if code in _NO_OBJECT:
            return f"{what}: bucket {self.bucket!r} has no object {self._key(name)!r}. Check the location."
        if code in EXPIRED:
            return (
                f"{what}: the AWS credentials have expired ({code}). Renew them in their file or their variables "
                "(AWS_SESSION_TOKEN too), and run the command again."
            )
        message = shown_address(" ".join(str(error.response.get("Error", {}).get("Message", error)).split()))[:300]
        # A proxy that refuses answers in place of the store, whose answers carry an id.
        by_proxy = f" {hint}" if hint and not any(name.startswith("x-amz") for name in headers) else ""
        if 300 <= status < 400:
            target = shown_address(headers.get("location", "")) or "another address"
            return (
                f"{what}: {shown_address(_endpoint())} redirects to {target} ({code}). Set AWS_REGION to the "
                f"bucket's region, or AWS_ENDPOINT_URL to the right server.{by_proxy}"
            )
        if code == "SecondLevelDomainForbidden" or "virtual host" in message.lower():
            return (
                f"{what}: {code}, {message.rstrip('.')}. Set addressing_style = virtual in the s3 section of "
                "~/.aws/config."
            )
        if code in _REFUSED:
            reading = action in ("read", "list")
            if reading and _is_unsigned():
                return (
                    f"{what}: bucket {self.bucket!r} refuses unsigned requests ({code}). Set AWS_ACCESS_KEY_ID and "
                    f"AWS_SECRET_ACCESS_KEY, a profile, or an instance role; and {REQUESTER_PAYS}=1 if its requester "
                    f"pays.{by_proxy}"
                )
            public = f" For a public bucket set {UNSIGNED}=1, for one whose requester pays {REQUESTER_PAYS}=1."
            return (
                f"{what}: bucket {self.bucket!r} refuses these credentials ({code}). Check the access key, "
                f"its secret, and that its policy allows it to {action} here.{public if reading else ''}{by_proxy}"
            )
        return f"{what}: {code}, {message.rstrip('.')}.{by_proxy}"


_NO_S3 = (
    "the server does not answer as S3 does: a login page, a proxy, or another server. Check AWS_ENDPOINT_URL and the "
    "network."
)
_NO_OBJECT = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {
    "AccessDenied",
    "403",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "AllAccessDisabled",
}


def _code(error: BaseException) -> str:
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


class _CutListingError(Exception):
    """A listing that is not complete, and says so."""


def _payer() -> dict[str, Any]:
    return {"RequestPayer": "requester"} if _is_on(REQUESTER_PAYS) else {}


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")


def _environment() -> tuple[tuple[str, str], ...]:
    names = ("AWS_", UNSIGNED, "proxy", "PROXY")
    return tuple(sorted(item for item in os.environ.items() if any(name in item[0] for name in names)))


def _files() -> tuple[tuple[str, int], ...]:
    """Return the user's files of AWS settings with their times, so that renewed credentials make a new client."""
    found = []
    for variable, default in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        path = Path(os.environ.get(variable) or f"~/.aws/{default}").expanduser()
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except OSError:
            continue
    return tuple(found)


_making_client = threading.Lock()


def _shared_client(attempts: int, read_seconds: float, *, reading: bool) -> "S3Client":
    """Return the one client of all stores of a process.

    Args:
        attempts: of each request.
        read_seconds: longest silence of the server.
        reading: True if requests may be unsigned.

    Raises:
        DataError: the endpoint is not an address.
    """
    # Without the lock, ten threads that begin to fetch would each make one and keep a core busy for two seconds.
    with _making_client:
        return _client(os.getpid(), _environment(), _files(), attempts, read_seconds, reading)


def _forget_credentials() -> None:
    """Make the next client read the credentials again, from their file or their process."""
    with _making_client:
        _client.cache_clear()


def _endpoint() -> str:
    """Return the server's address."""
    return str(_shared_client(_ATTEMPTS, _WRITE_SECONDS, reading=True).meta.endpoint_url)


def _is_unsigned() -> bool:
    from botocore import UNSIGNED as NO_SIGNATURE

    config: Any = _shared_client(_ATTEMPTS, _WRITE_SECONDS, reading=True).meta.config
    return config.signature_version is NO_SIGNATURE


@functools.lru_cache(maxsize=8)
def _client(
    process: int,
    environment: tuple[tuple[str, str], ...],
    files: tuple[tuple[str, int], ...],
    attempts: int,
    read_seconds: float,
    reading: bool,
) -> "S3Client":
    """Make a client. A forked process needs its own, as it must not use its parent's sockets; so do other settings."""
    import boto3
    import botocore.session
    from botocore import UNSIGNED as NO_SIGNATURE
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, SSOError, TokenRetrievalError

    # boto3's default session is not safe to create from several threads.
    core = botocore.session.Session()
    own: dict[str, Any] = {}
    try:
        theirs = core.get_scoped_config()
        if not _addressing_style(theirs) and _is_other_server(core, theirs):
            # Other servers rarely resolve bucket names as hosts.
            own["s3"] = {"addressing_style": "path"}
        for name in ("request_checksum_calculation", "response_checksum_validation"):
            # Many of them reject the newer checksum trailers.
            if name not in theirs and f"AWS_{name.upper()}" not in os.environ:
                own[name] = "when_required"
        if reading and (_is_on(UNSIGNED) or core.get_credentials() is None):
            own["signature_version"] = NO_SIGNATURE
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=min(_CONNECT_SECONDS, read_seconds),
            read_timeout=read_seconds,
            max_pool_connections=64,
            **own,
        )
        return boto3.session.Session(botocore_session=core).client("s3", config=config)
    except ValueError as error:
        raise DataError(
            f"{shown_address(str(error))}. Set AWS_ENDPOINT_URL to an address, such as http://HOST:9000."
        ) from error
    except (SSOError, TokenRetrievalError):
        raise
    except BotoCoreError as error:
        # A profile that does not exist, or a process that returns no credentials.
        raise DataError(
            f"the AWS configuration cannot be used: {' '.join(str(error).split()).rstrip('.')}. Check AWS_PROFILE, "
            "~/.aws/config and ~/.aws/credentials."
        ) from error


def _addressing_style(config: dict[str, Any]) -> str | None:
    section = config.get("s3")
    return section.get("addressing_style") if isinstance(section, dict) else None


def _is_other_server(core: Any, config: dict[str, Any]) -> bool:
    """Return True if a variable or the configuration names a server that is not Amazon's."""
    from botocore.configprovider import ConfiguredEndpointProvider

    provider = ConfiguredEndpointProvider(full_config=core.full_config, scoped_config=config, client_name="s3")
    host = urlsplit(str(provider.provide() or "")).hostname or ""
    return bool(host) and not host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
