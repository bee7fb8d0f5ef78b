"""Pixels and boxes move together, in every geometry, mirrored or not.

Each image has one white rectangle on black, whose edges are measured in the pixels that the network receives. Boxes
bound it exactly, or are beside it by the published distance that is named here.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from data_shards.building.build import BuildReport, build_shards
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.order.plan import World, make_plan
from data_shards.settings import AugmentationSettings, BoxRules, Resizing
from tests.data_shards.loaders import evaluation_loader, training_loader
from tests.data_shards.loading.test_augment import CocoNormalisation

COUNT = 24
SIZES = ((96, 131), (131, 96), (110, 110), (75, 150))
PLAIN: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "lighting": 0.0}
OF_CENTERNET, OF_EDGES, OF_LAST_PIXELS = BoxRules(), BoxRules(corners="edges"), BoxRules(box_ends="last_pixel")

Distance = Callable[[float, bool], tuple[float, float]]
"""From the zoom, and whether the image is mirrored, to the distance of a box's left and right end from the pixels."""


def none(zoom: float, mirrored: bool) -> tuple[float, float]:
    """Boxes move with the pixels."""
    return 0, 0


def of_centernet(zoom: float, mirrored: bool) -> tuple[float, float]:
    """CenterNet takes corners for indexes of pixels, half a pixel from edges before and after the zoom.

    In the mirrored image both halves point the same way: all boxes are a pixel too far left where the zoom is 1.
    """
    distance = -(zoom + 1) / 2 if mirrored else (zoom - 1) / 2
    return distance, distance


def of_cornernet(zoom: float, mirrored: bool) -> tuple[float, float]:
    """CornerNet moves corners as edges and mirrors them as indexes."""
    return (-1, -1) if mirrored else (0, 0)


def of_last_pixels(zoom: float, mirrored: bool) -> tuple[float, float]:
    """The indexes of a box's first and last pixel: before its left edge, and a zoomed pixel less on the right."""
    return (zoom - 1) / 2, -(zoom + 1) / 2


def of_the_authors(zoom: float, mirrored: bool) -> tuple[float, float]:
    """FCOS's authors resize last pixels as if they were edges, and mirror them as indexes."""
    return (zoom - 1, -1) if mirrored else (0, -zoom)


@dataclass(frozen=True)
class Case:
    name: str
    rules: BoxRules
    distance: Distance
    options: dict[str, Any] = field(default_factory=dict)
    mirrors: bool = True
    """Whether the images are those of training, of which half are mirrored."""


CROP = AugmentationSettings(**PLAIN)
SHIFT = AugmentationSettings(geometry="shift", **PLAIN)
WIDE = AugmentationSettings(geometry="shift", fit="width", shift_probability=0.5, **PLAIN)
# Of even sides: the last row of an odd crop is black, so what it cuts off would not be noticed.
PIXEL_CROP = AugmentationSettings(geometry="pixel_crop", crop_scales=(0.75, 1.0, 1.25), **PLAIN)
OBJECT_CROP = AugmentationSettings(geometry="object_crop", **PLAIN)
OFF = AugmentationSettings(crop_scales=(), **PLAIN)
LARGER, SMALLER = (
    AugmentationSettings(geometry="shorter_side", shorter_side_range=sides, longer_side_limit=limit, **PLAIN)
    for sides, limit in (((120, 180), 300), ((60, 90), 120))
)
RESIZED = {"geometry": "shorter_side", "shorter_side": 150, "longer_side_limit": 250}
CROPPED = {
    "centernet": (OF_CENTERNET, of_centernet),
    "cornernet": (OF_CENTERNET, of_cornernet),
    "edges": (OF_EDGES, none),
    "last": (OF_LAST_PIXELS, of_last_pixels),
}
CASES = [
    *(
        Case(f"{name}-{of}", *CROPPED[of], {"augmentation": augmentation, "input_size": (128, 160)})
        for name, augmentation, conventions in (
            ("crop", CROP, ("centernet", "edges", "last")),
            ("shift", SHIFT, ("centernet", "edges")),
            ("shift-by-width", WIDE, ("centernet",)),
            ("whole", OFF, ("centernet", "edges")),
            ("pixel-crop", PIXEL_CROP, ("cornernet", "edges")),
            ("object-crop", OBJECT_CROP, ("edges",)),
        )
        for of in conventions
    ),
    *(
        Case(f"smaller-{resizing}", OF_CENTERNET, none, {"augmentation": SMALLER, "resizing": resizing})
        for resizing in get_args(Resizing)
    ),
    Case("larger-torchvision", OF_CENTERNET, none, {"augmentation": LARGER, "resizing": "torchvision"}),
    Case("larger-authors", OF_LAST_PIXELS, of_the_authors, {"augmentation": LARGER, "resizing": "authors"}),
    Case("smaller-last", OF_LAST_PIXELS, of_the_authors, {"augmentation": SMALLER, "resizing": "authors"}),
    *(
        Case(f"{geometry}-{of}", *CROPPED[of], {"geometry": geometry, "input_size": (160, 128)}, mirrors=False)
        for geometry, of in (("fixed", "centernet"), ("fixed", "edges"), ("width", "edges"), ("keep", "centernet"))
    ),
    *(
        Case(f"{geometry}-scaled-edges", OF_EDGES, none, {"geometry": geometry, "scale": scale}, mirrors=False)
        for geometry, scale in (("keep", 1.3), ("fixed", 0.9))
    ),
    *(
        Case(f"resized-{resizing}", rules, distance, RESIZED | {"resizing": resizing}, mirrors=False)
        for resizing, rules, distance in (
            ("authors", OF_LAST_PIXELS, of_the_authors),
            ("torchvision", OF_CENTERNET, none),
            ("mmdetection", OF_EDGES, none),
        )
    ),
]


