import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from data_shards.reading.geometry import crop_matrix, crop_resize, transform_boxes, warp, whole_pixel_shift
from data_shards.reading.scratch import Scratch
from tests.data_shards.samples import photo


def published_matrix(centre: np.ndarray, scale: float, size: tuple[int, int]) -> np.ndarray:
    """The publication's way to its matrix: three point pairs, solved by OpenCV."""
    height, width = size
    source, target = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    source[0], source[1] = centre, centre - np.array([0, scale / 2])
    target[0], target[1] = [width / 2, height / 2], [width / 2, height / 2 - width / 2]
    for points in (source, target):
        across = points[0] - points[1]
        points[2] = points[1] + np.array([-across[1], across[0]], np.float32)
    return cv2.getAffineTransform(source, target)


@pytest.mark.parametrize(
    ("centre", "scale", "size"),
    [((320.0, 240.0), 640.0, (512, 512)), ((131.0, 200.0), 384.0, (512, 512)), ((50.0, 77.0), 91.0, (96, 160))],
)
def test_the_crop_is_the_published_one(centre: tuple[float, float], scale: float, size: tuple[int, int]) -> None:
    matrix = crop_matrix(centre, scale, size)
    assert matrix.dtype == np.float64
    assert_allclose(matrix, published_matrix(np.array(centre), scale, size), atol=1e-4)


def test_boxes_move_with_the_pixels() -> None:
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:40, 30:70] = 255
    # Twice as large around (50, 30): x' = 2 x - 50 + 64 - 50 = 2 (x - 50) + 64.
    matrix = crop_matrix((50.0, 30.0), 64.0, (96, 128))
    boxes = transform_boxes(np.array([[30, 20, 70, 40]], np.float32), matrix)
    assert boxes.tolist() == [[24.0, 28.0, 104.0, 68.0]]
    assert boxes.dtype == np.float32
    rows, columns = np.nonzero(warp(image, matrix, (96, 128))[..., 0] == 255)
    # Index coordinates: pixel 30 lands on 24 and 69 on 102; row 20 on 28 and 39 on 66.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (24, 102, 28, 66)


def test_outside_the_image_is_black() -> None:
    image = np.full((10, 10, 3), 200, np.uint8)
    out = warp(image, crop_matrix((5.0, 5.0), 40.0, (40, 40)), (40, 40))
    assert out[:14].max() == out[:, :14].max() == out[26:].max() == 0
    assert (out[15:25, 15:25] == 200).all()


# --- crops by one resize


def bilinear(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resampling in double precision, and where an edge of the image falls on the middle of a pixel."""
    pixels, on_edge = image.astype(np.float64), np.zeros(size, bool)
    for axis, side in enumerate(size):
        zoom, shift, length = matrix[1 - axis, 1 - axis], matrix[1 - axis, 2], image.shape[axis]
        places = (np.arange(side) - shift) / zoom
        on_edge |= np.expand_dims(np.isclose(np.abs(places - (length - 1) / 2), length / 2, atol=1e-6), 1 - axis)
        seen = np.expand_dims((places >= -0.5) & (places <= length - 0.5), (1 - axis, 2))
        places = places.clip(0, length - 1)
        before = places.astype(int)
        fraction = np.expand_dims(places - before, (1 - axis, 2))
        after = np.minimum(before + 1, length - 1)
        pixels = (pixels.take(before, axis) * (1 - fraction) + pixels.take(after, axis) * fraction) * seen
    return pixels, on_edge


@example(image_size=(1, 1), input_size=(2, 1), scale=0.5, centre=(0.0, 0.0), seed=0)
@given(
    image_size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    input_size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scale=st.floats(0.2, 4.0) | st.sampled_from([0.5, 0.75, 1.0, 1.25, 2.0]),
    centre=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_a_resized_slice_is_the_crop(
    image_size: tuple[int, int],
    input_size: tuple[int, int],
    scale: float,
    centre: tuple[float, float],
    seed: int,
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    middle = (centre[0] * image_size[1], centre[1] * image_size[0])
    drawn = crop_matrix(middle, scale * max(image_size), input_size)
    matrix = drawn.copy()
    for axis in (0, 1):
        matrix[axis, 2] = whole_pixel_shift(matrix[axis, axis], matrix[axis, 2])
        again = whole_pixel_shift(matrix[axis, axis], matrix[axis, 2])
        # A shift that can be done stays; one halfway between two others may be rounded to either.
        halfway = 0.5 * max(1.0, matrix[axis, axis])
        assert abs(again - matrix[axis, 2]) in (pytest.approx(0, abs=1e-6), pytest.approx(halfway, abs=1e-6))
    # Half a pixel of the input, or of the image where that is larger.
    assert np.abs(matrix - drawn)[:, 2].max() <= 0.5 * max(1.0, matrix[0, 0]) + 1e-9
    expected, on_edge = bilinear(image, matrix, input_size)
    scratch = Scratch()
    for _ in range(2):
        found = crop_resize(image, matrix, input_size, scratch)
        if np.array_equal(found, warp(image, matrix, input_size)):
            return  # OpenCV would copy instead of zooming a little, so this one was left to warp
        assert np.abs(found - expected)[~on_edge].max(initial=0) <= 1
        crop_resize(255 - image, crop_matrix((0, 0), 1.5, input_size), input_size, scratch)


def test_other_crops_are_left_to_warp() -> None:
    image = photo(3, 60, 90)
    for matrix in (crop_matrix((40.3, 20.2), 71.0, (48, 64)), crop_matrix((40, 20), 71.0, (48, 64), 20.0)):
        assert np.array_equal(crop_resize(image, matrix, (48, 64)), warp(image, matrix, (48, 64)))


def test_nothing_of_the_last_image_is_left_around_the_next() -> None:
    scratch = Scratch()
    white = np.full((50, 50, 3), 255, np.uint8)
    for scale in (20.0, 100.0, 40.0, 200.0, 100.0):
        for size in ((40, 40), (40, 60)):
            matrix = crop_matrix((25, 25), scale, size)
            for axis in (0, 1):
                matrix[axis, 2] = whole_pixel_shift(matrix[axis, axis], matrix[axis, 2])
            assert np.array_equal(crop_resize(white, matrix, size, scratch), crop_resize(white, matrix, size))
