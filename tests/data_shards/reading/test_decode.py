import io

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from data_shards.reading.decode import colour_space, decode_jpeg, exif_orientation, image_extension, image_size
from data_shards.reading.geometry import crop_matrix, crop_resize, transform_boxes, warp, whole_pixel_shift
from data_shards.reading.scratch import Scratch
from tests.data_shards.samples import jpeg, photo


def test_a_photograph_decodes_to_rgb() -> None:
    image = photo(3, 60, 90)
    decoded = decode_jpeg(jpeg(image))
    assert decoded.shape == (60, 90, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - image).mean() < 3
    # The same file by another library.
    assert np.abs(decoded.astype(int) - np.asarray(Image.open(io.BytesIO(jpeg(image))))).max() <= 3


def test_gray_becomes_three_equal_channels() -> None:
    gray = photo(4)[..., 0]
    decoded = decode_jpeg(jpeg(gray))
    assert decoded.shape == (48, 64, 3)
    assert (decoded == decoded[..., :1]).all()
    assert np.abs(decoded[..., 0].astype(int) - gray).mean() < 2


def test_cmyk_becomes_its_colours() -> None:
    image = photo(5)
    stored = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(stored, "JPEG", quality=95)
    decoded = decode_jpeg(stored.getvalue())
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - image).mean() < 3


def test_progressive_and_png_decode() -> None:
    image = photo(6)
    progressive = cv2.imencode(
        ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 95]
    )[1].tobytes()
    assert np.abs(decode_jpeg(progressive).astype(int) - image).mean() < 3
    assert np.array_equal(decode_jpeg(cv2.imencode(".png", image[..., ::-1])[1].tobytes()), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_as_opencv_and_pillow_turn_it(orientation: int) -> None:
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker, so that the orientation is not alone"
    Image.fromarray(photo(7, 30, 50)).save(stored, "JPEG", quality=95, exif=exif.tobytes())
    data = stored.getvalue()
    assert exif_orientation(data) == orientation
    decoded = decode_jpeg(data)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert decoded.shape == by_opencv.shape == ((30, 50, 3) if orientation < 5 else (50, 30, 3))
    assert np.abs(decoded.astype(int) - by_opencv).max() <= 3
    assert decoded.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("damage", [b"Exif\0\0XX", b"Exif\0\0MM\0*\0\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_counts_as_none(damage: bytes) -> None:
    data = jpeg(photo(8))
    segment = b"\xff\xe1" + (len(damage) + 2).to_bytes(2, "big") + damage
    assert exif_orientation(data[:2] + segment + data[2:]) == 1
    assert decode_jpeg(data[:2] + segment + data[2:]).shape == (48, 64, 3)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.99])
def test_a_file_that_ends_early_is_never_taken(keep: float) -> None:
    data = jpeg(photo(9, 200, 300))
    with pytest.raises(ValueError, match="the JPEG ends early"):
        decode_jpeg(data[: int(len(data) * keep)])
    png = cv2.imencode(".png", photo(9))[1].tobytes()
    with pytest.raises(ValueError, match="the PNG ends early"):
        decode_jpeg(png[: int(len(png) * keep)])


def test_a_header_that_ends_early_is_told_wherever_it_is_cut() -> None:
    gray = cv2.imencode(".png", photo(9)[..., 0])[1].tobytes()
    for data, kind in ((jpeg(photo(9)), "RGB"), (cv2.imencode(".png", photo(9))[1].tobytes(), "RGB"), (gray, "Gray")):
        found: list[tuple[tuple[int, int], str] | None] = []
        for end in range(len(data)):
            try:
                found.append((image_size(data[:end]), colour_space(data[:end])))
            except ValueError:
                found.append(None)
        whole = found.index(((64, 48), kind))
        assert set(found[:whole]) == {None}
        # Once the header is whole, what follows does not matter.
        assert set(found[whole:]) == {((64, 48), kind)}


def test_what_libjpeg_only_warns_about_is_left_to_opencv() -> None:
    data = jpeg(photo(10))
    # Stray bytes before a marker: libjpeg warns, and the picture is whole.
    middle = data.index(b"\xff\xdb", 4)
    odd = data[:middle] + b"\0\0\0" + data[middle:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(odd)
    assert np.abs(decode_jpeg(odd).astype(int) - decode_jpeg(data)).max() <= 3


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\xff\xd8\xff\xe0 nonsense \xff\xd9"])
def test_what_no_decoder_reads_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="neither libjpeg nor OpenCV decodes it"):
        decode_jpeg(data)


def test_kinds_are_told_by_their_bytes() -> None:
    assert image_extension(jpeg(photo(1))) == "jpg"
    assert image_extension(cv2.imencode(".png", photo(1))[1].tobytes()) == "png"
    assert image_extension(b"GIF89a") is None


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
        assert whole_pixel_shift(matrix[axis, axis], matrix[axis, 2]) == pytest.approx(matrix[axis, 2], abs=1e-6)
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


def test_exif_is_looked_for_before_the_pixels_only() -> None:
    data = jpeg(photo(8))
    # A comment of the right letters, behind the end.
    assert exif_orientation(data + b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0") == 1
