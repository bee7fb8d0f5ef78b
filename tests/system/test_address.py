"""Training on a Ray cluster that somebody else started, protected by its token as Ray 2.60 protects every one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fake_cluster import free_port
from tests.system.commands import train
from tests.system.ray_head import Head, ray_head

pytestmark = pytest.mark.slow


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("r"), cpus=3, dashboard=False) as head:
        yield head


def test_a_run_joins_the_cluster_at_ray_address(shards: Path, tmp_path: Path, head: Head) -> None:
    command = train(shards, tmp_path, "joined", RAY_ADDRESS=head.address, **head.environment)
    assert f"2 workers on Ray, {head.address}" in command.wait_for("cluster   ")
    assert "AP50" in command.finish()
    assert (tmp_path / "joined" / "result.json").exists()


def test_a_cluster_that_is_not_there_is_one_line(shards: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = train(shards, tmp_path, "nowhere", RAY_ADDRESS=address)
    command.finish(status=2)
    assert f"aweigh: the Ray cluster at RAY_ADDRESS={address} did not answer" in command.lines[-1]
