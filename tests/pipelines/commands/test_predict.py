"""The command line of `aweigh predict`: thresholds, formats, and one line for every mistake."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.commands import predict
from pipelines.errors import ConfigError
from pipelines.prediction.outputs.formats import OUTPUTS
from pipelines.trained.trained import Trained, open_trained
from tests.data_shards.samples import jpeg, photo
from tests.pipelines.prediction.runs import write_run
from tests.pipelines.prediction.test_videos import write_video

NAMES = ("cat", "traffic light", "a=b")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "cells")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(photo(1)))
    return path


@pytest.mark.parametrize(
    ("words", "trained", "expected"),
    [
        ([], {}, (0.3, 0.3, 0.3)),
        ([], {"cat": 0.42}, (0.42, 0.3, 0.3)),
        (["0.5"], {"cat": 0.42}, (0.5, 0.5, 0.5)),
        (["traffic light=0.1", "a=b=1"], {"cat": 0.42}, (0.42, 0.1, 1)),
        (["0.5", "cat=0"], {}, (0, 0.5, 0.5)),
    ],
)
def test_thresholds(words: list[str], trained: dict[str, float], expected: tuple[float, ...]) -> None:
    assert tuple(predict.thresholds(words, trained, NAMES).values()) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("high", "--threshold high: give a number from 0 to 1, or CLASS=NUMBER"),
        ("50", "--threshold 50: give a number from 0 to 1"),
        ("nan", "--threshold nan: give a number from 0 to 1"),
        ("cat=", "--threshold cat=: give a number"),
        ("cta=0.5", "the detector has no class 'cta'; did you mean 'cat'"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict.thresholds([word], {}, NAMES)


def test_the_words_of_as_are_the_formats() -> None:
    assert tuple(OUTPUTS) == predict._FORMATS


def test_the_run_s_own_thresholds_are_used_and_named(
    run: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_thresholds(*arguments: object, **more: object) -> Trained:
        return replace(open_trained(run), thresholds={"dog": 0.05, "person": 0.9})

    monkeypatch.setattr("pipelines.trained.trained.open_trained", with_thresholds)
    main(["predict", str(run), str(image), "--output", str(tmp_path / "found"), "--as", "csv", "--json"])
    output = capsys.readouterr()
    assert json.loads(output.out)["threshold"] == {"person": 0.9, "dog": 0.05, "bottle": 0.3}
    assert "threshold person 0.9, dog 0.05, bottle 0.3 (best F1 of each class in the run's evaluation)" in output.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch is 0; it must be 1 or more"),
        (["--overlap", "0.2"], "--overlap is of tiles; give --tiles SIZE, too"),
        (["--tiles", "16"], "a tile must be at least 32 pixels"),
        (["--as", "kitti"], "--as kitti is for detectors in 3D, unlike centernet_resnet18"),
        (["--calibration", "x"], "--calibration is for detectors in 3D"),
        (["--as", "video"], "there is none; use pictures"),
        (["--as", "csw"], "unknown --as 'csw'; did you mean 'csv'?"),
        (["--tta", "multiscael"], "did you mean 'multiscale'?"),
        (["--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["--optimizer.name", "sgd"], "belongs to the trained weights"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(run), str(image), "--output", str(tmp_path / "found"), *flags])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


def test_a_source_that_does_not_exist_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(run), str(tmp_path / "no.jpg"), "--output", str(tmp_path / "found")])
    assert "there is no file or folder" in capsys.readouterr().err


def test_images_become_pictures_and_videos_become_videos(run: Path, image: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", 2)
    main(["predict", str(run), str(clip), str(image), "--output", str(tmp_path / "both")])
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["job.json", "parts", "pictures", "video"]
    main(["predict", str(run), str(clip), "--output", str(tmp_path / "video")])
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == ["job.json", "parts", "video"]
