"""Sizes and pixels of whole images against each library's own."""

from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_shards.reading.resizing import resize, resized
from data_shards.settings import AugmentationSettings, Resizing
from detectors.sizes import Multiples
from tests.data_shards.samples import photo

RULES: tuple[Resizing, ...] = get_args(Resizing)


# The results of each library's own arithmetic, done by hand, for a shorter side of 800 and a limit of 1333.
SIZES = {
    # 800 x 640 / 480 = 1066.7
    (480, 640): {"authors": (800, 1066), "torchvision": (800, 1066), "detectron2": (800, 1067)},
    (640, 480): {"authors": (1066, 800), "torchvision": (1066, 800), "detectron2": (1067, 800)},
    # 1199.06
    (427, 640): {"authors": (800, 1199), "torchvision": (800, 1199), "detectron2": (800, 1199)},
    # 1204.7
    (640, 425): {"authors": (1204, 800), "torchvision": (1204, 800), "detectron2": (1205, 800)},
    # At the limit: 1333 x 333 / 640 = 693.6. The authors' longer side follows from 694: 1333.8.
    (333, 640): {"authors": (694, 1333), "torchvision": (693, 1333), "detectron2": (694, 1333)},
    # 749.8, and 750 x 1920 / 1080 = 1333.3
    (1080, 1920): {"authors": (750, 1333), "torchvision": (749, 1333), "detectron2": (750, 1333)},
    # 1333 x 120 / 640 = 249.9, and 250 x 640 / 120 = 1333.3
    (120, 640): {"authors": (250, 1333), "torchvision": (249, 1333), "detectron2": (250, 1333)},
    # 1333.33 exceeds the limit by a third of a pixel: 1333 x 300 / 500 = 799.8
    (300, 500): {"authors": (800, 1333), "torchvision": (799, 1333), "detectron2": (800, 1333)},
    # 289 x (800 / 289) is 799.9999999999999 in float64: torchvision loses a pixel.
    (289, 375): {"authors": (800, 1038), "torchvision": (799, 1038), "detectron2": (800, 1038)},
    (612, 612): {"authors": (800, 800), "torchvision": (800, 800), "detectron2": (800, 800)},
    (800, 1200): {"authors": (800, 1200), "torchvision": (800, 1200), "detectron2": (800, 1200)},
    (3000, 4000): {"authors": (800, 1066), "torchvision": (800, 1066), "detectron2": (800, 1067)},
}


@pytest.mark.parametrize("resizing", RULES)
def test_sizes_are_those_of_the_library(resizing: Resizing) -> None:
    # mmdetection rounds like detectron2, although it multiplies once where the other one multiplies twice.
    column = {"plain": "authors", "mmdetection": "detectron2"}.get(resizing, resizing)
    images = np.array(list(SIZES))
    found = resized(images, 800, 1333, resizing)
    assert dict(zip(SIZES, map(tuple, found.tolist()), strict=True)) == {
        size: expected[column] for size, expected in SIZES.items()
    }


@given(st.integers(30, 120), st.integers(30, 120), st.integers(20, 90))
def test_torchvisions_sizes_are_those_of_interpolate(height: int, width: int, shorter: int) -> None:
    factor = min(shorter / min(height, width), 100 / max(height, width))
    image = torch.zeros(1, 1, height, width)
    theirs = torch.nn.functional.interpolate(image, scale_factor=factor, mode="bilinear", recompute_scale_factor=True)
    assert tuple(resized(np.array([[height, width]]), shorter, 100, "torchvision")[0]) == tuple(theirs.shape[2:])


def test_the_authors_longer_side_may_exceed_its_limit_a_little() -> None:
    # 1333 x 200 / 1000 = 266.6, and 267 x 1000 / 200 = 1335; 1333 x 10 / 4000 = 3.3, and 3 x 4000 / 10 = 1200.
    # 1333 x 11 / 4000 = 3.7, and 4 x 4000 / 11 = 1454, which is cut to 42 x 32 = 1344.
    found = resized(np.array([[200, 1000], [10, 4000], [11, 4000]]), 800, 1333, "authors")
    assert found.tolist() == [[267, 1335], [3, 1200], [4, 1344]]


@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(16, 900), st.sampled_from(RULES))
def test_no_input_exceeds_the_room_that_is_made_for_it(
    height: int, width: int, shorter: int, resizing: Resizing
) -> None:
    settings = AugmentationSettings(geometry="shorter_side", shorter_sides=(shorter,), longer_side_limit=900)
    found = resized(np.array([[height, width]]), shorter, 900, resizing)
    assert found.min() >= 1
    for divisor in (8, 32, 128):
        most = settings.largest_input((512, 512), Multiples(divisor))
        padded = Multiples(divisor).padded(*found[0].tolist())
        assert padded[0] <= most[0]
        assert padded[1] <= most[1]


def noise(height: int, width: int) -> np.ndarray:
    """Pixels without a pattern, in which every way to resample looks different."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by(resizing: Resizing, image: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.full((height, width + 5, 3), 7, np.uint8)
    resize(image, out[:, :width], resizing)
    assert (out[:, width:] == 7).all()
    return out[:, :width]


# Smaller in both directions, then in one of them: rounded sides may do that to an image of nearly the wanted size.
@pytest.mark.parametrize("size", [(30, 44), (7, 9), (47, 65), (49, 63), (48, 20)])
@pytest.mark.parametrize("resizing", ["authors", "detectron2"])
def test_the_authors_and_detectron2_shrink_as_pillow_does(resizing: Resizing, size: tuple[int, int]) -> None:
    image = noise(48, 64)
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(by(resizing, image, *size), np.asarray(pillow))
    assert not np.array_equal(by("plain", image, *size), np.asarray(pillow))


@pytest.mark.parametrize("size", [(30, 44), (7, 9), (80, 106)])
@pytest.mark.parametrize("resizing", ["plain", "torchvision", "mmdetection"])
def test_torchvision_and_mmdetection_interpolate_between_neighbours(resizing: Resizing, size: tuple[int, int]) -> None:
    image = noise(48, 64)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0]
    # Rounded to a level of 255 along each axis.
    assert np.abs(by(resizing, image, *size) - exact.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("resizing", RULES)
def test_all_libraries_enlarge_alike_and_copy_what_has_its_size(resizing: Resizing) -> None:
    image = noise(48, 64)
    enlarged = by(resizing, image, 80, 106)
    assert np.array_equal(enlarged, cv2.resize(image, (106, 80), interpolation=cv2.INTER_LINEAR))
    pillow = np.asarray(Image.fromarray(image).resize((106, 80), Image.Resampling.BILINEAR))
    assert np.abs(enlarged.astype(int) - pillow).max() <= 1
    assert np.array_equal(by(resizing, image, 48, 64), image)


def test_a_view_with_gaps_between_its_rows_is_resized_like_its_copy() -> None:
    """Turned and cached images are not always contiguous."""
    image = photo(3, 60, 90)
    for resizing in RULES:
        assert np.array_equal(by(resizing, image[:, 10:74], 30, 40), by(resizing, image[:, 10:74].copy(), 30, 40))
