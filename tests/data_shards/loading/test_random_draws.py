"""The other published geometries: moved and scaled images, and images resized by their shorter side."""

import random as python_random
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
from data_shards.loading.random_draws import draw, resized
from data_shards.order.plan import World, make_plan
from data_shards.reading.geometry import crop_matrix, without_rotation
from data_shards.settings import AugmentationSettings
from detectors.sizes import Multiples
from tests.data_shards.loaders import evaluation_loader, training_loader
from tests.data_shards.loading.test_augment import CocoNormalisation
from tests.data_shards.samples import document, write_coco

PLAIN: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "lighting": 0.0}
COUNT = 40_000


# --- distributions, against the published draws by numpy's generator


def test_scales_and_centres_are_moved_as_not_rand_crop_moves_them() -> None:
    sizes = np.tile([480, 640], (COUNT, 1))
    ours = draw(AugmentationSettings(geometry="shift"), 0, 0, np.arange(COUNT), sizes)
    theirs = np.random.default_rng(0)
    x, y = (320, 240)
    x = x + 640 * np.clip(theirs.standard_normal(COUNT) * 0.1, -0.2, 0.2)
    y = y + 640 * np.clip(theirs.standard_normal(COUNT) * 0.1, -0.2, 0.2)
    scale = 640 * np.clip(theirs.standard_normal(COUNT) * 0.4 + 1, 0.6, 1.4)
    for own, other in ((ours.centres[:, 0], x), (ours.centres[:, 1], y), (ours.scales, scale)):
        assert_same_distribution(own, other)
    assert ours.rescaled.all()
    correlated = np.corrcoef(np.stack([ours.centres[:, 0], ours.centres[:, 1], ours.scales, ours.flips]))
    assert np.abs(correlated - np.eye(4)).max() < 5 / np.sqrt(COUNT)


def test_half_of_the_images_are_moved_as_aug_ddd_moves_them() -> None:
    sizes = np.tile([375, 1242], (COUNT, 1))
    settings = AugmentationSettings(geometry="shift", fit="width", shift_probability=0.5)
    ours = draw(settings, 0, 0, np.arange(COUNT), sizes)
    assert abs(ours.rescaled.mean() - 0.5) < 0.01
    assert (ours.scales[~ours.rescaled] == 1242).all()
    assert (ours.centres[~ours.rescaled] == [621, 187.5]).all()
    theirs = np.random.default_rng(0)
    count = int(ours.rescaled.sum())
    moved = ours.centres[ours.rescaled]
    # In 3D each axis moves by shares of its own side.
    assert_same_distribution(moved[:, 0], 621 + 1242 * np.clip(theirs.standard_normal(count) * 0.1, -0.2, 0.2))
    assert_same_distribution(moved[:, 1], 187.5 + 375 * np.clip(theirs.standard_normal(count) * 0.1, -0.2, 0.2))
    wanted = 1242 * np.clip(theirs.standard_normal(count) * 0.4 + 1, 0.6, 1.4)
    assert_same_distribution(ours.scales[ours.rescaled], wanted)


def test_angles_are_drawn_as_aug_rot_draws_them() -> None:
    sizes = np.tile([480, 640], (COUNT, 1))
    settings = AugmentationSettings(rotation_probability=0.3, rotation_degrees=20.0)
    ours = draw(settings, 0, 0, np.arange(COUNT), sizes)
    assert abs(ours.rotated.mean() - 0.3) < 0.01
    theirs = np.clip(np.random.default_rng(0).standard_normal(COUNT) * 20, -40, 40)
    assert_same_distribution(ours.degrees[ours.rotated], theirs)
    plain = draw(AugmentationSettings(), 0, 0, np.arange(COUNT), sizes)
    assert not plain.rotated.any()
    for name in ("centres", "scales", "flips", "colour_factors", "lighting"):  # turning changes nothing else
        assert np.array_equal(getattr(ours, name), getattr(plain, name))


def assert_same_distribution(one: np.ndarray, other: np.ndarray) -> None:
    """The largest distance of the two distribution functions is one that chance explains (Kolmogorov and Smirnov)."""
    grid = np.sort(np.concatenate([one, other]))
    gap = np.abs(
        np.searchsorted(np.sort(one), grid, side="right") / len(one)
        - np.searchsorted(np.sort(other), grid, side="right") / len(other)
    ).max()
    # 1.95 for one in a thousand.
    assert gap < 1.95 * np.sqrt((len(one) + len(other)) / (len(one) * len(other)))


