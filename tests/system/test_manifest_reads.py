"""A location is opened once by every process of a run, and its manifest is read once."""

from pathlib import Path

from pipelines.stand_ins.object_server import ObjectServer
from tests.system.commands import train


def test_driver_and_worker_read_each_manifest_once_whatever_they_evaluate(shards: Path, tmp_path: Path) -> None:
    with ObjectServer() as server:
        for split in ("train", "val"):
            for path in (shards / split).iterdir():
                server.objects[f"bucket/{split}/{path.name}"] = path.read_bytes()
        command = train(
            *("s3://bucket", tmp_path / "runs", "counted", "--cluster.workers", "1"),
            *("--schedule.epochs", "2", "--schedule.drops_at", "1", "--evaluation.every_epochs", "1"),
            AWS_ENDPOINT_URL=server.endpoint,
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
            AWEIGH_CACHE=str(tmp_path / "cache"),
        )
        command.finish()
    assert sum("AP50" in line for line in command.lines) >= 2  # both epochs were evaluated
    # The driver checks the data before a worker starts; the worker trains and evaluates twice.
    assert [len(server.gets(f"{split}/manifest.json")) for split in ("train", "val")] == [2, 2]
