"""Reading one object of S3 to its end through network faults, from one version of it only.

botocore repeats a request, but not a body that breaks off, and nothing ties two requests to the same version of an
object. Here a read resumes at the byte where it broke, asks for the ETag that it began with, waits with full jitter
between attempts, and has one deadline for everything. Servers that only resemble S3 may leave out the ETag, the length
or the support for ranges; each of these is handled, or named in one line.

Source of the jitter: Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
"""

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from data_shards.counting import counted
from data_shards.errors import DataError, LargerError, UnavailableError
from data_shards.settings import ReadSettings
from data_shards.storage.store import Stopped

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LEAST_RANGE_BYTES = 8 * 1024 * 1024
"""Smaller ranges spend more time on latency than on transfer."""

_BLOCK_BYTES = 256 * 1024
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 15.0

# Errors of requests that may succeed in a moment; so may any other code of 5xx.
_PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "429", "408"}

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
"""Codes of credentials that were right once. Their file or their process may have newer ones."""

Explain = Callable[[BaseException, str], str]


class ObjectRead:
    """The read of one object, over as many requests as it takes.

    Args:
        client: a client that tries each request once.
        bucket: the object's bucket.
        key: its name there.
        settings: the deadline.
        explain: returns the message for an error and the number of attempts.
        stop: an event that cancels the read.
        renew: returns a client with credentials read again, for when they have expired.
        extra: more arguments of every request.
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        key: str,
        settings: ReadSettings,
        explain: Explain,
        stop: threading.Event | None = None,
        renew: "Callable[[], S3Client] | None" = None,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._renew, self._extra = renew, extra
        self._client, self._bucket, self._key = client, bucket, key
        self._explain = explain
        self._stop = stop if stop is not None else threading.Event()
        self._began = time.monotonic()
        self._deadline_seconds = settings.deadline_seconds
        self._attempts = self._failures = 0
        self._failure: Exception | None = None
        self._version: _Version | None = None
        self._most_bytes: float = math.inf
        self._over = False
        self._lock = threading.Lock()

    def read(
        self,
        write: Callable[[bytes, int], object],
        *,
        ranges: int = 1,
        again: bool = True,
        most_bytes: int | None = None,
    ) -> int:
        """Pass the object's bytes to `write`, and return their number.

        Args:
            write: takes bytes and their offset in the object. With one range they come in order.
            ranges: most parts to request at the same time; each has LEAST_RANGE_BYTES or more.
            again: True if offsets may start at 0 again, which they do when the object is replaced meanwhile.
            most_bytes: the largest size that the object may have.

        Raises:
            Stopped: the read was cancelled.
            LargerError: the object has more than `most_bytes`.
            DataError: there is no such object, it cannot be read, or it was replaced and `again` is False.
            UnavailableError: the deadline has passed.
        """
        if most_bytes is not None:
            self._most_bytes = most_bytes
        while True:
            try:
                return self._read_version(write, ranges)
            except _ReplacedError as error:
                if not again:
                    raise DataError(self._line(error)) from error
                self._wait(error)
                self._version = None

    def _read_version(self, write: Callable[[bytes, int], object], ranges: int) -> int:
        if ranges == 1:
            return self._read_span(write, 0, None)
        # Only the answer to the first range reveals version and size; the others start while its body arrives.
        first = self._open(0, LEAST_RANGE_BYTES)
        size = self._known.size
        if size is None or "ContentRange" not in first:
            # The server does not say how long the object is, or ignores ranges and sends all of it each time.
            first["Body"].close()
            return self._read_span(write, 0, None)
        count = max(1, min(ranges, size // LEAST_RANGE_BYTES))
        cuts = [size * part // count for part in range(count + 1)]
        spans = [(min(LEAST_RANGE_BYTES, cuts[1]), cuts[1]), *itertools.pairwise(cuts[1:])]

        def read(begin: int, end: int, response: Any = None) -> Exception | None:
            try:
                self._read_span(write, begin, end, response)
            except Exception as error:
                # Stop the other ranges.
                self._over = True
                return error
            return None

        self._over = False
        with ThreadPoolExecutor(count) as pool:
            rest = [pool.submit(read, begin, end) for begin, end in spans if begin < end]
            failures = [read(0, min(LEAST_RANGE_BYTES, cuts[1]), first), *(part.result() for part in rest)]
        self._over = False
        # Ranges that were stopped are not the cause: raise the error that stopped them.
        for failure in sorted(filter(None, failures), key=lambda failure: isinstance(failure, Stopped)):
            raise failure
        return size

    def _read_span(
        self, write: Callable[[bytes, int], object], begin: int, end: int | None, response: Any = None
    ) -> int:
        """Read from one offset to another, or to the object's end; returns where it ended.

        `response` is an answer that is open already.
        """
        at = begin
        while True:
            try:
                if response is None:
                    response = self._request(at, end)
                last = self._known.size if end is None else end
                body = response["Body"]
                try:
                    self._skip(body, at - _first_byte(response, at))
                    # Without a length, only the end of the body says where the object ends.
                    while last is None or at < last:
                        block = body.read(_BLOCK_BYTES if last is None else min(_BLOCK_BYTES, last - at))
                        if not block:
                            if last is None:
                                break
                            raise _BrokenError(f"the body ends after {at - begin:,} of {last - begin:,} bytes")
                        self._check_size(at + len(block))
                        write(block, at)
                        at += len(block)
                        self._check_time(None)
                finally:
                    # Close the connection: to return it to the pool, the rest of the body would have to be read.
                    body.close()
                return at
            except Exception as error:
                response = None
                self._judge(error)
                self._wait(error)

    def _skip(self, body: Any, count: int) -> None:
        """Read bytes that were not asked for: a server that ignores ranges begins with the object's first byte."""
        while count > 0:
            block = body.read(min(_BLOCK_BYTES, count))
            if not block:
                raise _BrokenError("the body ends before the range that was asked for")
            count -= len(block)
            self._check_time(None)

    @property
    def _known(self) -> "_Version":
        assert self._version is not None
        return self._version

    def _open(self, begin: int, end: int | None) -> Any:
        while True:
            try:
                return self._request(begin, end)
            except Exception as error:
                self._judge(error)
                self._wait(error)

    def _request(self, begin: int, end: int | None) -> Any:
        with self._lock:
            self._attempts += 1
            version = self._version
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key, **self._extra}
        if version is not None and version.etag:
            request["IfMatch"] = version.etag
        if begin or end is not None:
            request["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        response = self._client.get_object(**request)
        try:
            self._check_kind(response)
            found = _version_of(response)
            self._check_size(found.size or 0)
            with self._lock:
                if self._version is None:
                    self._version = found
                if not self._version.may_be(found):
                    raise _ReplacedError
        except BaseException:
            response["Body"].close()
            raise
        return response

    def _check_kind(self, response: Any) -> None:
        """Refuse an answer whose body is not the object's bytes."""
        encodings = {word.strip().lower() for word in (response.get("ContentEncoding") or "").split(",")}
        # aws-chunked is how the object was sent to the store, not how it arrives.
        if packed := encodings - {"", "identity", "aws-chunked"}:
            raise DataError(
                self._line(
                    PlainError(
                        f"the answer is compressed (Content-Encoding: {min(packed)}), so that its bytes are not those "
                        "of the object. Switch compression off in the store or the proxy before it, or upload the "
                        "object again without that encoding."
                    )
                )
            )
        if not response.get("ETag") and (response.get("ContentType") or "").lower().startswith("text/html"):
            raise DataError(
                self._line(
                    PlainError(
                        "the answer is a web page, not the object: a login page, a proxy, or a server that is not S3. "
                        "Check AWS_ENDPOINT_URL and the network."
                    )
                )
            )

    def _check_size(self, size: int) -> None:
        if size > self._most_bytes:
            what = PlainError(f"it has more than {counted(int(self._most_bytes), 'byte')}. Copy it again.")
            raise LargerError(self._line(what))

    def _judge(self, error: Exception) -> None:
        """Raise an error that another attempt will not solve."""
        from botocore import exceptions

        if isinstance(error, Stopped | DataError | _ReplacedError):
            raise error
        if isinstance(error, exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            if status == 412 or (status == 416 and self._version is not None):
                raise _ReplacedError from error
            if code in EXPIRED and self._renew is not None:
                self._client, self._renew = self._renew(), None
                return
            if status < 500 and code not in _PASSING:
                raise DataError(self._line(error)) from error
        elif not isinstance(
            error,
            _BrokenError
            | exceptions.HTTPClientError
            | exceptions.ConnectionError
            | exceptions.IncompleteReadError
            | ConnectionError,
        ):
            if isinstance(error, exceptions.BotoCoreError | RecursionError):
                raise DataError(self._line(error)) from error
            if isinstance(error, ValueError):  # of botocore's parser
                what = PlainError(f"the answer has a header that cannot be read ({error}). Check the store.")
                raise DataError(self._line(what)) from error
            raise error

    def _wait(self, error: Exception) -> None:
        """Sleep before the next attempt; give up on request, or if the attempt would come after the deadline."""
        with self._lock:
            self._failure = error
            self._failures += 1
            longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(self._failures - 1, 16))
        delay = random.uniform(0, longest)
        self._check_time(error, delay)
        if self._stop.wait(delay):
            raise Stopped

    def _check_time(self, error: Exception | None, delay: float = 0.0) -> None:
        if self._stop.is_set() or self._over:
            raise Stopped
        if time.monotonic() + delay - self._began > self._deadline_seconds:
            slow = _BrokenError(f"not all of its bytes arrived within {self._deadline_seconds:g} s")
            raise UnavailableError(self._line(error or self._failure or slow)) from error

    def _line(self, error: BaseException) -> str:
        attempts = counted(self._attempts, "attempt")
        if self._failures:
            attempts += f" in {time.monotonic() - self._began:.0f} s"
        return self._explain(error, attempts)


@dataclass(frozen=True)
class _Version:
    """Everything that an answer says about the version of the object."""

    etag: str
    modified: str
    size: int | None
    """None if the server does not say."""

    def may_be(self, other: "_Version") -> bool:
        """Return False if the answers are of two versions."""
        sizes = {self.size, other.size} - {None}
        return (self.etag, self.modified) == (other.etag, other.modified) and len(sizes) < 2


def _version_of(response: Any) -> _Version:
    if "ContentRange" in response:
        whole = response["ContentRange"].rpartition("/")[2]
        size = int(whole) if whole.isdigit() else None
    else:
        length = response.get("ContentLength")
        size = None if length is None else int(length)
    etag = response.get("ETag") or ""
    # The date has seconds only, so that it is a poor substitute, but better than nothing.
    return _Version(etag, "" if etag else str(response.get("LastModified", "")), size)


def _first_byte(response: Any, asked: int) -> int:
    """Return the offset of the first byte of a body."""
    span = response.get("ContentRange", "")
    if not span:
        return 0  # a whole object
    first = span.removeprefix("bytes").strip(" =").partition("-")[0]
    found = int(first) if first.isdigit() else asked
    if found > asked:
        raise _BrokenError(f"the answer begins at byte {found:,}, not at {asked:,}")
    return found


class PlainError(Exception):
    """A cause in words, complete as it is."""


class _BrokenError(Exception):
    """A body that ended early."""


class _ReplacedError(Exception):
    """The object was replaced after the read began."""

    def __str__(self) -> str:
        return "the object was replaced while it was read. Run the command again"
