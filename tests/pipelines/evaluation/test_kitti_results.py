"""KITTI's result files: from detections on shards with cameras to the lines that KITTI's tool reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from data_shards.building.build import build_shards
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from detectors import Detections, Detector, Preprocessing
from detectors.sizes import Multiples
from pipelines import recipes
from pipelines.commands import evaluate as command
from pipelines.errors import ConfigError
from pipelines.evaluation import kitti_results
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.recipes.settings import EvaluationSettings
from pipelines.trained.trained import Identity, Trained
from tests.data_shards.samples import write_coco

CAMERA = [[72.0, 0.0, 60.0, 0.0], [0.0, 72.0, 18.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
FOUND = Detections(
    boxes=tensor([[50.0, 10.0, 70.0, 26.0], [20.0, 4.0, 30.0, 34.0], [0.0, 0.0, 9.0, 9.0]]),
    scores=tensor([0.75, 0.5, 0.125]),
    labels=tensor([1, 0, 1]),
    # Twelve metres ahead, on the axis; twelve metres ahead and six to the left, where the bearing is atan(-36 / 72).
    box3d=tensor([[60.0, 18, 12, 1.5, 1.75, 4, 0.5], [24, 18, 12, 1.75, 0.5, 0.75, -3], [5, 5, 9, 1, 1, 1, 0]]),
)


class Seer(Detector):
    """Finds the same three objects in every image, in the image frame of 124 x 36 pixels."""

    preprocessing = Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1.0)
    sizes = Multiples(4)
    num_classes = 2
    name = "seer"
    needs = ("depth", "dimensions", "alpha")

    def forward(self, images: Tensor) -> Tensor:
        return images

    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> Tensor:
        return labels

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": outputs.sum() * 0}

    def decode(self, outputs: Tensor, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        return [FOUND.rows(torch.arange(3)) for _ in outputs]


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images, of which the last one has no camera."""
    folder = tmp_path_factory.mktemp("driven")
    images: list[dict[str, Any]] = [
        {"id": number, "file_name": f"00000{number}.jpg", "width": 124, "height": 36} for number in (3, 4, 5)
    ]
    for image in images[:2]:
        image["calib"] = CAMERA
    annotation = {"category_id": 1, "depth": 9.0, "dim": [1.5, 1.6, 3.0], "alpha": 0.0, "bbox": [50, 10, 20, 16]}
    content = {
        "images": images,
        "annotations": [{**annotation, "id": number, "image_id": number} for number in (3, 4, 5)],
        "categories": [{"id": 1, "name": "Pedestrian"}, {"id": 2, "name": "Car"}],
    }
    annotations, pictures = write_coco(folder, content)
    return build_shards(annotations, pictures, str(folder / "out"), split="val").location


def judged(location: str, input_size: tuple[int, int] = (36, 124), **settings: Any) -> Evaluation:
    found = evaluate(
        Seer(),
        Reading(split=open_split(location), max_objects=8, threads=1),
        replace(EvaluationSettings(), geometry="fixed", pictures=0, **settings),
        input_size=input_size,
        device=torch.device("cpu"),
        world=World(1, 0),
        keep_results=True,
    )
    assert found is not None
    return found


def test_results_are_in_image_and_camera_terms(driven: str) -> None:
    results = judged(driven).results
    assert [result["image_id"] for result in results] == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    first, second = results[:2]
    assert first == {
        "image_id": 3,
        "category_id": 2,
        "bbox": [50.0, 10.0, 20.0, 16.0],
        "score": 0.75,
        "center": [60.0, 18.0],
        "depth": 12.0,
        "dimensions": [1.5, 1.75, 4.0],
        "alpha": 0.5,
        # The middle of the underside is half the height below the centre.
        "location": [0.0, 0.75, 12.0],
        "rotation_y": 0.5,
    }
    assert second["location"] == pytest.approx([-6.0, 0.875, 12.0])
    # -3 - 0.4636 is a turn less than 2.8195.
    assert second["rotation_y"] == pytest.approx(2.8195, abs=1e-4)
    assert "location" not in results[6]
    assert results[6]["depth"] == 12.0


def test_published_heights_are_an_option_of_detectors_in_3d(driven: str) -> None:
    # An input of the image's own size adds nothing.
    plain, same = judged(driven), judged(driven, published_heights=True)
    assert [one["bbox"] for one in plain.results] == [one["bbox"] for one in same.results]
    # With 4 rows more above and below the image, all heights are 4 less, and the middles stay.
    plain, lower = (judged(driven, published_heights=published, input_size=(44, 124)) for published in (False, True))
    (x, y, width, height), (left, top, as_wide, less_high) = plain.results[0]["bbox"], lower.results[0]["bbox"]
    assert (left, as_wide) == pytest.approx((x, width))
    assert (top, less_high) == pytest.approx((y + 2, height - 4))
    seer = Seer()
    seer.needs = ()
    with pytest.raises(ConfigError, match="published_heights is for detectors in 3D, unlike seer; leave it off"):
        evaluate(
            seer,
            Reading(split=open_split(driven), max_objects=8, threads=1),
            EvaluationSettings(published_heights=True),
            input_size=(36, 124),
            device=torch.device("cpu"),
            world=World(1, 0),
        )


