"""The forms of an image: what is taken, what is converted, and what is refused in one line."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.reading.pictures import read_picture
from pipelines.errors import ConfigError
from pipelines.prediction.images import as_picture
from tests.data_shards.pictures import encoded_pictures
from tests.data_shards.samples import photo


@pytest.mark.parametrize("name", sorted(encoded_pictures()))
def test_pil_opens_the_pixels_that_reading_decodes(name: str) -> None:
    data = encoded_pictures()[name]
    found = as_picture(Image.open(io.BytesIO(data)), "the image")
    assert isinstance(found, np.ndarray)
    expected = read_picture(data)
    assert found.shape == expected.shape
    # Conversions from CMYK differ in their rounding.
    assert np.abs(found.astype(int) - expected).max() <= (2 if name == "cmyk.jpg" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_mode_of_pil_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(photo(1))
    image = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    found = as_picture(image, "the image")
    assert isinstance(found, np.ndarray)
    assert found.shape == (48, 64, 3)
    assert found.dtype == np.uint8


def test_arrays_become_contiguous_rgb() -> None:
    image = photo(1)
    for given, expected in (
        (image, image),
        (image[..., ::-1], image[..., ::-1]),
        (image[::2, 1:9], image[::2, 1:9]),
        (image[..., 0], np.dstack([image[..., 0]] * 3)),
        (image[..., :1], np.dstack([image[..., 0]] * 3)),
    ):
        found = as_picture(given, "the image")
        assert isinstance(found, np.ndarray)
        assert found.flags.c_contiguous
        assert np.array_equal(found, expected)
    assert as_picture(image, "the image") is image


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (np.zeros((4, 4, 3), np.float32), r"is an array of float32, 4 x 4 x 3; pixels have to be uint8, 0 to 255\."),
        (np.zeros((4, 4, 3), np.uint16), r"is an array of uint16, 4 x 4 x 3; pixels have to be uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"4 x 4 x 4; leave out the fourth channel, as in image\[\.\.\., :3\]\."),
        (np.zeros((3, 4, 5), np.uint8), r"3 x 4 x 5; give a path, .* a uint8 array \(height, width, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"2 x 4 x 4 x 3; give a list of images instead of one array\."),
        (np.zeros((0, 4, 3), np.uint8), r"0 x 4 x 3; it has no pixels\."),
        (np.zeros((), np.uint8), r"an array of uint8, without dimensions; give a path"),
        (torch.zeros(3, 4, 4), r"is a Tensor; give a path, .*\.permute\(1, 2, 0\)"),
        (None, r"images\[3\] is a NoneType; give a path, a file's bytes"),
        ([photo(1)], r"images\[3\] is a list; give a path"),
        (7, r"is a int; give a path|is an int; give a path"),
        (tmp_path, r"is a folder; give a list of its images, or run `aweigh predict`\."),
        ("s3://bucket/a.jpg", r"s3://bucket/a\.jpg is an address, not a file; download it, or run `aweigh predict`"),
        ("https://host/a.jpg", r"is an address, not a file"),
        (Image.new("F", (4, 4)), r"is a PIL image of mode F, whose range is unknown; convert it to L\."),
        (Image.new("RGB", (0, 4)), r"is an array of uint8, 4 x 0 x 3; it has no pixels\."),
    ]
    for image, message in cases:
        with pytest.raises(ConfigError, match=message) as refused:
            as_picture(image, "images[3]")
        assert "\n" not in str(refused.value)


def test_a_pil_image_that_ends_early_is_refused() -> None:
    data = encoded_pictures()["plain.jpg"]
    with pytest.raises(ConfigError, match=r"^the image is a PIL image that cannot be converted to RGB \("):
        as_picture(Image.open(io.BytesIO(data[: len(data) // 2])), "the image")
