"""The job behind `aweigh predict`: every image once, whatever stops it, and nothing half-written."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_shards.building.build import build_shards
from data_shards.reading.split import open_split
from data_shards.storage.folder import FolderStore
from data_shards.storage.open import open_store
from pipelines.cli import main
from pipelines.prediction import videos
from pipelines.prediction.job import PARTS, part_size_of
from pipelines.prediction.records import ImageRecord
from tests.data_shards.samples import document, jpeg, photo, write_coco
from tests.pipelines.prediction.runs import write_run
from tests.pipelines.prediction.test_videos import write_video

# The weights are random: every score is near 0.1.
THRESHOLD = ("--threshold", "0.1", "--evaluation.limit", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "cells")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nineteen images, two of which cannot be read: three parts of eight."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(19):
        height, width = ((48, 64), (64, 48), (40, 40))[number % 3]
        (folder / f"{number}.jpg").write_bytes(jpeg(photo(number, height, width)))
    (folder / "5.jpg").write_bytes(b"hello")
    (folder / "11.jpg").write_bytes((folder / "10.jpg").read_bytes()[:300])
    return folder


def predict(*words: object) -> None:
    main(["predict", *map(str, words)])


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def records(folder: Path) -> list[ImageRecord]:
    return [
        ImageRecord.from_line(line)
        for path in sorted((folder / PARTS).iterdir())
        for line in path.read_text().splitlines()
    ]


ALL = ("--as", "pictures", "coco", "yolo", "csv", "prelabels")


@pytest.fixture(scope="module")
def undisturbed(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "found"
    predict(run, photos, "--output", folder, *THRESHOLD, *ALL)
    return files(folder)


def test_every_image_is_in_the_records_once_and_those_that_cannot_be_read_are_listed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(run, photos, "--output", tmp_path / "found", *THRESHOLD, "--as", "csv", "--json")
    found = records(tmp_path / "found")
    assert [one.name for one in found] == [f"{number}.jpg" for number in range(19)]
    assert [one.number for one in found] == list(range(19))
    assert [one.name for one in found if one.problem] == ["5.jpg", "11.jpg"]
    assert (tmp_path / "found" / "unreadable.txt").read_text().splitlines() == [
        "5.jpg: neither a JPEG nor a PNG (it begins with 68 65 6c 6c 6f)",
        "11.jpg: the JPEG ends early",
    ]
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["images"], len(summary["unreadable"])) == (17, 2)
    assert summary["objects"] == sum(len(one.scores) for one in found) > 17
    assert "2 images could not be read" in output.err
    rows = list(csv.DictReader((tmp_path / "found" / "detections.csv").open()))
    assert len(rows) == summary["objects"]
    assert {row["class"] for row in rows} <= {"person", "dog", "bottle"}
    assert all(float(row["score"]) >= 0.1 for row in rows)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs afterwards."""


@pytest.mark.parametrize("write", [0, 1, 9, 17, 18, 37, 38, 41, 46])
def test_a_job_that_is_killed_at_any_write_is_completed_by_the_same_command(
    run: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: int,
) -> None:
    done = 0
    original = {name: getattr(FolderStore, name) for name in ("write_bytes", "upload")}

    def counted(name: str) -> Any:
        def replacement(self: FolderStore, *arguments: Any) -> None:
            nonlocal done
            if done >= write:
                raise Killed
            done += 1
            original[name](self, *arguments)

        return replacement

    for name in original:
        monkeypatch.setattr(FolderStore, name, counted(name))
    command = (run, photos, "--output", tmp_path / "found", *THRESHOLD, *ALL)
    with pytest.raises(Killed):
        predict(*command)
    monkeypatch.undo()
    predict(*command)
    assert files(tmp_path / "found") == undisturbed


