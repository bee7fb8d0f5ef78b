"""The crops of the CornerNet family, compared with the published steps, which are written here one after the other.

The published code draws numbers as it goes; here they are the sample's own, by their places.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.random_draws import Draws, draw
from data_shards.loading.window_draws import object_crop, pixel_crop
from data_shards.order.keyed_random import uniforms
from data_shards.order.plan import World, make_plan
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.scratch import Scratch
from data_shards.reading.windows import cut
from data_shards.settings import AugmentationSettings, BoxRules
from detectors.sizes import OneLessThanMultiples
from tests.data_shards.loaders import training_loader
from tests.data_shards.loading.test_augment import CocoNormalisation
from tests.data_shards.samples import document, write_coco

SIZES = np.array([[480, 640], [640, 427], [120, 90], [255, 1200]], dtype=np.int64)
COUNT = 400
STREAM = 301


def randint(number: float, low: int, high: int) -> int:
    """`numpy.random.randint(low, high)`, from a number in [0, 1)."""
    assert low < high
    return low + int(number * (high - low))


# ---- CornerNet, CornerNet-Squeeze and CenterNet Triplets


def authors_random_crop(
    image: np.ndarray, boxes: np.ndarray, numbers: np.ndarray, scales: tuple[float, ...], side: int
) -> tuple[np.ndarray, np.ndarray]:
    """princeton-vl/CornerNet, sample/utils.py, `random_crop`, and sample/coco.py, `_resize_image`."""
    crop_side = int(side * scales[randint(numbers[0], 0, len(scales))])
    middle = []
    for axis, number in ((1, numbers[1]), (0, numbers[2])):
        border = 128
        while image.shape[axis] - border <= border:
            border //= 2
        middle.append(randint(number, border, image.shape[axis] - border))
    half = crop_side // 2
    crop = np.zeros((crop_side, crop_side, 3), dtype=np.uint8)
    for row in range(2 * half):
        source = middle[1] - half + row
        if 0 <= source < image.shape[0]:
            columns = np.arange(2 * half) + middle[0] - half
            inside = (columns >= 0) & (columns < image.shape[1])
            crop[row, : 2 * half][inside] = image[source, columns[inside]]
    boxes = boxes - np.array([middle[0] - half, middle[1] - half] * 2)
    return cv2.resize(crop, (side, side)), boxes * (side / crop_side)


def test_a_crop_has_the_published_sizes_in_image_pixels() -> None:
    # numpy.arange(0.6, 1.4, 0.1), as published, has 0.9999999999999999 in the place of 1.
    scales = np.arange(0.6, 1.4, 0.1).tolist()
    sides = [pixel_crop((0, 0), scale, (511, 511)).width for scale in scales]
    assert sides == [306, 357, 408, 459, 510, 562, 613, 664]
    assert pixel_crop((100, 90), 0.5, (127, 255)) == (1.0, 100 - 63, 90 - 31, 63, 127)


def drawn(settings: AugmentationSettings, objects: list[np.ndarray] | None = None, side: int = 255) -> Draws:
    sizes = SIZES[np.arange(COUNT) % len(SIZES)]
    return draw(settings, 4, 2, np.arange(COUNT), sizes, input_size=(side, side), objects=objects)


def test_crops_in_pixels_have_the_places_of_ordinary_crops() -> None:
    crops, windows = drawn(AugmentationSettings()), drawn(AugmentationSettings(geometry="pixel_crop"))
    assert np.array_equal(crops.centres, windows.centres)
    widths = set()
    for centre, window in zip(windows.centres, windows.windows, strict=True):
        assert window is not None
        assert (window.left + window.width // 2, window.top + window.height // 2) == tuple(centre)
        widths.add(window.width)
    assert widths == {int(255 * scale) for scale in AugmentationSettings().crop_scales}


def test_a_geometry_changes_no_other_draw() -> None:
    plain = drawn(AugmentationSettings())
    boxes = [np.array([[10, 10, 50, 60]], dtype=np.float32)] * COUNT
    for other in (
        drawn(AugmentationSettings(geometry="pixel_crop")),
        drawn(AugmentationSettings(geometry="object_crop"), boxes),
        drawn(AugmentationSettings(geometry="shift")),
    ):
        for name in ("flips", "colour_factors", "colour_order", "lighting"):
            assert np.array_equal(getattr(plain, name), getattr(other, name)), name


def test_the_draws_of_a_sample_do_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(0)
    sizes = SIZES[np.arange(12) % len(SIZES)]
    objects = [np.sort(rng.uniform(0, 90, (number % 4, 2, 2)), axis=1).reshape(-1, 4) for number in range(12)]
    objects = [boxes.astype(np.float32) for boxes in objects]
    settings = AugmentationSettings(geometry="object_crop")
    together = draw(settings, 1, 2, np.arange(12), sizes, input_size=(255, 255), objects=objects)
    for row in range(12):
        own = slice(row, row + 1)
        alone = draw(settings, 1, 2, np.arange(12)[own], sizes[own], input_size=(255, 255), objects=objects[own])
        assert alone.windows[0] == together.windows[row]
        assert np.array_equal(alone.clip_boxes[0], together.clip_boxes[row])


# ---- CornerNet-Saccade


def authors_object_crop(
    image: np.ndarray, boxes: np.ndarray, numbers: np.ndarray, scales: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """princeton-vl/CornerNet-Lite, core/sample/cornernet_saccade.py, for an input of 255 x 255.

    Returns the input, the clipped boxes, the rows of `boxes` that they come from, and all boxes unclipped.
    """
    side = 255
    height, width = image.shape[:2]
    kept = np.arange(len(boxes))
    clipped = np.clip(boxes.astype(np.float64), 0, [width - 1, height - 1] * 2)
    positive = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    clipped, kept = clipped[positive], kept[positive]
    reference = None
    zoom = scales[randint(numbers[0], 0, len(scales))]
    if len(clipped):
        reference = randint(numbers[22], 0, len(clipped))
        x1, y1, x2, y2 = clipped[reference]
        longest = max(x2 - x1, y2 - y1)
        low, high = (96, 255) if longest > 96 else (32, 97) if longest > 32 else (16, 33)
        zoom = randint(numbers[0], low, high) / longest
    image = cv2.resize(image, (int(width * zoom), int(height * zoom)))
    clipped = clipped * zoom
    unclipped = boxes * zoom
    near = numbers[23] > 0.5
    middle = []
    for axis in (0, 1):
        image_side, place, before, after = image.shape[1 - axis], *numbers[[1 + axis, 24 + 2 * axis, 25 + 2 * axis]]
        if image_side <= side:
            middle.append(image_side // 2)
        elif reference is None:
            middle.append(randint(place, 0, image_side - side + 1) + side // 2)
        elif not near:
            least = max(clipped[reference, axis + 2] - side, 0)
            most = min(image_side - side, clipped[reference, axis])
            middle.append(randint(place, int(least), int(most) + 1) + side // 2)
        else:
            centre = (clipped[reference, axis] + clipped[reference, axis + 2]) // 2
            least = max(centre - randint(before, 0, 15), 0)
            most = min(centre + randint(after, 0, 15), image_side - 1)
            middle.append(randint(place, int(least), int(most) + 1))
    x, y = middle
    x1, x2 = max(0, x - 127), min(x + 127, image.shape[1])
    y1, y2 = max(0, y - 127), min(y + 127, image.shape[0])
    out = np.zeros((side, side, 3), dtype=np.uint8)
    border = (127 - (x - x1), 127 - (y - y1), 127 + (x2 - x), 127 + (y2 - y))
    out[border[1] : border[3], border[0] : border[2]] = image[y1:y2, x1:x2]
    shift = np.array([x - 127, y - 127] * 2)
    least, most = np.array(border[:2] * 2), np.array([border[2] - 1, border[3] - 1] * 2)
    clipped = np.clip(clipped - shift, least, most)
    positive = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return out, clipped[positive], kept[positive], unclipped - shift


SACCADE = AugmentationSettings(geometry="object_crop", crop_scales=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1))


def test_a_crop_around_an_object_is_the_published_one() -> None:
    rng = np.random.default_rng(7)
    images = [rng.integers(1, 256, (*size, 3), dtype=np.uint8) for size in SIZES.tolist()]
    objects = []
    for number in range(COUNT):
        height, width = SIZES[number % len(SIZES)].tolist()
        sides = rng.uniform(3, [width, height], (number % 5, 2)) * rng.choice([0.05, 0.3, 1.0], (number % 5, 1))
        # Smaller boxes are enlarged so much that only the window is resized; see the tests of windows.
        sides = np.maximum(sides, 6)
        first = rng.uniform(-4, np.array([width, height]) - sides / 2)
        objects.append(np.concatenate([first, first + sides], axis=1).astype(np.float32))
    draws = drawn(SACCADE, objects)
    numbers = uniforms(4, 2, np.arange(COUNT), 28, STREAM)

    scratch, seen = Scratch(), 0
    for row in range(COUNT):
        window = draws.windows[row]
        assert window is not None
        image = images[row % len(images)]
        pixels, clipped, rows, unclipped = authors_object_crop(image, objects[row], numbers[row], SACCADE.crop_scales)
        assert np.array_equal(cut(image, window, (255, 255), scratch), pixels), row
        matrix = draws.matrix(row, (255, 255))
        ours = objects[row] * matrix[0, 0] + np.tile(matrix[:, 2], 2)
        assert_allclose(ours, unclipped, atol=1e-3)
        limits = draws.clip_boxes[row]
        ours = np.clip(ours, np.tile(limits[:2], 2), np.tile(limits[2:], 2))
        positive = ((ours[:, 2:] - ours[:, :2]) > 0).all(axis=1)
        assert np.flatnonzero(positive).tolist() == rows.tolist()
        assert_allclose(ours[positive], clipped, atol=1e-3)
        seen += len(rows)
    assert seen > COUNT / 2


@given(
    x=st.floats(0, 600),
    y=st.floats(0, 440),
    width=st.floats(1, 400),
    height=st.floats(1, 300),
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9),
    side=st.sampled_from([63, 127, 255, 383]),
)
def test_a_crop_contains_its_object_or_is_centred_near_it(
    x: float, y: float, width: float, height: float, numbers: list[float], side: int
) -> None:
    box = np.array([[x, y, min(x + width, 639.0), min(y + height, 479.0)]], dtype=np.float32)
    scale, reference, nearness, *rest = numbers
    window, limits = object_crop(
        box,
        (480, 640),
        (side, side),
        scales=(1.0,),
        scale=scale,
        reference=reference,
        nearness=nearness,
        places=np.array(rest[:2]),
        spreads=np.array(rest[2:]).reshape(2, 2),
    )
    x1, y1, x2, y2 = (box[0].astype(float) * window.zoom).tolist()
    longest = max(box[0, 2] - box[0, 0], box[0, 3] - box[0, 1])
    length = max(x2 - x1, y2 - y1)
    low, high = (96, 254) if longest > 96 else (32, 96) if longest > 32 else (16, 32)
    assert min(low, side - 1) - 1e-3 <= length <= min(high, side - 1) + 1e-3
    assert (limits >= 0).all()
    assert (limits <= side - 2).all()
    for first, last, begin, image_side in (
        (x1, x2, window.left, int(640 * window.zoom)),
        (y1, y2, window.top, int(480 * window.zoom)),
    ):
        if image_side <= side:
            assert begin == image_side // 2 - side // 2
        elif nearness > 0.5:
            assert abs(begin + side // 2 - (first + last) / 2) <= 15
        else:
            assert begin <= first
            assert last <= begin + side + 1


def test_an_image_without_objects_takes_one_of_the_scales() -> None:
    draws = drawn(SACCADE, [np.zeros((0, 4), dtype=np.float32)] * COUNT)
    assert {window.zoom for window in draws.windows if window} == set(SACCADE.crop_scales)
    for (height, width), window in zip(SIZES[np.arange(COUNT) % len(SIZES)].tolist(), draws.windows, strict=True):
        assert window is not None
        for begin, side in ((window.left, int(width * window.zoom)), (window.top, int(height * window.zoom))):
            assert 0 <= begin <= side - 255 if side > 255 else begin == side // 2 - 127


def test_a_box_outside_the_image_is_no_reference() -> None:
    outside = np.array([[700, 10, 800, 90], [5, 5, 5, 40]], dtype=np.float32)
    inside = np.array([[100, 100, 148, 140]], dtype=np.float32)
    alone, among = ([boxes] * COUNT for boxes in (inside, np.concatenate([outside, inside])))
    sizes = np.tile(SIZES[:1], (COUNT, 1))
    one, other = (
        draw(SACCADE, 0, 0, np.arange(COUNT), sizes, input_size=(255, 255), objects=objects)
        for objects in (alone, among)
    )
    assert one.windows == other.windows


# ---- through the loader

INPUT = (127, 127)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, BuildReport]:
    folder = tmp_path_factory.mktemp("photographs")
    content = document(12, ((150, 200), (220, 140), (60, 90)))
    annotations, images = write_coco(folder, content)
    return content, images, build_shards(annotations, images, str(folder / "shards"), split="train")


def jittered(pixels: np.ndarray, draws: Draws, row: int) -> np.ndarray:
    """The published colours of an input (utils/image.py), padding included; normalised, in B, G, R."""
    image = pixels[..., ::-1].astype(np.float32) / 255
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    mean = gray.mean()
    for kind in draws.colour_order[row]:
        factor = draws.colour_factors[row, kind]
        other = (0.0, mean, gray[:, :, None])[kind]
        image = image * factor + (1 - factor) * other
    vectors = np.array(
        [
            [-0.58752847, -0.69563484, 0.41340352],
            [-0.5832747, 0.00994535, -0.81221408],
            [-0.56089297, 0.71832671, 0.41158938],
        ]
    )
    image = image + vectors @ (np.array([0.2141788, 0.01817699, 0.00341571]) * draws.lighting[row])
    normalisation = CocoNormalisation()
    return (image - np.array(normalisation.mean)) / np.array(normalisation.std)


def boxes_of(content: dict[str, Any], image_id: int) -> np.ndarray:
    found = [one["bbox"] for one in content["annotations"] if one["image_id"] == image_id]
    boxes = np.array(found, dtype=np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


@pytest.mark.parametrize("geometry", ["pixel_crop", "object_crop"])
def test_training_crops_mirrors_and_jitters_as_the_authors_do(
    photographs: tuple[dict[str, Any], Path, BuildReport], geometry: str
) -> None:
    content, images, report = photographs
    side = 255 if geometry == "object_crop" else 127
    settings = AugmentationSettings(geometry=geometry, crop_scales=SACCADE.crop_scales)  # type: ignore[arg-type]
    plan = make_plan(report.manifest, seed=5, global_batch_size=6)
    options: dict[str, Any] = {"augmentation": settings, "sizes": OneLessThanMultiples(32), "stop_step": 4}
    mirrored = 0
    with training_loader(
        report.location, plan, World(1, 0), input_size=(side, side), max_objects=2, **options
    ) as loader:
        for batch in loader:
            ids = batch.sample_ids.numpy()
            numbers = uniforms(5, batch.epoch, ids, 28, STREAM)
            batch = batch.clone()
            before = batch.clone()
            received = augment(batch, CocoNormalisation())
            used = [boxes_of(content, int(number))[:2] for number in batch.image_ids]
            draws = draw(
                settings,
                5,
                batch.epoch,
                ids,
                batch.original_sizes.numpy(),
                input_size=(side, side),
                objects=used,
            )
            for row, boxes in enumerate(used):
                image = decode_jpeg((images / f"{int(batch.image_ids[row])}.jpg").read_bytes())
                if geometry == "pixel_crop":
                    pixels, expected = authors_random_crop(image, boxes, numbers[row], settings.crop_scales, side)
                else:
                    pixels, clipped, rows, expected = authors_object_crop(
                        image, boxes, numbers[row], settings.crop_scales
                    )
                assert np.array_equal(before.images[row].permute(1, 2, 0), pixels)
                assert_allclose(before.boxes[row, : len(boxes)], expected, atol=1e-3)
                if flip := bool(numbers[row, 3] < 0.5):
                    pixels = pixels[:, ::-1]
                    expected = np.stack(
                        [side - 1 - expected[:, 2], expected[:, 1], side - 1 - expected[:, 0], expected[:, 3]], axis=1
                    )
                assert_allclose(received[row].permute(1, 2, 0), jittered(pixels, draws, row), atol=1e-4)
                assert_allclose(batch.boxes[row, : len(boxes)], expected, atol=1e-3)
                assert_allclose(
                    (batch.transforms[row] @ torch.tensor([[30.0, 50.0], [20.0, 40.0], [1, 1]]))[1],
                    (before.transforms[row] @ torch.tensor([[30.0, 50.0], [20.0, 40.0], [1, 1]]))[1],
                )
                if geometry == "object_crop":
                    assert batch.clip_boxes is not None
                    limits = batch.clip_boxes[row].numpy()
                    ours = np.clip(batch.boxes[row, rows].numpy(), np.tile(limits[:2], 2), np.tile(limits[2:], 2))
                    if flip:
                        clipped[:, [0, 2]] = side - 1 - clipped[:, [2, 0]]
                    assert_allclose(ours, clipped, atol=1e-3)
                mirrored += flip
    assert 4 < mirrored < 20
    assert ("clip_boxes" in batch.extra) == (geometry == "object_crop")


def test_windows_depend_neither_on_the_world_nor_on_the_start(
    photographs: tuple[dict[str, Any], Path, BuildReport],
) -> None:
    report = photographs[2]
    plan = make_plan(report.manifest, seed=5, global_batch_size=6)
    options: dict[str, Any] = {
        "augmentation": SACCADE,
        "input_size": INPUT,
        "max_objects": 4,
        "sizes": OneLessThanMultiples(32),
        "stop_step": 4,
    }

    def rows(world: World, start_step: int = 0) -> dict[tuple[int, int], Batch]:
        with training_loader(report.location, plan, world, start_step=start_step, **options) as loader:
            return {
                (batch.step, int(number)): batch.images[row].clone()  # type: ignore[misc]
                for batch in loader
                for row, number in enumerate(batch.sample_ids)
            }

    whole = rows(World(1, 0))
    shared = rows(World(3, 0)) | rows(World(3, 1)) | rows(World(3, 2))
    assert whole.keys() == shared.keys()
    assert all(torch.equal(whole[key], shared[key]) for key in whole)  # type: ignore[arg-type]
    later = rows(World(1, 0), start_step=3)
    assert all(torch.equal(whole[key], later[key]) for key in later)  # type: ignore[arg-type]


def test_a_crowd_that_is_left_out_is_no_reference(tmp_path: Path) -> None:
    content = document(4)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    plan = make_plan(report.manifest, seed=0, global_batch_size=4)

    for crowd in ("drop", "keep"):
        with training_loader(
            report.location,
            plan,
            World(1, 0),
            augmentation=SACCADE,
            input_size=INPUT,
            max_objects=4,
            stop_step=1,
            boxes=BoxRules(crowd=crowd),  # type: ignore[arg-type]
            sizes=OneLessThanMultiples(32),
        ) as loader:
            zooms = [float(matrix[0, 0]) for batch in loader for matrix in batch.transforms]
        of_scales = [any(abs(zoom - scale) < 1e-6 for scale in SACCADE.crop_scales) for zoom in zooms]
        assert all(of_scales) == (crowd == "drop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"geometry": "pixel_crop", "crop_scales": ()}, "crop_scales is empty; give one scale or more"),
        ({"geometry": "object_crop", "crop_scales": ()}, "or set geometry to crop for whole images"),
        ({"geometry": "pixel_crop", "rotation_probability": 0.5}, "works with the geometries crop and shift only"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentationSettings(**settings)
