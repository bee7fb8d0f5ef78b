"""Views of an image at several scales: one frame, one order, whatever the geometry; and the times."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from data_shards.loading.augment import augment
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from detectors import Detections, Detector, DetectorError, Preprocessing
from detectors.detections import joined
from detectors.detector import MODES
from detectors.sizes import Multiples
from pipelines.evaluation.views import detect, milliseconds_one_by_one, open_views
from pipelines.recipes.recipe import with_flags
from pipelines.recipes.settings import EvaluationSettings, Recipe
from pipelines.training.checks import check
from tests.data_shards.loaders import evaluation_loader

PLAIN = Preprocessing("rgb", (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), scale=1.0)
SCALES = (0.5, 1.0, 1.5)


class Seer(Detector):
    """Knows where the objects of every view are, by its pixels, and keeps what it was shown."""

    preprocessing = PLAIN
    sizes = Multiples(32)
    num_classes = 3

    def __init__(self, location: str, settings: EvaluationSettings, in_input: bool = False) -> None:
        super().__init__()
        self.test_time = detectors.TestTime(modes=MODES, scales=SCALES, merges_in_input=in_input)
        self.truth: dict[float, tuple[Tensor, Tensor]] = {}
        self.merged: list[list[Detections]] = []
        self.shown: list[Tensor] = []
        for scale in SCALES:
            with evaluation_loader(
                location,
                World(1, 0),
                geometry=settings.geometry,
                input_size=(64, 96),
                shorter_side=settings.shorter_side,
                longer_side_limit=settings.longer_side_limit if scale == 1 else settings.scaled_longer_side_limit,
                scale=scale,
            ) as batches:
                for batch in batches:
                    real = batch.labels[0] >= 0
                    key = float(batch.images.double().sum())
                    self.truth[key] = (batch.boxes[0][real], batch.labels[0][real])

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        self.shown.append(images)
        # No pixel is 0 after half was taken off, but for the padding of shorter_side.
        pixels = torch.where(images == 0, 0.0, images + 0.5)
        return [{"sums": pixels.double().sum(dim=(1, 2, 3))}]

    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> Tensor:
        return labels

    def losses(self, outputs: list[dict[str, Tensor]], targets: Tensor) -> dict[str, Tensor]:
        return {"loss": targets.sum().float()}

    def decode(
        self, outputs: list[dict[str, Tensor]], input_size: tuple[int, int], limit: int = 100
    ) -> list[Detections]:
        found = [self.truth[value] for value in outputs[0]["sums"].tolist()]
        return [Detections(boxes, torch.ones(len(boxes)), labels) for boxes, labels in found]

    def candidates(self, outputs, input_size, limit=100, *, mirrored=None, content_sizes=None):  # type: ignore[no-untyped-def]
        if mirrored is not None:
            # The mirror image has the same sum: it was of the same picture.
            assert_close(mirrored[0]["sums"], outputs[0]["sums"], rtol=0, atol=0)
        return self.decode(outputs, input_size, limit)

    def merge(self, parts, limit=100, *, soft=False):  # type: ignore[no-untyped-def]
        self.merged.append(list(parts))
        return joined(parts[1:2] or parts)


def reading(location: str) -> Reading:
    return Reading(split=open_split(location), max_objects=8, threads=1)


FRAME: Any = {"input_size": (64, 96), "world": World(1, 0)}


def settings_of(geometry: str, tta: str, **more: object) -> EvaluationSettings:
    return replace(
        EvaluationSettings(),
        geometry=geometry,  # type: ignore[arg-type]
        tta=tta,  # type: ignore[arg-type]
        shorter_side=72,
        longer_side_limit=120,
        scaled_longer_side_limit=170,
        batch_size=4,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("in_input", [False, True])
@pytest.mark.parametrize("geometry", ["fixed", "keep", "shorter_side"])
def test_all_scales_see_the_boxes_in_the_same_place(small_shards: Path, geometry: str, in_input: bool) -> None:
    location = str(small_shards / "train")
    settings = settings_of(geometry, "multiscale")
    seer = Seer(location, settings, in_input)
    truth: dict[int, list[list[float]]] = {}
    for annotation in coco_ground_truth(open_split(location))["annotations"]:
        x, y, w, h = annotation["bbox"]
        truth.setdefault(annotation["image_id"], []).append([x, y, x + w, y + h])
    seen = []
    with open_views(seer, reading(location), settings, **FRAME) as batches:
        for views in batches:
            assert len(views) == 3
            found = detect(seer, views, settings)
            assert found.batch is views[1]  # the unscaled one
            for image_id, one in zip(found.batch.image_ids.tolist(), found.detections, strict=True):
                seen.append(image_id)
                expected = torch.tensor(truth.get(image_id, [])).reshape(-1, 4)
                assert_close(one.boxes, expected, rtol=1e-4, atol=1e-2)
    assert sorted(seen) == [100 + 7 * number for number in range(12)]
    for parts in seer.merged:
        for part in parts[1:]:
            assert_close(part.boxes, parts[0].boxes, rtol=1e-4, atol=2e-2)
    # Three scales of at most four images with their mirrors.
    assert {len(images) % 2 for images in seer.shown} == {0}


def test_flip_shows_the_mirror_of_the_input(small_shards: Path) -> None:
    location = str(small_shards / "train")
    settings = settings_of("keep", "flip")
    seer = Seer(location, settings)
    with open_views(seer, reading(location), settings, **FRAME) as batches:
        views = next(batches)
        detect(seer, views, settings)
    half = len(views[0].images)
    assert torch.equal(seer.shown[0][:half], augment(views[0], PLAIN))
    assert torch.equal(seer.shown[0][half:], seer.shown[0][:half].flip(-1))


def test_padding_of_the_shorter_side_geometry_is_zero_after_normalisation(small_shards: Path) -> None:
    location = str(small_shards / "train")
    settings = settings_of("shorter_side", "none")
    seer = Seer(location, settings)
    with open_views(seer, reading(location), settings, **FRAME) as batches:
        views = next(batches)
        detect(seer, views, settings)
    height, width = views[0].original_sizes[0].tolist()
    factor_y, factor_x = views[0].transforms[0, 1, 1], views[0].transforms[0, 0, 0]
    rows, columns = round(height * float(factor_y)), round(width * float(factor_x))
    shown = seer.shown[0][0]
    assert not shown[:, rows:].any()
    assert not shown[:, :, columns:].any()
    assert torch.equal(shown[:, :rows, :columns], augment(views[0], PLAIN)[0, :, :rows, :columns])


def test_given_scales_stand_before_the_published_ones(small_shards: Path) -> None:
    location = str(small_shards / "train")
    settings = settings_of("fixed", "multiscale", scales=(1.5, 0.5))
    seer = Seer(location, settings)
    with open_views(seer, reading(location), settings, **FRAME) as batches:
        views = next(batches)
    assert [round(float(view.transforms[0, 0, 0] / views[1].transforms[0, 0, 0]), 3) for view in views] == [3.0, 1.0]
    assert detect(seer, views, settings).batch is views[0]  # none of them is the unscaled one


def test_images_are_timed_one_by_one_after_a_warm_up(small_shards: Path) -> None:
    location = str(small_shards / "train")
    settings = settings_of("keep", "none")
    seer = Seer(location, settings)
    options: Any = {"device": torch.device("cpu"), "input_size": (64, 96)}
    milliseconds = milliseconds_one_by_one(seer, reading(location), settings, images=4, warm_up=2, **options)
    assert milliseconds > 0
    assert [len(images) for images in seer.shown] == [1] * 6
    # A set that is smaller than the warm-up is timed on its last image.
    assert milliseconds_one_by_one(seer, reading(location), settings, images=1, warm_up=99, **options) > 0


def test_a_mode_that_was_not_published_opens_nothing(small_shards: Path) -> None:
    location = str(small_shards / "train")
    settings = settings_of("fixed", "flip")
    seer = Seer(location, settings)
    seer.test_time = detectors.TestTime()
    with (
        pytest.raises(DetectorError, match="has no test mode 'flip', only none"),
        open_views(seer, reading(location), settings, **FRAME),
    ):
        pass


def test_training_refuses_such_a_mode_before_it_starts(small_shards: Path) -> None:
    recipe = with_flags(
        Recipe(recipe="fcos"),
        [
            *("--data.train", str(small_shards / "train"), "--batch.global_size", "4", "--evaluation.soft_nms", "true"),
            *("--detector.name", "fcos_resnet50", "--detector.settings.width", "4"),
            *("--detector.settings.channels", "64"),
        ],
    )
    with pytest.raises(DetectorError, match="fcos_resnet50 was not published with soft-NMS"):
        check(recipe)
