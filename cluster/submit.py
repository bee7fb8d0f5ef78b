"""Ray's job server: start training on a cluster from any machine that can reach its dashboard.

Unusual here: a run may be submitted many times, one job after another (`NAME-1`, `NAME-2`, …), because Ray never
releases an id. A job's metadata names its run.
"""

import asyncio
import hashlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.authentication import WHERE, has_token, send_token
from cluster.environment import carried as environment_of_workers
from cluster.errors import ClusterError
from cluster.package import Package

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Variables that a job does not receive: they name files and endpoints of this machine, which the nodes lack.
_OF_THIS_MACHINE = frozenset(
    {
        *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"),
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_DISABLED"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWEIGH_CACHE"),
        *("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_EXECUTION_ENV", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
        *("MLFLOW_REGISTRY_URI", "NCCL_TOPO_FILE", "NCCL_CONF_FILE"),
    }
)
_RUN = "aweigh_run"  # the key of the run's name in a job's metadata
# Ray kills a job 3 s after it asked it to stop, unless told otherwise; a checkpoint takes longer.
_JOB_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
_RECONNECT_SECONDS = 600


@dataclass(frozen=True)
class Job:
    """One submission of a run."""

    id: str
    run: str
    """Name of the run; empty for a job that aweigh did not submit."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    message: str
    exit_status: int | None

    @property
    def has_ended(self) -> bool:
        """True if the job will print nothing more."""
        return self.status in ENDED


def carried_environment(environment: Mapping[str, str], named: tuple[str, ...] = ()) -> dict[str, str]:
    """Choose the variables of an environment that a job receives.

    Args:
        environment: variables of this process.
        named: more variables, as `NAME` (its value here) or `NAME=VALUE`.

    Raises:
        ClusterError: a named variable is not set here.
    """
    carried = {
        name: value for name, value in environment_of_workers(environment).items() if name not in _OF_THIS_MACHINE
    }
    for entry in named:
        name, equals, value = entry.partition("=")
        if not equals and name not in environment:
            raise ClusterError(f"--env {name}: this variable is not set here; give --env {name}=VALUE.")
        carried[name] = value if equals else environment[name]
    return carried


def job_prefix(run: str) -> str:
    """Return the part of a run's job ids before the number: the run's name, in characters that a URL can contain."""
    if re.fullmatch(r"\w[\w.-]{0,99}", run, flags=re.ASCII):
        return run
    # The digest tells runs apart whose names differ only in the replaced characters.
    plain = re.sub(r"[^\w.-]+", "-", run, flags=re.ASCII).strip("-.")[:80] or "run"
    return f"{plain}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"


class JobServer:
    """The job server of a cluster, reached through its dashboard's address."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ClusterError: no server answers there, or the token is missing or wrong.
        """
        self.address = _checked_address(address)
        send_token()
        # Ray prefers these variables to the address that it is called with.
        hidden = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
        try:
            from ray.job_submission import JobSubmissionClient

            for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
                logging.getLogger(name).setLevel(logging.ERROR)
            with self._explained():
                self._client = JobSubmissionClient(self.address)
        finally:
            os.environ.update({name: value for name, value in hidden.items() if value is not None})

    def jobs(self, run: str | None = None) -> list[Job]:
        """List the submitted jobs, the oldest first: all of them, or those of one run."""
        with self._explained():
            listed = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        chosen = [job for job in listed if run is None or job.run == run]
        return sorted(chosen, key=lambda job: job.started or 0)

    def job(self, id: str) -> Job:
        """Return the present state of a job."""
        with self._explained():
            return _job(self._client.get_job_info(id))

    def submit(self, run: str, entrypoint: str, package: Package, environment: Mapping[str, str]) -> Job:
        """Start a run's next job.

        Args:
            run: name of the run; only one of its jobs runs at a time.
            entrypoint: the shell command; the package is its working directory.
            package: the files to send, unless the cluster has them.
            environment: variables of the command and of every worker.

        Raises:
            ClusterError: the run is already being trained, or the cluster refuses the job.
        """
        earlier = self.jobs(run)
        if active := [job for job in earlier if not job.has_ended]:
            raise ClusterError(_is_running(run, active[-1].id))
        prefix = f"{job_prefix(run)}-"
        numbers = [job.id.removeprefix(prefix) for job in earlier]
        number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
        id = f"{prefix}{number}"
        with tempfile.TemporaryDirectory(prefix="aweigh-") as folder:
            archive = Path(folder) / "package.zip"
            package.write(archive)
            try:
                with self._explained():
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=id,
                        runtime_env={
                            "working_dir": str(archive),
                            "env_vars": {**_JOB_ENVIRONMENT, **environment},
                        },
                        metadata={_RUN: run},
                    )
            except ClusterError as error:
                # Somebody submitted the same run after we listed the jobs.
                raise ClusterError(_is_running(run, id)) if "already exists" in str(error) else error from None
        return self.job(id)

    def follow(self, id: str, write: Callable[[str], object]) -> Job:
        """Pass on the job's output, from its first line, until it ends; reconnects if the connection is lost.

        Raises:
            ClusterError: the head did not answer for ten minutes, or it answers but has lost the job.
        """
        from aiohttp import ClientError

        written = 0

        async def copy() -> None:
            nonlocal written
            passed = 0
            # Every connection starts at the first line again, so skip what has been written.
            async for text in self._client.tail_job_logs(id):
                fresh = text[max(0, written - passed) :]
                passed += len(text)
                if fresh:
                    written = passed
                    write(fresh)

        deadline = None
        while True:
            try:
                asyncio.run(copy())
                job = self.job(id)
                if job.has_ended:
                    return job
                deadline = None
            except (ClusterError, RuntimeError, OSError, ClientError) as error:
                if "does not exist" in str(error):
                    raise ClusterError(
                        f"the head at {self.address} does not know job {id} any more: the head was restarted. Submit "
                        f"the run again; it resumes."
                    ) from error
                deadline = deadline or time.monotonic() + _RECONNECT_SECONDS
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the head at {self.address} has not answered for {_RECONNECT_SECONDS // 60} minutes while "
                        f"following {id}: {error}. Start it again and submit the run again; it resumes."
                    ) from error
            time.sleep(2)

    def output(self, id: str) -> str:
        """Return all that the job has printed so far."""
        with self._explained():
            return self._client.get_job_logs(id)

    def stop(self, id: str, seconds: float) -> Job:
        """Ask a job to end, and wait until it has, for at most `seconds`; returns its state then."""
        with self._explained():
            self._client.stop_job(id)
        deadline = time.monotonic() + seconds
        while not (job := self.job(id)).has_ended and time.monotonic() < deadline:
            time.sleep(1)
        return job

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of Ray's client into one line that says what to do."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as error:
            problem = (
                f"refuses this machine's token; {WHERE}"
                if has_token() and "invalid" in str(error).lower()
                else f"requires a token; {WHERE}"
            )
            raise ClusterError(f"the Ray cluster at {self.address} {problem}.") from error
        except (ConnectionError, RequestException) as error:
            raise ClusterError(_unreachable(self.address, str(error))) from error
        except RuntimeError as error:
            # The server answers with its traceback, whose last line is the message.
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise ClusterError(f"the Ray cluster at {self.address}: {lines[-1].strip().rstrip('.')}.") from error


def _checked_address(address: str) -> str:
    """Return the dashboard's URL; fails at once if nobody listens there."""
    url = address if "://" in address else f"http://{address}"
    wrong = ClusterError(f"--address {address}: give the address of Ray's dashboard, such as http://HEAD:8265.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # a port that is not a number, half an IPv6 address
        raise wrong from None
    if parts.scheme not in ("http", "https") or not host:
        raise wrong
    try:
        socket.create_connection((host, port), timeout=10).close()
    except UnicodeError:  # a name that no host can have
        raise wrong from None
    except OSError as error:
        raise ClusterError(_unreachable(url, error.strerror or str(error))) from error
    return url.rstrip("/")


def _unreachable(address: str, cause: str) -> str:
    return (
        f"no Ray job server answers at {address}: {cause.strip().rstrip('.')}. Check --address; from outside the "
        f"cluster, `ray dashboard ray_cluster.yaml` opens a tunnel at {DEFAULT_ADDRESS}."
    )


def _is_running(run: str, id: str) -> str:
    return (
        f"run {run} is already being trained as job {id}. `aweigh logs {run}` follows it, `aweigh stop {run}` ends it."
    )


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        run=metadata.get(_RUN, ""),
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
        exit_status=details.driver_exit_code,
    )
