from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from data_shards.errors import DataError
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.random_draws import Draws, draw
from data_shards.reading.geometry import crop_resize, transform_boxes
from data_shards.settings import AugmentationSettings
from tests.data_shards.samples import photo


@dataclass(frozen=True)
class CocoNormalisation:
    """The publication's numbers for COCO, in B, G, R."""

    channel_order: Literal["rgb", "bgr"] = "bgr"
    mean: tuple[float, float, float] = (0.40789654, 0.44719302, 0.47026115)
    std: tuple[float, float, float] = (0.28863828, 0.27408164, 0.27809835)
    scale: float = 1 / 255


SIZES = np.array([[300, 400], [200, 150], [256, 256], [90, 120], [480, 640], [333, 500]], dtype=np.int64)
INPUT = (192, 256)


def draws_of(count: int, seed: int = 0, epoch: int = 0, **settings: Any) -> tuple[Draws, np.ndarray]:
    sizes = SIZES[np.arange(count) % len(SIZES)]
    return draw(AugmentationSettings(**settings), seed, epoch, np.arange(count), sizes), sizes


def batch_of(draws: Draws, images: list[np.ndarray], boxes: list[np.ndarray], size: tuple[int, int]) -> Batch:
    """What the loader hands over, put together here from the draws."""
    count = len(images)
    batch = Batch(
        images=torch.zeros((count, 3, *size), dtype=torch.uint8),
        boxes=torch.zeros((count, 5, 4)),
        labels=torch.full((count, 5), -1),
        image_ids=torch.arange(count),
        transforms=torch.zeros((count, 2, 3)),
        original_sizes=torch.tensor([image.shape[:2] for image in images]),
        sample_ids=torch.arange(count),
        epoch=0,
        step=0,
        flips=torch.from_numpy(draws.flips.copy()),
        colour_factors=torch.from_numpy(draws.colour_factors),
        colour_order=torch.from_numpy(draws.colour_order),
        lighting=torch.from_numpy(draws.lighting),
    )
    for row, image in enumerate(images):
        matrix = draws.matrix(row, size)
        batch.images[row] = torch.from_numpy(crop_resize(image, matrix, size)).permute(2, 0, 1)
        batch.boxes[row, : len(boxes[row])] = torch.from_numpy(transform_boxes(boxes[row], matrix))
        batch.labels[row, : len(boxes[row])] = 1
        batch.transforms[row] = torch.from_numpy(matrix)
    return batch


