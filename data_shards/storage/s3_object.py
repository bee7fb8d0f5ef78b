"""Reading one object of S3 to its end through network faults, from one version of it only.

botocore repeats a request, but not a body that breaks off, and nothing ties two requests to the same version of an
object. Here a read resumes at the byte where it broke, asks for the ETag that it began with, waits with full jitter
between attempts, and has one deadline for everything.

Source of the jitter: Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from data_shards.counting import counted
from data_shards.errors import DataError, UnavailableError
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
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        key: str,
        settings: ReadSettings,
        explain: Explain,
        stop: threading.Event | None = None,
    ) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self._explain = explain
        self._stop = stop if stop is not None else threading.Event()
        self._began = time.monotonic()
        self._deadline_seconds = settings.deadline_seconds
        self._attempts = self._failures = 0
        self._failure: Exception | None = None
        self._etag = ""
        self._size = -1
        self._over = False
        self._lock = threading.Lock()

    def read(self, write: Callable[[bytes, int], object], *, ranges: int = 1, again: bool = True) -> int:
        """Pass the object's bytes to `write`, and return their number.

        Args:
            write: takes bytes and their offset in the object. With one range they come in order.
            ranges: most parts to request at the same time; each has LEAST_RANGE_BYTES or more.
            again: True if offsets may start at 0 again, which they do when the object is replaced meanwhile.

        Raises:
            Stopped: the read was cancelled.
            DataError: there is no such object, it cannot be read, or it was replaced and `again` is False.
            UnavailableError: the deadline has passed.
        """
        while True:
            try:
                return self._read_version(write, ranges)
            except _ReplacedError as error:
                if not again:
                    raise DataError(self._line(error)) from error
                self._wait(error)
                self._etag, self._size = "", -1

    def _read_version(self, write: Callable[[bytes, int], object], ranges: int) -> int:
        if ranges == 1:
            self._read_span(write, 0, None)
            return self._size
        # Only the answer to the first range reveals version and size; the others start while its body arrives.
        first = self._open(0, LEAST_RANGE_BYTES)
        count = max(1, min(ranges, self._size // LEAST_RANGE_BYTES))
        cuts = [self._size * part // count for part in range(count + 1)]
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
        return self._size

    def _read_span(
        self, write: Callable[[bytes, int], object], begin: int, end: int | None, response: Any = None
    ) -> None:
        """Read from one offset to another, or to the object's end. `response` is an answer that is open already."""
        at = begin
        while True:
            try:
                if response is None:
                    response = self._request(at, end)
                last = self._size if end is None else end
                body = response["Body"]
                try:
                    while at < last:
                        block = body.read(min(_BLOCK_BYTES, last - at))
                        if not block:
                            raise _BrokenError(f"the body ends after {at - begin:,} of {last - begin:,} bytes")
                        write(block, at)
                        at += len(block)
                        self._check_time(None)
                finally:
                    # Close the connection: to return it to the pool, the rest of the body would have to be read.
                    body.close()
                return
            except Exception as error:
                response = None
                self._judge(error)
                self._wait(error)

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
            etag = self._etag
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key}
        if etag:
            request["IfMatch"] = etag
        if begin or end is not None:
            request["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        response = self._client.get_object(**request)
        whole = response.get("ContentRange", "").rpartition("/")[2]
        size = int(whole) if whole.isdigit() else int(response["ContentLength"])
        with self._lock:
            if not self._etag:
                self._etag, self._size = response["ETag"], size
            if (response["ETag"], size) != (self._etag, self._size):
                response["Body"].close()
                raise _ReplacedError
        return response

    def _judge(self, error: Exception) -> None:
        """Raise an error that another attempt will not solve."""
        from botocore import exceptions

        if isinstance(error, Stopped | DataError | _ReplacedError):
            raise error
        if isinstance(error, exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            if status == 412 or (status == 416 and self._etag):
                raise _ReplacedError from error
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
            if isinstance(error, exceptions.BotoCoreError):
                raise DataError(self._line(error)) from error
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


class _BrokenError(Exception):
    """A body that ended early."""


class _ReplacedError(Exception):
    """The object was replaced after the read began."""

    def __str__(self) -> str:
        return "the object was replaced while it was read. Run the command again"
