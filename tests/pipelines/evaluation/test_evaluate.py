"""Evaluation: boxes brought back to the image, every image judged once, losses that do not depend on the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from data_shards.building.build import build_shards
from data_shards.loading.augment import augment
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from data_shards.settings import BoxRules
from detectors import Detections, Detector, Preprocessing
from detectors.sizes import Multiples
from pipelines.evaluation.evaluate import Evaluation, EvaluationError, EvaluationStoppedError, evaluate
from pipelines.evaluation.report import figures, tables
from pipelines.recipes.settings import EvaluationSettings
from tests.cluster.processes import run_processes
from tests.data_shards.loaders import evaluation_loader
from tests.data_shards.samples import document, write_coco

EDGES = BoxRules()
PLAIN = Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1.0)


class Oracle(Detector):
    """Knows the truth of every image of a set by its pixels; its loss is the number of objects."""

    preprocessing = PLAIN
    sizes = Multiples(32)
    num_classes = 3

    def __init__(self, location: str, geometry: str, input_size: tuple[int, int], rules: BoxRules) -> None:
        super().__init__()
        self.truth: dict[float, tuple[Tensor, Tensor]] = {}
        options: dict[str, Any] = {"geometry": geometry, "shorter_side": 80, "boxes": rules}
        with evaluation_loader(location, World(1, 0), input_size=input_size, **options) as batches:
            for batch in batches:
                real = batch.labels[0] >= 0
                key = float(augment(batch, PLAIN).double().sum())
                self.truth[key] = (batch.boxes[0][real], batch.labels[0][real])
        self.calls = 0

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [{"sums": images.double().sum(dim=(1, 2, 3))}]

    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> Tensor:
        return labels

    def losses(self, outputs: list[dict[str, Tensor]], targets: Tensor) -> dict[str, Tensor]:
        assert len(targets) == len(outputs[0]["sums"]) == 1  # one image at a time
        return {"loss": (targets >= 0).sum().float()}

    def decode(
        self, outputs: list[dict[str, Tensor]], input_size: tuple[int, int], limit: int = 100
    ) -> list[Detections]:
        found = [self.truth[float(value)] for value in outputs[0]["sums"]]
        return [Detections(boxes, torch.ones(len(boxes)), labels) for boxes, labels in found]


def _evaluate(
    location: str, geometry: str, batch_size: int, rules: BoxRules = EDGES, *, pictures: int = 2
) -> Evaluation:
    found = evaluate(
        Oracle(location, geometry, (64, 96), rules),
        Reading(split=open_split(location), max_objects=8, threads=1, boxes=rules),
        EvaluationSettings(geometry=geometry, batch_size=batch_size, shorter_side=80, pictures=pictures),  # type: ignore[arg-type]
        input_size=(64, 96),
        device=torch.device("cpu"),
        world=World(1, 0),
    )
    assert found is not None
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("geometry", ["fixed", "keep", "width", "shorter_side"])
def test_who_knows_the_truth_has_an_ap_of_one(small_shards: Path, geometry: str, batch_size: int) -> None:
    found = _evaluate(str(small_shards / "train"), geometry, batch_size)
    # Boxes went from the image to the input and back; a wrong frame would cost every strict IoU.
    assert pytest.approx(1.0) == found.coco.AP
    assert found.num_images == 12
    # Images have 0, 1, 2, 3, 0, … objects: 18 on 12 images, whatever the batch.
    assert found.losses == {"loss": 1.5}
    assert found.metrics()["val/loss"] == 1.5
    named = [(picture.image_id, picture.file_name) for picture in found.drawn.fixed]
    # Together they show a dog and a person, and a person and a bottle.
    assert named == [(121, "121.jpg"), (170, "170.jpg")]
    assert found.drawn.worst == []


def test_boxes_that_end_on_their_last_pixel_get_it_back(small_shards: Path) -> None:
    rules = BoxRules(crowd="drop", box_ends="last_pixel")
    found = _evaluate(str(small_shards / "train"), "shorter_side", 2, rules)
    assert pytest.approx(1.0) == found.coco.AP
    assert found.losses == {"loss": 1.25}  # without the crowds of three images, 15 on 12
    assert [len(picture.truth_crowd) for picture in found.drawn.fixed] == [2, 2]  # the third of 121 is a crowd


def test_a_picture_is_the_photograph_without_the_letterbox(small_shards: Path) -> None:
    pictures = _evaluate(str(small_shards / "train"), "fixed", 1, pictures=12).drawn.fixed
    with_one_box = next(picture for picture in pictures if picture.image_id == 107)
    # Image 107 is 64 high and 48 wide; its longer side fills the input's width of 96, 1.5 times larger.
    # The input is only 64 high, so 16 rows of 96 are cut off at the top and the bottom.
    assert with_one_box.image.shape == (64, 72, 3)
    assert_close(torch.tensor(with_one_box.truth_boxes[0]), torch.tensor(with_one_box.predicted_boxes[0]))
    assert list(with_one_box.truth_crowd) == [False]


class Posed(Oracle):
    """Knows where the joints of every image are, too."""

    needs = ("keypoints",)

    def __init__(self, location: str) -> None:
        super().__init__(location, "keep", (64, 96), BoxRules())
        self.joints: dict[float, Tensor] = {}
        with evaluation_loader(location, World(1, 0), geometry="keep") as batches:
            for batch in batches:
                assert batch.keypoints is not None
                key = float(augment(batch, PLAIN).double().sum())
                self.joints[key] = batch.keypoints[0][batch.labels[0] >= 0]

    def decode(
        self, outputs: list[dict[str, Tensor]], input_size: tuple[int, int], limit: int = 100
    ) -> list[Detections]:
        found = super().decode(outputs, input_size, limit)
        for one, value in zip(found, outputs[0]["sums"], strict=True):
            one.keypoints = self.joints[float(value)]
        return found


def test_joints_come_back_to_the_image_and_are_judged(tmp_path: Path) -> None:
    content = document(8)
    content["categories"] = [
        {"id": 1, "name": "person", "keypoints": [f"joint {number}" for number in range(17)], "skeleton": []}
    ]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        places = [(x + width * joint / 17, y + height * (16 - joint) / 17) for joint in range(17)]
        annotation |= {
            "category_id": 1,
            "iscrowd": 0,
            "keypoints": [value for place in places for value in (*place, 2)],
            "num_keypoints": 17,
        }
    annotations, images = write_coco(tmp_path, content)
    location = build_shards(annotations, images, str(tmp_path / "out"), split="val").location
    found = evaluate(
        Posed(location),
        Reading(split=open_split(location), max_objects=8, threads=1),
        replace(EvaluationSettings(), geometry="keep", pictures=0),
        input_size=(64, 96),
        device=torch.device("cpu"),
        world=World(1, 0),
    )
    assert found is not None
    assert found.keypoints is not None
    assert found.score == found.keypoints.AR50 == pytest.approx(1.0)
    assert found.metrics()["val/keypoints/AP50"] == pytest.approx(1.0)
    assert figures(found, 5)["keypoints"]["AP50"] == pytest.approx(1.0)
    assert tables(found).startswith("keypoints\nAP        ")


class Clumsy(Oracle):
    """Fails at the images that contain this many objects."""

    fails_at = 3.0

    def losses(self, outputs: list[dict[str, Tensor]], targets: Tensor) -> dict[str, Tensor]:
        losses = super().losses(outputs, targets)
        if losses["loss"] == self.fails_at:
            raise ValueError("three is\ntoo much")
        return losses


def _evaluate_on(detector: Detector, location: str, world: World) -> Evaluation | None:
    return evaluate(
        detector,
        Reading(split=open_split(location), max_objects=8, threads=1),
        replace(EvaluationSettings(), geometry="keep", batch_size=4, pictures=0),
        input_size=(64, 96),
        device=torch.device("cpu"),
        world=world,
    )


def test_an_image_that_cannot_be_evaluated_is_named(small_shards: Path) -> None:
    location = str(small_shards / "train")
    # Images 121, 149 and 177 have three objects; the first of them in the order of the shards is named.
    with pytest.raises(EvaluationError, match=r"^image (121|149|177): ValueError: too much$") as error:
        _evaluate_on(Clumsy(location, "keep", (64, 96), EDGES), location, World(1, 0))
    assert "three is" in error.value.trace


def _fail_on_one_rank(rank: int, location: str) -> None:
    detector = (Clumsy if rank == 1 else Oracle)(location, "keep", (64, 96), EDGES)
    if rank == 0:
        with pytest.raises(EvaluationError, match=r"^image \d+: ValueError: too much$"):
            _evaluate_on(detector, location, World(2, rank))
    else:
        assert _evaluate_on(detector, location, World(2, rank)) is None
    # Nobody waits for anybody: the same group evaluates again.
    Clumsy.fails_at = -1.0
    found = _evaluate_on(detector, location, World(2, rank))
    assert (found is not None) == (rank == 0)


def test_a_failure_on_another_rank_leaves_the_ranks_together(small_shards: Path) -> None:
    run_processes(_fail_on_one_rank, 2, str(small_shards / "train"))


def _evaluate_more_ranks_than_images(rank: int, location: str) -> None:
    found = _evaluate_on(Oracle(location, "keep", (64, 96), EDGES), location, World(3, rank))
    if rank == 0:
        assert found is not None
        assert found.num_images == 2
        assert found.losses == {"loss": 0.5}  # images with 0 and 1 objects


def test_ranks_without_images_change_no_metric(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(2))
    location = build_shards(annotations, images, str(tmp_path / "out"), split="val").location
    run_processes(_evaluate_more_ranks_than_images, 3, location)


def test_the_annotation_that_breaks_the_metrics_is_found(small_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.evaluation import evaluate as module

    real = module.coco_ground_truth

    def damaged(*arguments: Any) -> dict[str, Any]:
        truth = real(*arguments)
        next(one for one in truth["annotations"] if one["image_id"] == 142)["area"] = None
        return truth

    monkeypatch.setattr(module, "coco_ground_truth", damaged)
    location = str(small_shards / "train")
    with pytest.raises(EvaluationError, match=r"^image 142: TypeError: "):
        _evaluate_on(Oracle(location, "keep", (64, 96), EDGES), location, World(1, 0))


def test_an_evaluation_can_be_ended_early(small_shards: Path) -> None:
    location = str(small_shards / "train")

    def end(num_images: int) -> None:
        raise EvaluationStoppedError

    with pytest.raises(EvaluationStoppedError):
        evaluate(
            Oracle(location, "keep", (64, 96), EDGES),
            Reading(split=open_split(location), max_objects=8, threads=1),
            replace(EvaluationSettings(), geometry="keep", batch_size=4, pictures=0),
            input_size=(64, 96),
            device=torch.device("cpu"),
            world=World(1, 0),
            progress=end,
        )
