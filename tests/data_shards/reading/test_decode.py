import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.reading.decode import colour_space, decode_jpeg, exif_orientation, image_extension, image_size
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


def test_exif_is_looked_for_before_the_pixels_only() -> None:
    data = jpeg(photo(8))
    # A comment of the right letters, behind the end.
    assert exif_orientation(data + b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0") == 1