def test_a_finished_job_that_is_run_again_predicts_nothing_and_writes_the_same(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (run, photos, "--output", tmp_path / "found", *THRESHOLD, "--as", "coco")
    predict(*command)
    before = files(tmp_path / "found")
    monkeypatch.setattr("pipelines.prediction.job.PartWorker._predicted", None)
    predict(*command)
    assert files(tmp_path / "found") == before
    assert "resumed   19 of 19 images were done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--threshold", "0.2"), "threshold.bottle: 0.1 → 0.2"),
        (("--as", "csv"), "as: coco → csv"),
        (("--tiles", "32"), "tiles: none → 32, 6"),
        (("--limit", "7"), "sources.images: 19 → 7"),
        (("--evaluation.limit", "9"), "evaluation.limit: 4 → 9"),
    ],
)
def test_another_job_does_not_write_into_the_same_folder(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], message: str
) -> None:
    command = [run, photos, "--output", tmp_path / "found", "--as", "coco", *THRESHOLD, *change]
    predict(run, photos, "--output", tmp_path / "found", "--as", "coco", *THRESHOLD)
    before = files(tmp_path / "found")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        predict(*command)
    assert f"has the predictions of another job ({message})" in capsys.readouterr().err
    assert files(tmp_path / "found") == before


def test_other_weights_or_images_of_the_same_number_are_another_job(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    one, other = tmp_path / "a" / "1.jpg", tmp_path / "a" / "2.jpg"
    one.parent.mkdir()
    one.write_bytes((photos / "1.jpg").read_bytes()), other.write_bytes((photos / "2.jpg").read_bytes())
    predict(run, one, "--output", tmp_path / "found")
    with pytest.raises(SystemExit):
        predict(run, other, "--output", tmp_path / "found")
    assert "another job (its images differ)" in capsys.readouterr().err
    wider = write_run(tmp_path / "wider", settings={"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 16})
    with pytest.raises(SystemExit):
        predict(wider, one, "--output", tmp_path / "found")
    assert f"its detector was {run}" in capsys.readouterr().err


def test_the_batch_may_change_between_attempts(run: Path, photos: Path, tmp_path: Path) -> None:
    predict(run, photos, "--output", tmp_path / "found", *THRESHOLD, "--as", "coco")
    (tmp_path / "found" / PARTS / "000001.jsonl").unlink()
    predict(run, photos, "--output", tmp_path / "found", *THRESHOLD, "--as", "coco", "--batch", "3")
    assert [one.number for one in records(tmp_path / "found")] == list(range(19))


def test_overwrite_starts_again_and_leaves_other_files_alone(run: Path, photos: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    predict(run, photos, "--output", found, *THRESHOLD, "--as", "pictures", "coco")
    (found / "notes.txt").write_text("mine")
    predict(run, photos / "1.jpg", "--output", found, *THRESHOLD, "--as", "csv", "--overwrite")
    assert sorted(files(found)) == ["detections.csv", "job.json", "notes.txt", "parts/000000.jsonl"]


def test_overwrite_of_the_same_job_resumes_it(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        predict(run, photos, "--output", tmp_path / "found", "--as", "csv", "--overwrite")
    assert "19 of 19 images were done" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        predict(run, photos, "--output", tmp_path)
    assert f"{tmp_path} has files of something else; choose another --output" in capsys.readouterr().err


def test_no_readable_image_fails(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        predict(run, photos / "5.jpg", "--output", tmp_path / "found", *ALL)
    assert "no image could be read" in capsys.readouterr().err


def test_a_folder_and_shards_give_the_same_records(run: Path, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "raw", document(10))
    build_shards(annotations, images, str(tmp_path / "shards"), split="val")
    predict(run, images, "--output", tmp_path / "one", *THRESHOLD, "--as", "csv")
    predict(run, tmp_path / "shards" / "val", "--output", tmp_path / "other", *THRESHOLD, "--as", "csv")
    # Shards have an order of their own.
    ours, theirs = (sorted(records(tmp_path / name), key=lambda one: one.name) for name in ("one", "other"))
    assert len(ours) == len(theirs) == 10
    for one, other in zip(ours, theirs, strict=True):
        assert one.name == other.name
        assert len(one.scores)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_results_of_shards_are_those_of_an_evaluation(run: Path, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "raw", document(10))
    build_shards(annotations, images, str(tmp_path / "shards"), split="val")
    shards = tmp_path / "shards" / "val"
    predict(run, shards, "--output", tmp_path / "found", "--threshold", "0", "--as", "coco")
    main(["evaluate", str(run), "--data", str(shards), "--detections", str(tmp_path / "evaluated.json")])
    ours = json.loads((tmp_path / "found" / "coco" / "results.json").read_text())
    theirs = json.loads((tmp_path / "evaluated.json").read_text())
    assert sorted(ours, key=lambda one: one["image_id"]) == theirs
    names = {
        one["id"]: one["file_name"]
        for one in json.loads((tmp_path / "found" / "coco" / "images.json").read_text())["images"]
    }
    assert names == {one["id"]: one["file_name"] for one in document(10)["images"]}
    assert len(open_split(str(shards)).manifest.classes) == 3


def test_a_video_is_drawn_frame_by_frame(run: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", frames=20, size=(96, 64))
    predict(run, clip, "--output", tmp_path / "found", *THRESHOLD)
    drawn = cv2.VideoCapture(str(tmp_path / "found" / "video" / "clip.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (12, 20)
    assert [one.name for one in records(tmp_path / "found")][-1] == "clip/frame_000019.jpg"
    assert sorted(one.name for one in (tmp_path / "found").iterdir()) == ["job.json", "parts", "video"]


def test_large_images_are_predicted_on_tile_by_tile(run: Path, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(jpeg(photo(1, 200, 300)))
    predict(
        run, tmp_path / "large.jpg", "--output", tmp_path / "found", *THRESHOLD, "--tiles", "100", "--overlap", "20"
    )
    (one,) = records(tmp_path / "found")
    assert (one.height, one.width) == (200, 300)
    assert one.boxes[:, 0].max() > 150, "objects of tiles are in the frame of the image"


class EndlessCapture:
    """A camera that is stopped with Ctrl-C when it has delivered 40 frames."""

    frames = 0

    def __init__(self, index: int) -> None:
        EndlessCapture.frames = 0

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, what: int) -> float:
        return 15.0

    def read(self) -> tuple[bool, Any]:
        EndlessCapture.frames += 1
        if EndlessCapture.frames > 40:
            raise KeyboardInterrupt
        return True, np.full((64, 96, 3), EndlessCapture.frames, dtype=np.uint8)

    def release(self) -> None:
        return


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cv2.VideoCapture
    monkeypatch.setattr(
        videos.cv2, "VideoCapture", lambda source: EndlessCapture(source) if isinstance(source, int) else real(source)
    )
    return


def test_a_camera_is_recorded_until_ctrl_c(
    run: Path, tmp_path: Path, camera: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    predict(run, "0", "--output", "found", *THRESHOLD)
    found = records(tmp_path / "found")
    assert [one.number for one in found] == list(range(len(found)))
    # The chunk that Ctrl-C interrupts is lost.
    assert 32 <= len(found) <= 40
    drawn = cv2.VideoCapture(str(tmp_path / "found" / "video" / "camera-0.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == len(found)
    assert not list((tmp_path / "found").rglob("*.jpg"))
    with pytest.raises(SystemExit, match="2"):
        predict(run, "0", "--output", "found", *THRESHOLD)
    assert "a camera's frames do not come again" in capsys.readouterr().err
    predict(run, "0", "--output", "found", *THRESHOLD, "--limit", "5", "--overwrite")
    assert len(records(tmp_path / "found")) == 5


def test_results_can_be_written_to_s3(run: Path, photos: Path, s3: str, undisturbed: dict[str, bytes]) -> None:
    predict(run, photos, "--output", f"{s3}/found", *THRESHOLD, *ALL)
    store = open_store(f"{s3}/found")
    assert {name: store.read_bytes(name) for name in store.list_names()} == undisturbed


@pytest.mark.parametrize(
    ("images", "batch", "size"),
    [
        (1, 8, 8),
        (16, 8, 8),
        (16, 1, 8),
        (16, 32, 32),
        (1000, 8, 16),
        (200_000, 8, 64),
        (1_000_000, 8, 248),
        (1_000_000, 48, 288),
    ],
)
def test_parts_are_whole_batches(images: int, batch: int, size: int) -> None:
    assert part_size_of(images, batch) == size
