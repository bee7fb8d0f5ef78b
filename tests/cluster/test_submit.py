"""The environment and the names of jobs, and the addresses of job servers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.fake_cluster import free_port
from cluster.submit import JobServer, carried_environment, job_prefix


def test_a_job_receives_the_variables_it_needs_and_no_token() -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_PROFILE": "mine",  # names a file of this machine
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWEIGH_CACHE": "/home/me/cache",
        "RAY_AUTH_TOKEN": "secret",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
        "HOME": "/home/me",
        "WANTED": "yes",
    }
    assert carried_environment(environment, ("WANTED", "OTHER=a=b")) == {
        "AWS_ACCESS_KEY_ID": "key",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
        "WANTED": "yes",
        "OTHER": "a=b",
    }


def test_a_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(ClusterError, match="--env MISSING: this variable is not set here; give --env MISSING=VALUE"):
        carried_environment({}, ("MISSING",))


@given(st.text(min_size=1, max_size=150), st.text(min_size=1, max_size=150))
def test_ids_of_jobs_fit_a_url_and_tell_runs_apart(run: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", job_prefix(run))
    assert len(job_prefix(run)) <= 100
    assert (job_prefix(run) == job_prefix(other)) == (run == other)


BAD_ADDRESSES = [
    *("ray://head:10001", "ftp://head", "http://"),
    *("http://head:port", "http://head:99999", "http://[::1", "http://a..b:8265"),
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"give the address of Ray's dashboard, such as http://HEAD:8265"):
        JobServer(address)


def test_an_address_where_nobody_listens_is_reported_at_once() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"no Ray job server answers at {address}: Connection refused"):
        JobServer(address)
