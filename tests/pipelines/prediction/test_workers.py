"""A job of predictions on the workers of a cluster: the same files as from one process, whatever is killed."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import parts
from data_shards.storage.open import open_store
from pipelines.cli import main
from pipelines.prediction import workers
from pipelines.prediction.job import PARTS, PartWorker
from pipelines.prediction.records import ImageRecord
from pipelines.prediction.sources import Sources
from tests.data_shards.samples import jpeg, photo
from tests.pipelines.prediction.runs import write_run

NUM_IMAGES = 27
WORDS = ("--threshold", "0.1", "--evaluation.limit", "4", "--as", "pictures", "coco", "csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "cells")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of four parts, one of which cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(photo(number, 48, 64)))
    (folder / "05.jpg").write_bytes(b"hello")
    return folder


def content(location: str) -> dict[str, bytes]:
    """The files of an output, except the description of its job, which names the sources."""
    store = open_store(location)
    return {name: store.read_bytes(name) for name in store.list_names() if name != "job.json"}


@pytest.mark.slow
def test_two_workers_one_of_them_killed_predict_on_each_image_in_s3_once(
    run: Path, photos: Path, s3: str, tmp_path: Path
) -> None:
    bucket = open_store(f"{s3}/photos")
    for path in photos.iterdir():
        bucket.upload(path, path.name)
    marker = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.pipelines.prediction.deadly_predict", str(marker), "19"]
    arguments = ["predict", str(run), f"{s3}/photos", "--output", f"{s3}/found", "--workers", "2", *WORDS, "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert marker.exists()
    assert "workers   2 on this machine, each with 1 CPU" in lines
    assert "workers   images 17 to 24 done again, because the worker was lost" in lines
    assert {line.split()[0] for line in lines} <= {
        *("weights", "images", "threshold", "output", "workers", "predict", "warning", "written", "done")
    }
    # Nothing but the summary is on stdout, although Ray reports lost workers there.
    summary = json.loads(done.stdout)
    assert summary["images"] == NUM_IMAGES - 1
    assert [one["image"] for one in summary["unreadable"]] == ["05.jpg"]
    found = content(f"{s3}/found")
    records = [
        ImageRecord.from_line(line)
        for name, data in found.items()
        if name.startswith(f"{PARTS}/")
        for line in data.splitlines()
    ]
    assert Counter(one.name for one in records) == Counter({f"{number:02d}.jpg": 1 for number in range(NUM_IMAGES)})

    main(["predict", str(run), str(photos), "--output", str(tmp_path / "alone"), *WORDS])
    assert found == content(str(tmp_path / "alone"))


class _NoCluster:
    """Runs the parts here, in reverse, as a worker would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.named: dict[str, Any] = {}
        self.names: list[str] = []
        monkeypatch.setattr(workers, "run_parts", self.run_parts)

    def run_parts(
        self, make_worker: parts.MakeWorker, numbered: list[parts.Part], *, shared: Any, **named: Any
    ) -> Iterator[tuple[parts.Part, Any]]:
        self.named, self.names = named, [part.name for part in numbered]
        run = make_worker(shared, torch.device("cpu"))
        for part in reversed(numbered):
            yield part, run(part.work)


def test_workers_take_the_place_of_one_process(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _NoCluster(monkeypatch)
    monkeypatch.chdir(tmp_path)
    main(["predict", str(run), "photos", "--output", "shared", "--workers", "3", *WORDS])
    assert cluster.names == ["images 1 to 8", "images 9 to 16", "images 17 to 24", "images 25 to 27"]
    assert cluster.named["workers"] == 3
    # The recipe of a run that was trained on CPUs does not take GPUs, as in one process.
    assert cluster.named["device"] == "auto"
    assert "predict   8/27 images" not in capsys.readouterr().err.splitlines()[-1]
    main(["predict", str(run), "photos", "--output", "alone", *WORDS])
    assert content("shared") == content("alone")


def test_a_job_of_one_process_is_resumed_by_workers(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _NoCluster(monkeypatch)
    words = ["predict", str(run), str(photos), "--output", str(tmp_path / "found"), *WORDS]
    main(words)
    before = content(str(tmp_path / "found"))
    (tmp_path / "found" / PARTS / "000002.jsonl").unlink()
    main([*words, "--workers", "2", "--cluster.device", "cpu"])
    assert cluster.names == ["images 17 to 24"]
    assert cluster.named["device"] == "cpu"
    assert "resumed   19 of 27 images were done" in capsys.readouterr().err
    assert content(str(tmp_path / "found")) == before


def test_a_worker_that_does_not_see_the_images_says_so(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _NoCluster(monkeypatch)
    run_parts = cluster.run_parts

    def elsewhere(*arguments: Any, **named: Any) -> Any:
        photos.rename(tmp_path / "on another machine")
        return run_parts(*arguments, **named)

    monkeypatch.setattr(workers, "run_parts", elsewhere)
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(photos), "--output", str(tmp_path / "found"), "--workers", "2", *WORDS])
    assert f"{photos} does not exist on" in capsys.readouterr().err


def test_an_output_that_is_another_folder_on_a_node_is_refused(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _NoCluster(monkeypatch)
    monkeypatch.setattr(workers, "_SEEN_SECONDS", 0.0)
    monkeypatch.setattr(PartWorker, "run", lambda self, numbers: iter([(0, 8)]))
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(photos), "--output", str(tmp_path / "found"), "--workers", "2", *WORDS])
    assert "found is not the same folder on every node. Give --output on a file system" in capsys.readouterr().err


def test_a_camera_has_no_workers(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sources, "has_camera", property(lambda self: True))
    with pytest.raises(SystemExit), redirect_stderr(io.StringIO()) as errors:
        main(["predict", str(run), str(photos), "--output", str(tmp_path / "found"), "--workers", "2", *WORDS])
    assert "the frames of a camera cannot be shared among workers; leave out --workers." in errors.getvalue()


@pytest.mark.parametrize("workers_word", ["0", "-2"])
def test_a_number_of_workers_is_one_or_more(
    run: Path, photos: Path, tmp_path: Path, workers_word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(photos), "--output", str(tmp_path / "found"), f"--workers={workers_word}"])
    assert f"--workers is {workers_word}; it must be 1 or more." in capsys.readouterr().err