def test_a_line_has_kittis_sixteen_fields(driven: str, tmp_path: Path) -> None:
    images = [{"id": 3, "file_name": "training/000003.png", "calib": CAMERA}, {"id": 4, "calib": CAMERA}, {"id": 5}]
    names = kitti_results.file_names(images)
    assert names == {3: "000003.txt", 4: "000004.txt"}
    results = judged(driven).results[:3]
    kitti_results.write(tmp_path / "k", names, results, {1: "Person sitting", 2: "Car"}, score_threshold=0.2)
    assert sorted(path.name for path in (tmp_path / "k").iterdir()) == ["000003.txt", "000004.txt"]
    lines = (tmp_path / "k" / "000003.txt").read_text().splitlines()
    assert lines == [
        "Car -1 -1 0.5000 50.0000 10.0000 70.0000 26.0000 1.5000 1.7500 4.0000 0.0000 0.7500 12.0000 0.5000 0.750000",
        "Person_sitting -1 -1 -3.0000 20.0000 4.0000 30.0000 34.0000 1.7500 0.5000 0.7500 -6.0000 0.8750 12.0000 2.8195"
        " 0.500000",
    ]
    assert all(len(line.split()) == 16 for line in lines)
    # An image in which nothing was found has a file, too.
    assert (tmp_path / "k" / "000004.txt").read_text() == ""


@pytest.mark.parametrize("other", ["b/7.png", "7.jpg", "b\\7.png"])
def test_images_that_would_share_a_file_are_refused(other: str) -> None:
    images = [{"id": 1, "file_name": "a/7.png", "calib": CAMERA}, {"id": 2, "file_name": other, "calib": CAMERA}]
    with pytest.raises(ConfigError, match=r"the images a/7.png and .* would both have their results in 7.txt; rename"):
        kitti_results.file_names(images)


def test_names_stay_in_the_folder() -> None:
    images = [
        {"id": 1, "file_name": "../../outside.png", "calib": CAMERA},
        {"id": 2, "file_name": "..", "calib": CAMERA},
    ]
    assert kitti_results.file_names(images) == {1: "outside.txt", 2: "...txt"}


def open_seer(monkeypatch: pytest.MonkeyPatch, location: str, needs: tuple[str, ...] = Seer.needs) -> None:
    split, seer = open_split(location), Seer()
    seer.needs = needs
    recipe = recipes.get("centernet_dla34_3d_3dop")
    evaluation = replace(recipe.evaluation, geometry="fixed", input_size=(36, 124), kitti_score_threshold=0.6)
    trained = Trained(
        detector=seer.eval(),
        classes=split.manifest.classes,
        recipe=replace(recipe, evaluation=evaluation),
        identity=Identity(location="run", step=1),
        device=torch.device("cpu"),
    )
    reading = Reading(split=split, max_objects=8, threads=1)
    opened = command._Judged(trained=trained, manifest=split.manifest, location=location, reading=reading)
    monkeypatch.setattr(command, "_open", lambda *arguments: opened)


def test_the_command_writes_both_kinds_of_files(
    driven: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_seer(monkeypatch, driven)
    options: dict[str, Any] = {"data": None, "newest": False, "pictures": None, "as_json": True, "flags": []}
    command.evaluate_run(Path("run"), **options, detections=tmp_path / "new" / "found.json", kitti=tmp_path / "kitti")
    results = json.loads((tmp_path / "new" / "found.json").read_text())
    assert len(results) == 9
    assert results[0]["location"] == [0.0, 0.75, 12.0]
    files = sorted((tmp_path / "kitti").iterdir())
    assert [path.name for path in files] == ["000003.txt", "000004.txt"]
    assert [len(path.read_text().splitlines()) for path in files] == [1, 1]
    said = capsys.readouterr().err
    assert f"{tmp_path / 'kitti'}, 2 files, scores above 0.6; 1 image without a camera left out" in said


def test_the_command_refuses_before_it_evaluates(driven: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"data": None, "newest": False, "pictures": None, "as_json": True, "flags": []}
    open_seer(monkeypatch, driven, needs=())
    with pytest.raises(ConfigError, match="--kitti is for detectors in 3D, unlike seer; leave it out"):
        command.evaluate_run(Path("run"), **options, kitti=tmp_path / "kitti")
    open_seer(monkeypatch, driven)
    monkeypatch.setattr(kitti_results, "is_calibration", lambda value: False)
    with pytest.raises(
        ConfigError, match=r"no image of .* has a camera, .* build the shards from annotations whose im"
    ):
        command.evaluate_run(Path("run"), **options, kitti=tmp_path / "kitti")
    assert not (tmp_path / "kitti").exists()
