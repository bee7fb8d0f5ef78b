"""The choice of the validation images that are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.order.plan import World
from data_shards.reading.split import open_split
from data_shards.settings import BoxRules
from detectors import Detections
from pipelines.evaluation.pictured import Drawn, DrawnImages, images_to_draw, joined
from pipelines.pictures.prediction_page import count_mistakes
from tests.data_shards.loaders import evaluation_loader


def truth(*classes: Sequence[int], crowds: Sequence[int] = ()) -> dict[str, Any]:
    """The ground truth of images 10, 11, …, with an object of each class that is listed for it."""
    images = [{"id": 10 + number, "file_name": f"{number}.jpg"} for number in range(len(classes))]
    annotations = [
        {"image_id": 10 + number, "category_id": each, "iscrowd": int(each in crowds)}
        for number, own in enumerate(classes)
        for each in own
    ]
    return {"images": images, "annotations": annotations}


def test_every_class_is_drawn_before_typical_images() -> None:
    # 12 adds three classes, 10 and 13 then one each; the median of 1, 0, 3, 1, 2, 2 objects is 1.
    images = truth([7], [], [1, 2, 3], [5], [1, 1], [2, 3])
    assert images_to_draw(images, 3) == [12, 10, 13]
    assert images_to_draw(images, 5) == [12, 10, 13, 11, 14]
    assert images_to_draw(images, 100) == [12, 10, 13, 11, 14, 15]
    assert images_to_draw(images, 2) == [12, 10]
    assert images_to_draw(images, 0) == []


def test_typical_images_have_as_many_objects_as_most() -> None:
    assert images_to_draw(truth([1], [1] * 9, [1] * 4, [1] * 30, [1] * 5), 3) == [10, 14, 12]


def test_a_crowd_shows_no_class() -> None:
    assert images_to_draw(truth([1, 2], [3], crowds=[1, 2]), 1) == [11]


def test_no_image_can_be_chosen_from_none() -> None:
    assert images_to_draw(truth(), 12) == []


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=12), st.integers(0, 14))
def test_the_choice_covers_as_much_as_choosing_the_best_image_again_and_again(
    classes: list[list[int]], count: int
) -> None:
    chosen = images_to_draw(truth(*classes), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(classes))
    missing = {each for own in classes for each in own}
    for image_id in chosen:
        if not missing:
            break
        most = max(len(missing & set(own)) for own in classes)
        assert image_id - 10 == next(place for place, own in enumerate(classes) if len(missing & set(own)) == most)
        missing -= set(classes[image_id - 10])


def _draw(location: str, ranks: int, wrong: dict[int, int], count: int) -> Drawn:
    """Draw as this many ranks would, with detections that miss every object and `wrong` false ones an image."""
    ground_truth = coco_ground_truth(open_split(location))
    shares = []
    for rank in range(ranks):
        images = DrawnImages(ground_truth, count, BoxRules())
        with evaluation_loader(location, World(ranks, rank), geometry="keep") as batches:
            for batch in batches:
                number = wrong.get(int(batch.image_ids[0]), 0)
                boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(number, 1)
                found = Detections(boxes, torch.full((number,), 0.5), torch.zeros(number, dtype=torch.long))
                images.add(batch, 0, found)
        shares.append(images.drawn)
    return joined(shares, ground_truth, count)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_worst_images_are_those_with_the_most_mistakes_in_every_world(small_shards: Path, ranks: int) -> None:
    # Images have 0, 1, 2, 3, 0, … objects of which the third is a crowd: 0, 1, 2, 2, 0, … can be missed.
    drawn = _draw(str(small_shards / "train"), ranks, {107: 4, 135: 5, 156: 2}, 6)
    assert len(drawn.fixed) == 6
    fixed = {picture.image_id for picture in drawn.fixed}
    expected = {107: 5, 114: 2, 121: 2, 135: 6, 142: 2, 149: 2, 156: 2, 163: 1, 170: 2, 177: 2}
    rest = sorted((-mistakes, image_id) for image_id, mistakes in expected.items() if image_id not in fixed)
    assert [picture.image_id for picture in drawn.worst] == [image_id for _, image_id in rest[:2]]
    assert [sum(count_mistakes(picture)) for picture in drawn.worst] == [-mistakes for mistakes, _ in rest[:2]]
    assert all(picture.file_name == f"{picture.image_id}.jpg" for picture in [*drawn.fixed, *drawn.worst])
    assert all(picture.image.size for picture in [*drawn.fixed, *drawn.worst])


def test_the_fixed_images_do_not_depend_on_the_detections(small_shards: Path) -> None:
    location = str(small_shards / "train")
    one, other = (_draw(location, 1, wrong, 5) for wrong in ({}, {107: 40, 156: 30}))
    assert [each.image_id for each in one.fixed] == [each.image_id for each in other.fixed]
    assert [each.image_id for each in one.worst] != [each.image_id for each in other.worst]


def test_images_without_mistakes_are_not_the_worst(small_shards: Path) -> None:
    drawn = _draw(str(small_shards / "val"), 1, {}, 5)
    # Of the six images, only one is not drawn anyway.
    assert len(drawn.fixed) == 5
    left = ({100, 107, 114, 121, 128, 135} - {picture.image_id for picture in drawn.fixed}).pop()
    assert [picture.image_id for picture in drawn.worst] == ([] if left in (100, 128) else [left])


def test_nothing_is_drawn_without_pictures(small_shards: Path) -> None:
    assert _draw(str(small_shards / "val"), 1, {}, 0) == Drawn()