class Shown(NamedTuple):
    """One image as the network receives it."""

    pixels: np.ndarray
    box: np.ndarray
    joint: np.ndarray
    transform: np.ndarray
    mirrored: bool
    truth: tuple[int, int, int, int]
    """The rectangle's edges x1, y1, x2, y2 in the image."""


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, tuple[int, int, int, int]], BuildReport]:
    """Images of known rectangles, by their ids; their only joint is in the middle of the rectangle."""
    folder = tmp_path_factory.mktemp("rectangles")
    random = np.random.default_rng(7)
    truths, images, annotations = {}, [], []
    for number in range(COUNT):
        height, width = SIZES[number % len(SIZES)]
        x1, y1 = random.integers(15, width // 2), random.integers(15, height // 2)
        x2, y2 = random.integers(x1 + 12, width - 12), random.integers(y1 + 12, height - 12)
        truths[number] = (int(x1), int(y1), int(x2), int(y2))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y1:y2, x1:x2] = 255
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)],
                "area": int((x2 - x1) * (y2 - y1)),
                "keypoints": [(x1 + x2) / 2, (y1 + y2) / 2, 2],
            }
        )
    categories = [{"id": 1, "name": "rectangle", "keypoints": ["middle"], "skeleton": []}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "rectangles.json").write_text(json.dumps(content))
    return truths, build_shards(str(folder / "rectangles.json"), str(folder), str(folder / "out"), split="train")


def shown(
    rectangles: tuple[dict[int, tuple[int, int, int, int]], BuildReport],
    rules: BoxRules,
    options: dict[str, Any],
    mirrors: bool,
) -> Iterator[Shown]:
    """Pass all images through a loader and `augment`, and yield those whose rectangle is inside the input."""
    truths, report = rectangles
    plan = make_plan(report.manifest, seed=1, global_batch_size=8)
    loader: Any
    if mirrors:
        options = {"input_size": (128, 128), "stop_step": 2 * plan.steps_per_epoch} | options
        loader = training_loader(report.location, plan, World(1, 0), boxes=rules, **options)
    else:
        loader = evaluation_loader(report.location, World(1, 0), boxes=rules, batch_size=8, **options)
    with loader:
        for batch in loader:
            yield from _inside(batch, truths)


def _inside(batch: Batch, truths: dict[int, tuple[int, int, int, int]]) -> Iterator[Shown]:
    flips = [False] * len(batch.images) if batch.flips is None else batch.flips.tolist()
    augment(batch, CocoNormalisation())
    assert batch.keypoints is not None
    for row, image_id in enumerate(batch.image_ids.tolist()):
        pixels = batch.images[row, 1].numpy() / 255
        if max(pixels[0].max(), pixels[-1].max(), pixels[:, 0].max(), pixels[:, -1].max()) == 0 < pixels.max():
            box, joint = batch.boxes[row, 0].double().numpy(), batch.keypoints[row, 0, 0, :2].double().numpy()
            transform = batch.transforms[row].double().numpy()
            yield Shown(pixels, box, joint, transform, flips[row], truths[image_id])