def test_a_whole_batch_has_the_moments_of_the_published_pipeline(tmp_path: Path) -> None:
    """Pixels, boxes and black border of our batches against an independent pipeline with its own generator."""
    content = document(16, sizes=((150, 200),))
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    plan = make_plan(report.manifest, seed=0, global_batch_size=16)
    ours: list[np.ndarray] = []
    with training_loader(report.location, plan, World(1, 0), input_size=(64, 64), stop_step=100, threads=1) as loader:
        for batch in loader:
            pixels = augment(batch, CocoNormalisation()).numpy()
            for row in range(16):
                ours.append(measured(pixels[row], batch.boxes[row].numpy(), batch.labels[row].numpy()))
    generator = np.random.RandomState(0)
    python_random.seed(0)
    theirs = []
    for _ in range(100):
        for image in content["images"]:
            own = [item["bbox"] for item in content["annotations"] if item["image_id"] == image["id"]]
            bgr = cv2.imread(str(images / image["file_name"]))
            theirs.append(published_sample(bgr, np.array(own, np.float32).reshape(-1, 4), generator))
    one, other = np.array(ours), np.array(theirs)
    assert one.shape == other.shape == (1600, 12)
    for a, b in zip(one.T, other.T, strict=True):
        assert abs(a.mean() - b.mean()) < 4.5 * np.sqrt((a.var() + b.var()) / 1600)
        assert 0.85 < a.std() / b.std() < 1.18
        assert_same_distribution(a, b)


def measured(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean and spread of each channel, differences of channels and of halves, and the first box."""
    first = boxes[0] if (labels >= 0).any() else np.zeros(4, np.float32)
    blue_to_red = pixels[0].mean() - pixels[2].mean()
    left_to_right = pixels[:, :, :32].mean() - pixels[:, :, 32:].mean()
    return np.array([*pixels.mean(axis=(1, 2)), *pixels.std(axis=(1, 2)), blue_to_red, left_to_right, *first])


def published_sample(bgr: np.ndarray, xywh: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """What the publication does to one sample, in its words: draw, mirror, crop, jitter, light, normalise."""
    height, width = bgr.shape[:2]
    scale = max(height, width) * generator.choice(np.arange(0.6, 1.4, 0.1))

    def border(size: int) -> int:
        part = 1
        while size - 128 // part <= 128 // part:
            part *= 2
        return 128 // part

    centre = [generator.randint(border(side), side - border(side)) for side in (width, height)]
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    if generator.random_sample() < 0.5:
        bgr, centre[0] = bgr[:, ::-1], width - centre[0] - 1
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]] - 1
    zoom = 64 / scale
    matrix = np.array([[zoom, 0, 32 - zoom * centre[0]], [0, zoom, 32 - zoom * centre[1]]])
    pixels = cv2.warpAffine(np.ascontiguousarray(bgr), matrix, (64, 64), flags=cv2.INTER_LINEAR)
    pixels = pixels.astype(np.float32) / 255.0
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    mean = gray.mean()
    jitters = [lambda image, by: image * by, lambda image, by: image * by + mean * (1 - by)]
    jitters.append(lambda image, by: image * by + gray[..., None] * (1 - by))
    python_random.shuffle(jitters)
    for jitter in jitters:
        pixels = jitter(pixels, 1 + generator.uniform(-0.4, 0.4))
    values = np.array([0.2141788, 0.01817699, 0.00341571])
    vectors = np.array(
        [
            [-0.58752847, -0.69563484, 0.41340352],
            [-0.5832747, 0.00994535, -0.81221408],
            [-0.56089297, 0.71832671, 0.41158938],
        ]
    )
    pixels = pixels + vectors @ (values * generator.normal(scale=0.1, size=3))
    pixels = ((pixels - CocoNormalisation.mean) / CocoNormalisation.std).transpose(2, 0, 1)
    corners = boxes.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
    return measured(pixels, corners.reshape(-1, 4), np.zeros(len(boxes)))


# --- turned crops


@given(
    st.floats(-400, 400), st.floats(-400, 400), st.floats(10, 900), st.floats(-90, 90), st.booleans(), st.integers(1, 9)
)
def test_a_crop_is_turned_about_its_centre_and_back(
    x: float, y: float, scale: float, degrees: float, mirrored: bool, times: int
) -> None:
    size = (64 * times, 128)
    matrix = crop_matrix((x, y), scale, size, degrees)
    matrix[0, 2] -= mirrored
    assert_allclose(matrix[:, :2] @ [x, y] + matrix[:, 2], [64 - mirrored, 32 * times], atol=1e-6)
    assert_allclose(np.linalg.det(matrix[:, :2]), (128 / scale) ** 2, rtol=1e-9)
    straight = crop_matrix((x, y), scale, size)
    straight[0, 2] -= mirrored
    assert_allclose(without_rotation(matrix, size, mirrored=mirrored), straight, atol=1e-6)


# --- the shorter side


@pytest.mark.parametrize(
    ("size", "shorter", "expected"),
    [
        ((480, 640), 800, (800, 1066)),  # 800 x 640 / 480 = 1066.7, cut off
        ((640, 480), 800, (1066, 800)),
        ((427, 640), 800, (800, 1199)),  # 1199.06
        ((333, 640), 800, (694, 1333)),  # 1333 x 333 / 640 = 693.6, to the nearest: 694 x 640 / 333 = 1333.8
        ((500, 500), 640, (640, 640)),
        ((800, 1200), 800, (800, 1200)),
        ((10, 4000), 800, (3, 1200)),  # 3.3
    ],
)
def test_sizes_are_rounded_as_the_authors_round_them(
    size: tuple[int, int], shorter: int, expected: tuple[int, int]
) -> None:
    assert tuple(resized(np.array([size]), shorter, 1333)[0]) == expected


@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(16, 900))
def test_no_input_exceeds_the_room_that_is_made_for_it(height: int, width: int, shorter: int) -> None:
    settings = AugmentationSettings(geometry="shorter_side", shorter_sides=(shorter,), longer_side_limit=900)
    found = resized(np.array([[height, width]]), shorter, 900)
    assert found.min() >= 1
    for divisor in (8, 32, 128):
        most = settings.largest_input((512, 512), Multiples(divisor))
        padded = Multiples(divisor).padded(*found[0].tolist())
        assert padded[0] <= most[0]
        assert padded[1] <= most[1]


def authors_sample(
    bgr: np.ndarray, xywh: np.ndarray, size: tuple[int, int], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Resize, mirror, normalise in the authors' order; boxes mirrored by x' = width - 1 - x."""
    height, width = bgr.shape[:2]
    pixels = cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = boxes * np.array([size[1] / width, size[0] / height] * 2)
    if flip:
        pixels = pixels[:, ::-1]
        boxes = boxes.copy()
        boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]] - 1
    pixels = pixels.astype(np.float32) / 255
    return ((pixels - CocoNormalisation.mean) / CocoNormalisation.std).transpose(2, 0, 1), boxes


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, BuildReport]:
    folder = tmp_path_factory.mktemp("photographs")
    content = document(10, sizes=((48, 64), (64, 48), (40, 90)))
    annotations, images = write_coco(folder, content)
    return content, images, build_shards(annotations, images, str(folder / "out"), split="train")