def published(
    image: np.ndarray, boxes: np.ndarray, draws: Draws, row: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The publication's own steps for one image, one after the other, with the numbers that were drawn.

    Mirror the image, crop it with cv2, divide by 255, jitter in the drawn order, add the lighting, normalise;
    boxes mirrored by x' = width - 1 - x and taken through the same matrix. The last result says where the image's own
    edge is mixed with the black outside.
    """
    height, width = size
    bgr = image[..., ::-1]
    centre = draws.centre(row, size)
    boxes = boxes.copy()
    if draws.flips[row]:
        bgr = bgr[:, ::-1]
        centre[0] = image.shape[1] - centre[0] - 1
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]] - 1
    scale = draws.scales[row]
    steps = np.array([[0.0, 0.0], [0.0, -0.5], [-0.5, -0.5]])
    source, target = centre + scale * steps, np.array([width / 2, height / 2]) + width * steps
    matrix = cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
    pixels = cv2.warpAffine(np.ascontiguousarray(bgr), matrix, (width, height), flags=cv2.INTER_LINEAR)
    uint8 = pixels
    seen = cv2.warpAffine(np.full(bgr.shape[:2], 255, np.uint8), matrix, (width, height), flags=cv2.INTER_LINEAR)
    edge = (seen > 0) & (seen < 255)
    pixels = pixels.astype(np.float32) / 255
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    gray_mean = gray.mean()
    for kind in draws.colour_order[row]:
        factor = draws.colour_factors[row, kind]
        if kind == 0:
            pixels = pixels * factor
        elif kind == 1:
            pixels = pixels * factor + (1 - factor) * gray_mean
        else:
            pixels = pixels * factor + (1 - factor) * gray[:, :, None]
    values = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
    vectors = np.array(
        [
            [-0.58752847, -0.69563484, 0.41340352],
            [-0.5832747, 0.00994535, -0.81221408],
            [-0.56089297, 0.71832671, 0.41158938],
        ],
        np.float32,
    )
    pixels = pixels + vectors @ (values * draws.lighting[row])
    mean, std = np.array(CocoNormalisation.mean), np.array(CocoNormalisation.std)
    corners = np.concatenate([boxes.reshape(-1, 2), np.ones((2 * len(boxes), 1))], axis=1) @ matrix.T
    return ((pixels - mean) / std).transpose(2, 0, 1), corners.reshape(-1, 4), uint8, edge


def test_a_batch_is_augmented_as_the_publication_augments_its_images() -> None:
    count = 24
    draws, sizes = draws_of(count)
    assert 4 < draws.flips.sum() < 20
    assert len({tuple(order) for order in draws.colour_order}) == 6
    images = [photo(row, height, width) for row, (height, width) in enumerate(sizes)]
    random = np.random.default_rng(0)
    boxes = [random.uniform(-20, 300, (row % 5, 4)).astype(np.float32) for row in range(count)]
    batch = batch_of(draws, images, boxes, INPUT)
    result = augment(batch, CocoNormalisation())
    assert result.shape == (count, 3, *INPUT)
    assert result.dtype == torch.float32
    for row in range(count):
        expected, expected_boxes, uint8, edge = published(images[row], boxes[row], draws, row, INPUT)
        assert_allclose(batch.boxes[row, : len(boxes[row])], expected_boxes, atol=1e-3)
        # Mirroring before or after resampling, by one way or another, rounds differently by at most one level of 255.
        ours = batch.images[row].permute(1, 2, 0).numpy()[..., ::-1]
        assert np.abs(ours.astype(int) - uint8)[~edge].max() <= 1
        # There the pixel is of the image or black, and the published one is something between.
        assert ((ours[edge] == 0) | (ours[edge] + 1.0 >= uint8[edge])).all()
        # One level, times at most 1.4 twice and 1.4 x 1.6 for the third, over a std of 0.274.
        inside = np.broadcast_to(~edge, expected.shape).copy()
        assert_allclose(result[row][inside], expected[inside], atol=1 / 255 * 1.4**3 * 1.6 / 0.274)
        assert np.abs(result[row].numpy() - expected)[inside].mean() < 0.004


def test_colours_are_exact_where_nothing_is_resampled() -> None:
    """Jitter, lighting and normalisation alone agree to rounding, whatever the order."""
    settings = AugmentationSettings(crop_scales=(), flip_probability=0.0)
    images = [photo(row, 128, 128) for row in range(12)]
    sizes = np.full((12, 2), 128)
    draws = draw(settings, 3, 1, np.arange(12), sizes)
    batch = batch_of(draws, images, [np.zeros((0, 4), np.float32)] * 12, (128, 128))
    result = augment(batch, CocoNormalisation())
    for row in range(12):
        expected, _, uint8, _ = published(images[row], np.zeros((0, 4)), draws, row, (128, 128))
        assert np.array_equal(uint8[..., ::-1], images[row])
        assert_allclose(result[row], expected, atol=2e-5)


def test_channels_come_in_the_order_of_the_normalisation() -> None:
    draws, _ = draws_of(3, crop_scales=(), flip_probability=0.0)
    images = [photo(row) for row in range(3)]
    boxes = [np.zeros((0, 4), np.float32)] * 3
    bgr = augment(batch_of(draws, images, boxes, (48, 64)), CocoNormalisation())
    backwards = CocoNormalisation("rgb", CocoNormalisation.mean[::-1], CocoNormalisation.std[::-1])
    rgb = augment(batch_of(draws, images, boxes, (48, 64)), backwards)
    assert_allclose(rgb.flip(1), bgr, atol=1e-6)


def test_another_pixel_scale_keeps_the_same_colours() -> None:
    draws, _ = draws_of(3)
    images = [photo(row) for row in range(3)]
    boxes = [np.zeros((0, 4), np.float32)] * 3
    unit = augment(batch_of(draws, images, boxes, (48, 64)), CocoNormalisation())
    bytes_mean = tuple(255 * value for value in CocoNormalisation.mean)
    full = augment(batch_of(draws, images, boxes, (48, 64)), CocoNormalisation("bgr", bytes_mean, (1, 1, 1), 1.0))
    std = torch.tensor(CocoNormalisation.std).view(1, 3, 1, 1)
    assert_allclose(full, unit * std * 255, atol=1e-3)


def test_evaluation_is_only_normalised() -> None:
    draws, _ = draws_of(1, crop_scales=(), flip_probability=0.0)
    batch = batch_of(draws, [photo(0)], [np.array([[1, 2, 3, 4]], np.float32)], (48, 64))
    batch = replace(batch, flips=None, colour_factors=None, colour_order=None, lighting=None)
    before = batch.images.clone()
    result = augment(batch, CocoNormalisation())
    # Red 10 of 255 is (10 / 255 - 0.47026115) / 0.27809835 in the last channel.
    assert torch.equal(batch.images, before)
    pixel = before[0, :, 7, 9].flip(0).numpy() / 255
    assert_allclose(result[0, :, 7, 9], (pixel - CocoNormalisation.mean) / CocoNormalisation.std, atol=1e-6)


def test_mirroring_happens_once_and_leaves_padding_alone() -> None:
    draws, _ = draws_of(2, crop_scales=(), flip_probability=1.0)
    batch = batch_of(draws, [photo(0), photo(1)], [np.array([[4, 5, 20, 30]], np.float32)] * 2, (48, 64))
    before = batch.images.clone()
    forward, transforms = batch.boxes.clone(), batch.transforms.clone()
    first = augment(batch, CocoNormalisation())
    assert torch.equal(batch.images, before.flip(-1))
    # x1' = 64 - 1 - x2, and the other way round.
    assert_allclose(batch.boxes[:, 0, 0], 63 - forward[:, 0, 2])
    assert_allclose(batch.boxes[:, 0, 2], 63 - forward[:, 0, 0])
    assert_allclose(batch.boxes[:, 0, 1::2], forward[:, 0, 1::2])
    assert torch.equal(batch.boxes[:, 1:], torch.zeros(2, 4, 4))
    # The transform still takes the image to the input: the first corner, mirrored.
    point = torch.tensor([4.0, 5.0, 1.0])
    assert_allclose(batch.transforms[0] @ point, [63 - (transforms[0] @ point)[0], (transforms[0] @ point)[1]])
    assert torch.equal(augment(batch, CocoNormalisation()), first)
    assert not batch.flips.any()


def test_draws_belong_to_the_sample_and_the_epoch() -> None:
    settings = AugmentationSettings()
    ids = np.array([3, 17, 99])
    together = draw(settings, 1, 2, ids, SIZES[:3])
    for row in range(3):
        alone = draw(settings, 1, 2, ids[row : row + 1], SIZES[row : row + 1])
        for name in vars(together):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[row]), name
    for other in (draw(settings, 1, 3, ids, SIZES[:3]), draw(settings, 2, 2, ids, SIZES[:3])):
        assert not np.array_equal(other.centres, together.centres)
        assert not np.array_equal(other.colour_factors, together.colour_factors)


def test_draws_are_distributed_as_published() -> None:
    count = 40_000
    sizes = np.tile([480, 640], (count, 1))
    draws = draw(AugmentationSettings(), 0, 0, np.arange(count), sizes)
    # Eight scales of 0.6 to 1.3, each an eighth: 5,000 ± 4 x sqrt(5,000 x 7/8) = 265.
    values, counts = np.unique(np.round(draws.scales / 640, 6), return_counts=True)
    assert values.tolist() == [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    assert np.abs(counts - 5000).max() < 265
    # Whole numbers from the border to the side less the border, the end left out.
    for axis, side in enumerate((640, 480)):
        values, counts = np.unique(draws.centres[:, axis], return_counts=True)
        assert values.tolist() == list(range(128, side - 128))
        assert np.abs(counts - count / len(values)).max() < 5 * np.sqrt(count / len(values))
    assert abs(draws.flips.mean() - 0.5) < 0.01
    assert 0.6 <= draws.colour_factors.min() < 0.601
    assert 1.399 < draws.colour_factors.max() <= 1.4
    assert_allclose(draws.colour_factors.mean(axis=0), 1, atol=0.005)
    # A uniform number of width 0.8 has the variance 0.64 / 12.
    assert_allclose(draws.colour_factors.var(axis=0), 0.64 / 12, rtol=0.03)
    orders, counts = np.unique(draws.colour_order, axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(counts - count / 6).max() < 400
    assert_allclose(draws.lighting.mean(axis=0), 0, atol=0.002)
    assert_allclose(draws.lighting.std(axis=0), 0.1, rtol=0.02)
    # The tails of a normal number: 4.55% beyond two standard deviations.
    assert_allclose((np.abs(draws.lighting) > 0.2).mean(axis=0), 0.0455, atol=0.005)
    everything = np.concatenate(
        [draws.scales[:, None], draws.centres, draws.flips[:, None], draws.colour_factors, draws.lighting], axis=1
    )
    off_diagonal = np.corrcoef(everything.T) - np.eye(everything.shape[1])
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(count)


@pytest.mark.parametrize(
    ("side", "border"), [(640, 128), (257, 128), (256, 64), (129, 64), (128, 32), (64, 16), (3, 1), (2, 0), (1, 0)]
)
def test_the_border_is_halved_until_there_is_room(side: int, border: int) -> None:
    count = 3000
    draws = draw(AugmentationSettings(), 0, 0, np.arange(count), np.full((count, 2), side))
    assert draws.centres.min() == border
    assert draws.centres.max() == side - border - 1


def test_off_shows_the_whole_image_in_its_own_colours() -> None:
    draws, sizes = draws_of(6, **vars(AugmentationSettings.off()))
    assert_allclose(draws.centres, sizes[:, ::-1] / 2)
    assert_allclose(draws.scales, sizes.max(axis=1))
    assert not draws.flips.any()
    assert (draws.colour_factors == 1).all()
    assert (draws.lighting == 0).all()
    batch = batch_of(draws, [photo(row) for row in range(6)], [np.zeros((0, 4), np.float32)] * 6, (48, 64))
    plain = replace(batch, flips=None, colour_factors=None, colour_order=None, lighting=None)
    assert_allclose(augment(batch, CocoNormalisation()), augment(plain, CocoNormalisation()), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop_scales": (0.5, 0.0)}, r"crop_scales contains 0; set every scale above 0"),
        ({"crop_scales": (float("nan"),)}, r"crop_scales contains nan"),
        ({"crop_border": -1}, r"crop_border is -1; set it to 0 pixels or more"),
        ({"flip_probability": 1.5}, r"flip_probability is 1\.5; set it between 0 and 1"),
        ({"brightness": -0.1}, r"brightness is -0\.1; set it between 0 and 1"),
        ({"contrast": 2}, r"contrast is 2; set it between 0 and 1"),
        ({"saturation": float("nan")}, r"saturation is nan; set it between 0 and 1"),
        ({"lighting": -1}, r"lighting is -1; set it to 0 or more"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentationSettings(**setting)