def measured(profile: np.ndarray) -> tuple[float, float]:
    """Measure where the white part of a line begins and ends, in pixels, from its amount and its middle."""
    amount = profile.sum()
    middle = (profile * (np.arange(len(profile)) + 0.5)).sum() / amount
    return middle - amount / 2, middle + amount / 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_box_bounds_its_pixels_or_is_a_published_distance_from_them(
    rectangles: tuple[dict[int, tuple[int, int, int, int]], BuildReport], case: Case
) -> None:
    errors: dict[tuple[bool, int], list[float]] = {}
    for one in shown(rectangles, case.rules, case.options, case.mirrors):
        row, column = one.pixels.sum(axis=1).argmax(), one.pixels.sum(axis=0).argmax()
        left, right = measured(one.pixels[row])
        top, bottom = measured(one.pixels[:, column])
        before, behind = case.distance(abs(one.transform[0, 0]), one.mirrored)
        above, below = case.distance(one.transform[1, 1], False)
        found = one.box - [left, top, right, bottom] - [before, above, behind, below]
        for corner, error in enumerate(found):
            errors.setdefault((one.mirrored, corner), []).append(error)
        # The transform is that of the boxes, and of the joints.
        x1, y1, x2, y2 = one.truth
        pixel = 1 if case.rules.box_ends == "last_pixel" else 0
        corners = np.array([[x1, x2 - pixel], [y1, y2 - pixel], [1, 1]])
        moved = np.sort(one.transform @ corners)
        assert_allclose(moved, one.box.reshape(2, 2).T, atol=1e-3)
        assert_allclose(one.joint, one.transform @ [(x1 + x2) / 2, (y1 + y2) / 2, 1], atol=1e-3)
    assert len(errors) == (8 if case.mirrors else 4)
    for (mirrored, corner), found in errors.items():
        assert len(found) > 4
        # Where pixels far apart are looked at alone, an edge is seen up to half a pixel from its place, on either side.
        assert np.abs(found).max() < 0.6, (mirrored, corner)
        assert abs(np.mean(found)) < 0.15, (mirrored, corner)


@pytest.mark.parametrize("rules", [OF_CENTERNET, OF_EDGES], ids=["centernet", "edges"])
def test_joints_turn_with_the_pixels_and_boxes_stay_upright_as_published(
    rectangles: tuple[dict[int, tuple[int, int, int, int]], BuildReport], rules: BoxRules
) -> None:
    turned = AugmentationSettings(rotation_probability=1.0, rotation_degrees=25.0, **PLAIN)
    options = {"augmentation": turned, "input_size": (128, 160)}
    middle = np.array([80.0, 64.0]) + (0.5 if rules is OF_EDGES else 0.0)
    seen = set()
    for one in shown(rectangles, rules, options, mirrors=True):
        rows, columns = np.indices(one.pixels.shape) + 0.5
        centroid = np.array([(columns * one.pixels).sum(), (rows * one.pixels).sum()]) / one.pixels.sum()
        linear = one.transform[:, :2]
        # As above: an index is half a pixel from the edge before the crop, and half a pixel after it.
        distance = 0 if rules is OF_EDGES else linear @ [0.5, 0.5] - 0.5
        assert_allclose(one.joint - centroid, distance, atol=0.2)
        x1, y1, x2, y2 = one.truth
        zoom = np.sqrt(abs(np.linalg.det(linear)))
        assert_allclose(one.box[2:] - one.box[:2], [zoom * (x2 - x1), zoom * (y2 - y1)], rtol=1e-3)
        # The crop turns about its centre, so the middle of the box is as far from it as the joint in the same place.
        assert_allclose(
            np.linalg.norm((one.box[:2] + one.box[2:]) / 2 - middle), np.linalg.norm(one.joint - middle), atol=1e-3
        )
        seen.add((one.mirrored, bool(linear[0, 1] > 0)))
    assert len(seen) == 4


def test_centernets_boxes_follow_the_exact_scale_and_its_pixels_the_rounded_one(
    rectangles: tuple[dict[int, tuple[int, int, int, int]], BuildReport],
) -> None:
    """At test scales, boxes are beside their pixels by up to a pixel at the far end of the image, as published."""
    farthest = 0.0
    for one in shown(rectangles, OF_CENTERNET, {"geometry": "keep", "scale": 1.3}, mirrors=False):
        left, right = measured(one.pixels[one.pixels.sum(axis=1).argmax()])
        x1, _, x2, _ = one.truth
        # Images of a multiple of ten pixels are resized by exactly 1.3.
        distances = one.box[[0, 2]] - [left, right]
        assert (distances > -0.3).all()
        assert (distances < 1.3).all()
        assert_allclose(one.box[2] - one.box[0], 1.3 * (x2 - x1), rtol=1e-5)
        farthest = max(farthest, distances.max())
    assert farthest > 0.2
