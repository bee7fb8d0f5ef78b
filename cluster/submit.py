"""Ray's job server: training started on a cluster from any machine that reaches its dashboard.

Unusual here: a run may be submitted many times, one job after another (`NAME-1`, `NAME-2`, …), since Ray never frees an
id. Which run a job belongs to stands in its metadata.
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
from cluster.errors import ClusterError
from cluster.package import Package

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# What a job is told of this machine's environment. Never Ray's token: who can read it has the cluster.
CARRIED_PREFIXES = ("AWS_", "MLFLOW_", "AWEIGH_", "NCCL_", "GLOO_", "RAY_TRAIN_")
# Files and endpoints of this machine alone mean nothing, or something else, on the nodes.
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
# Ray kills a job 3 s after it asked it to stop; a checkpoint takes longer.
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
        """Whether nothing more will come."""
        return self.status in ENDED


def carried_environment(environment: Mapping[str, str], named: tuple[str, ...] = ()) -> dict[str, str]:
    """Choose what a job is told of an environment.

    Args:
        environment: of this process.
        named: more variables, as `NAME` (its value here) or `NAME=VALUE`.

    Raises:
        ClusterError: a named variable is not set here.
    """
    carried = {
        name: value
        for name, value in environment.items()
        if name.startswith(CARRIED_PREFIXES) and name not in _OF_THIS_MACHINE
    }
    for entry in named:
        name, equals, value = entry.partition("=")
        if not equals and name not in environment:
            raise ClusterError(f"--env {name}: the variable is not set here; give --env {name}=VALUE.")
        carried[name] = value if equals else environment[name]
    return carried


def job_prefix(run: str) -> str:
    """The part of a run's job ids before the number: the run's name as far as a URL takes it."""
    if re.fullmatch(r"\w[\w.-]{0,99}", run, flags=re.ASCII):
        return run
    plain = re.sub(r"[^\w.-]+", "-", run, flags=re.ASCII).strip("-.")[:80] or "run"
    return f"{plain}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"


class JobServer:
    """The job server of a cluster, reached through its dashboard's address."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ClusterError: nobody answers there, or the token is missing or wrong.
        """
        self.address = _checked_address(address)
        send_token()
        # Ray prefers these over any address it is given.
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
        """Submitted jobs, the oldest first: all of them, or those of one run."""
        with self._explained():
            listed = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        chosen = [job for job in listed if run is None or job.run == run]
        return sorted(chosen, key=lambda job: job.started or 0)

    def job(self, id: str) -> Job:
        """A job as it stands now."""
        with self._explained():
            return _job(self._client.get_job_info(id))

    def submit(self, run: str, entrypoint: str, package: Package, environment: Mapping[str, str]) -> Job:
        """Start a run's next job.

        Args:
            run: its name; one job of a run exists at a time.
            entrypoint: the shell command, with the package as its working directory.
            package: sent unless the cluster has it.
            environment: variables of the command and of every worker.

        Raises:
            ClusterError: the run is being trained already, or the cluster refuses the job.
        """
        earlier = self.jobs(run)
        if going_on := [job for job in earlier if not job.has_ended]:
            raise ClusterError(_is_running(run, going_on[-1].id))
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
                # Somebody submitted the same run between our look and our request.
                raise ClusterError(_is_running(run, id)) if "already exists" in str(error) else error from None
        return self.job(id)

    def follow(self, id: str, write: Callable[[str], object]) -> Job:
        """Hand over what the job prints, from its first line, until it ends; a lost connection is made again.

        Raises:
            ClusterError: the head did not come back for ten minutes, or came back without the job.
        """
        from aiohttp import ClientError

        written = 0

        async def copy() -> None:
            nonlocal written
            passed = 0
            # Every connection starts at the first line again.
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
                        f"the head at {self.address} does not know job {id} any more: it was started anew. Submit the "
                        f"run again; it resumes."
                    ) from error
                deadline = deadline or time.monotonic() + _RECONNECT_SECONDS
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the head at {self.address} was lost while {id} was followed: {error}"
                    ) from error
            time.sleep(2)

    def output(self, id: str) -> str:
        """All that the job has printed so far."""
        with self._explained():
            return self._client.get_job_logs(id)

    def stop(self, id: str, seconds: float) -> Job:
        """Ask a job to end, and wait until it has, or until the seconds are over; gives it as it stands then."""
        with self._explained():
            self._client.stop_job(id)
        deadline = time.monotonic() + seconds
        while not (job := self.job(id)).has_ended and time.monotonic() < deadline:
            time.sleep(1)
        return job

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as error:
            problem = (
                f"refuses this machine's token; {WHERE}"
                if has_token() and "invalid" in str(error).lower()
                else f"asks for its token; {WHERE}"
            )
            raise ClusterError(f"the Ray cluster at {self.address} {problem}.") from error
        except (ConnectionError, RequestException) as error:
            raise ClusterError(_unreachable(self.address, str(error))) from error
        except RuntimeError as error:
            # The server answers with its traceback; the last line says it.
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise ClusterError(f"the Ray cluster at {self.address}: {lines[-1].strip().rstrip('.')}.") from error


def _checked_address(address: str) -> str:
    """The dashboard's URL; fails at once where nobody listens."""
    url = address if "://" in address else f"http://{address}"
    wrong = ClusterError(f"--address {address}: give the address of Ray's dashboard, such as http://HEAD:8265.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # a port that is no number, half an IPv6 address
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
        f"no Ray job server answers at {address}: {cause.strip().rstrip('.')}. Check --address; from outside, "
        f"`ray dashboard ray_cluster.yaml` makes a tunnel to {DEFAULT_ADDRESS}."
    )


def _is_running(run: str, id: str) -> str:
    return (
        f"run {run} is being trained already, as job {id}. `aweigh logs {run}` follows it, `aweigh stop {run}` ends it."
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