def check_batch(batch: Batch, pixels: torch.Tensor, flips: np.ndarray, content: dict[str, Any], images: Path) -> None:
    assert batch.content_sizes is not None
    for row, image_id in enumerate(batch.image_ids.tolist()):
        own = [item["bbox"] for item in content["annotations"] if item["image_id"] == image_id]
        height, width = batch.content_sizes[row].tolist()
        bgr = cv2.imread(str(images / f"{image_id}.jpg"))
        expected, boxes = authors_sample(
            bgr, np.array(own, np.float32).reshape(-1, 4), (height, width), bool(flips[row])
        )
        # libjpeg and OpenCV differ by a level here and there.
        assert np.abs(pixels[row, :, :height, :width].numpy() - expected).max() < 4 / 255 / 0.27
        assert (pixels[row, :, height:] == 0).all()
        assert (pixels[row, :, :, width:] == 0).all()
        assert_allclose(batch.boxes[row, : len(own)], boxes, atol=1e-3)
        x, y = batch.transforms[row].double().numpy() @ [own[0][0], own[0][1], 1] if own else (0, 0)
        if own:
            assert_allclose([x, y], [boxes[0, 2 if flips[row] else 0], boxes[0, 1]], atol=1e-3)


def test_training_resizes_mirrors_and_pads_as_the_authors_do(
    photographs: tuple[dict[str, Any], Path, BuildReport],
) -> None:
    content, images, report = photographs
    settings = AugmentationSettings(
        geometry="shorter_side", shorter_side_range=(60, 100), longer_side_limit=160, **PLAIN
    )
    plan = make_plan(report.manifest, seed=5, global_batch_size=5)
    shapes, flipped, sides = set(), 0, set()
    with training_loader(
        report.location, plan, World(1, 0), input_size=(8, 8), augmentation=settings, stop_step=8, max_objects=4
    ) as loader:
        for batch in loader:
            draws = draw(settings, 5, batch.epoch, batch.sample_ids.numpy(), batch.original_sizes.numpy())
            assert batch.content_sizes is not None
            largest = batch.content_sizes.numpy().max(axis=0)
            assert batch.input_size == tuple(-(-largest // 32) * 32)  # the next multiple that holds the largest
            flips = draws.flips.copy()
            check_batch(batch, augment(batch, CocoNormalisation()), flips, content, images)
            shapes.add(batch.input_size)
            flipped += int(flips.sum())
            sides |= set(batch.content_sizes.amin(dim=1).tolist())
    assert len(shapes) > 1
    assert 5 < flipped < 35
    assert len(sides) > 15


def test_a_shorter_side_belongs_to_the_sample_and_every_one_is_drawn() -> None:
    sizes = np.tile([480, 640], (COUNT, 1))
    settings = AugmentationSettings(geometry="shorter_side", shorter_side_range=(640, 800))
    draws = draw(settings, 0, 0, np.arange(COUNT), sizes)
    values, counts = np.unique(draws.content_sizes[:, 0], return_counts=True)
    assert values.tolist() == list(range(640, 801))
    assert np.abs(counts - COUNT / 161).max() < 5 * np.sqrt(COUNT / 161)
    listed = draw(
        AugmentationSettings(geometry="shorter_side", shorter_sides=(640, 800)), 0, 0, np.arange(99), sizes[:99]
    )
    assert set(listed.content_sizes[:, 0].tolist()) == {640, 800}
    alone = draw(settings, 0, 0, np.array([77]), sizes[:1])
    assert np.array_equal(alone.content_sizes[0], draws.content_sizes[77])


def test_colours_are_jittered_by_the_image_without_its_padding(
    photographs: tuple[dict[str, Any], Path, BuildReport],
) -> None:
    """Contrast pulls towards the mean gray of the photograph: padding must not darken it."""
    _, _, report = photographs
    contrast = {**PLAIN, "contrast": 0.9}
    settings = AugmentationSettings(geometry="shorter_side", shorter_sides=(60,), flip_probability=0.0, **contrast)
    plan = make_plan(report.manifest, seed=5, global_batch_size=10)
    with training_loader(report.location, plan, World(1, 0), input_size=(8, 8), augmentation=settings) as loader:
        batch = next(loader)
    assert batch.content_sizes is not None
    together = augment(batch, CocoNormalisation())
    for row in range(10):
        height, width = batch.content_sizes[row].tolist()
        own = {
            name: getattr(batch, name)[row : row + 1]
            for name in ("boxes", "labels", "image_ids", "transforms", "original_sizes", "sample_ids", "flips")
        }
        colours = {name: getattr(batch, name)[row : row + 1] for name in ("colour_factors", "colour_order", "lighting")}
        images = batch.images[row : row + 1, :, :height, :width]
        alone = augment(Batch(images=images, epoch=0, step=0, **own, **colours), CocoNormalisation())
        assert_allclose(together[row, :, :height, :width], alone[0], atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_by_the_shorter_side(photographs: tuple[dict[str, Any], Path, BuildReport], ranks: int) -> None:
    content, images, report = photographs
    seen: list[int] = []
    for rank in range(ranks):
        with evaluation_loader(
            report.location,
            World(ranks, rank),
            geometry="shorter_side",
            shorter_side=80,
            longer_side_limit=133,
            batch_size=4,
        ) as loader:
            for batch in loader:
                seen += batch.sample_ids.tolist()
                pixels = augment(batch, CocoNormalisation())
                check_batch(batch, pixels, np.zeros(len(pixels), bool), content, images)
                # 80 x 106, 106 x 80 and, at the limit, 59 x 133 become multiples of 32.
                assert batch.input_size in {(96, 128), (128, 96), (64, 160)}
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": -1}, "shift is -1; set it to 0 or more"),
        ({"scale": 1.0}, "scale is 1; set it to 0 or more and below 1"),
        ({"shift_probability": 2}, "shift_probability is 2; set it between 0 and 1"),
        ({"rotation_probability": -1}, "rotation_probability is -1; set it between 0 and 1"),
        ({"shorter_sides": ()}, r"shorter_sides is \[\]; give one side or more"),
        (
            {"shorter_side_range": (800, 640)},
            r"shorter_side_range is \[800, 640\]; give the smallest and the largest side",
        ),
        ({"shorter_sides": (1400,)}, "longer_side_limit is 1333; set it to the largest shorter side, 1400, or more"),
        ({"geometry": "shorter_side", "rotation_probability": 0.5}, "works with the geometries crop and shift only"),
    ],
)
def test_impossible_geometries_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentationSettings(**settings)
