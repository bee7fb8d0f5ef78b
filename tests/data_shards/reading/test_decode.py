import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.reading.decode import (
    colour_space,
    decode_jpeg,
    exif_orientation,
    image_extension,
    image_size,
    other_content,
    png_depth,
)
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


def noisy(height: int = 120, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-10, 10, (height, width, 3))
    return np.clip(photo(9, height, width).astype(int) + noise, 0, 255).astype(np.uint8)


def coded(image: np.ndarray, progressive: int = 0, optimised: int = 0, restart: int = 0) -> bytes:
    flags = {
        cv2.IMWRITE_JPEG_PROGRESSIVE: progressive,
        cv2.IMWRITE_JPEG_OPTIMIZE: optimised,
        cv2.IMWRITE_JPEG_RST_INTERVAL: restart,
    }
    return cv2.imencode(".jpg", image, [value for flag in flags.items() for value in flag])[1].tobytes()


DAMAGED = r"the JPEG (is damaged: .|ends early)"
END = b"\xff\xd9"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("optimised", [0, 1])
@pytest.mark.parametrize("restart", [0, 4])
def test_pixels_that_end_early_are_found_although_the_file_has_an_end(
    keep: float, optimised: int, restart: int
) -> None:
    data = coded(noisy(), 0, optimised, restart)
    cut, tables = int(len(data) * keep), data.index(b"\xff\xdb")
    assert decode_jpeg(data).shape == (120, 200, 3)
    for spoilt in (
        data[:cut] + END,
        data[:cut] + bytes(len(data) - cut - 2) + END,
        # A harmless mistake of the header comes first, and decoders warn only once.
        data[:tables] + b"xx" + data[tables:cut] + END,
        data[:cut] + 200 * END,
    ):
        with pytest.raises(ValueError, match=DAMAGED):
            decode_jpeg(spoilt)


def test_a_progressive_and_a_cmyk_jpeg_that_end_early_are_found() -> None:
    stored = io.BytesIO()
    Image.fromarray(noisy()).convert("CMYK").save(stored, "JPEG")
    for data in (coded(noisy(), progressive=1), stored.getvalue(), coded(noisy()[..., 0])):
        assert decode_jpeg(data).shape == (120, 200, 3)
        with pytest.raises(ValueError, match="the JPEG is damaged: premature end of data segment"):
            decode_jpeg(data[: len(data) // 2] + END)


def test_a_block_of_zeros_inside_is_found() -> None:
    for restart in (0, 4):
        data = coded(noisy(), restart=restart)
        with pytest.raises(
            ValueError, match=r"the JPEG is damaged: (zeros in the middle of its data|\d+ extraneous|found)"
        ):
            decode_jpeg(data[:5000] + bytes(1024) + data[6024:])


@pytest.mark.parametrize("padding", [bytes(3), bytes(4096), b"\xa5" * 600])
def test_padding_before_the_end_and_anything_behind_it_are_harmless(padding: bytes) -> None:
    for image in (noisy(), np.full((120, 200, 3), 128, np.uint8)):
        data = coded(image)
        for odd in (data[:-2] + padding + END, data + padding, data + END, data[:2] + b"\xff\xe5\0\x04ab" + data[2:]):
            assert np.abs(decode_jpeg(odd).astype(int) - decode_jpeg(data)).max() <= 3


@pytest.mark.parametrize("optimised", [0, 1])
def test_plain_pictures_whose_code_is_zeros_are_read(optimised: int) -> None:
    for value in (0, 128, 255):
        assert (decode_jpeg(coded(np.full((900, 900, 3), value, np.uint8), 0, optimised)) == value).all()


def test_a_jpeg_of_an_unknown_revision_is_read() -> None:
    data = coded(noisy())
    revision = data.index(b"JFIF\0") + 5
    odd = data[:revision] + b"\x07" + data[revision + 1 :]
    assert np.abs(decode_jpeg(odd).astype(int) - decode_jpeg(data)).max() <= 3
    with pytest.raises(ValueError, match="the JPEG is damaged: premature end"):
        decode_jpeg(odd[: len(odd) // 2] + END)


def chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def turned_png(orientation: int, order: str = ">", behind: bool = False) -> bytes:
    """A PNG of 64 x 48 pixels with an eXIf chunk before or behind its pixels."""
    mark = b"MM" if order == ">" else b"II"
    exif = mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    data = cv2.imencode(".png", photo(6)[..., ::-1])[1].tobytes()
    place = len(data) - 12 if behind else 33
    return data[:place] + chunk(b"eXIf", exif) + data[place:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_turned_by_exif_has_the_size_of_its_pixels(orientation: int, order: str, behind: bool) -> None:
    data = turned_png(orientation, order, behind)
    height, width = decode_jpeg(data).shape[:2]
    assert (height, width) == ((48, 64) if orientation < 5 else (64, 48))
    assert image_size(data) == (width, height)
    assert exif_orientation(data) == orientation


def test_damaged_exif_of_a_png_counts_as_none() -> None:
    data = bytearray(turned_png(6))
    data[33 + 8 + 26 + 2] ^= 1  # the checksum
    assert exif_orientation(bytes(data)) == 1
    assert decode_jpeg(bytes(data)).shape == (48, 64, 3)


def test_bytes_behind_a_png_do_not_belong_to_it() -> None:
    data = cv2.imencode(".png", photo(9))[1].tobytes()
    for tail in (bytes(500), b"IEND", data):
        assert np.array_equal(decode_jpeg(data + tail), decode_jpeg(data))
    for cut in (data[:-1], data[:-12], data[: len(data) // 2] + b"IEND\xaeB`\x82", data[: len(data) // 2] + bytes(800)):
        with pytest.raises(ValueError, match=r"the PNG ends early|neither libjpeg nor OpenCV decodes it"):
            decode_jpeg(cut)


def test_a_png_with_a_hole_is_refused() -> None:
    data = cv2.imencode(".png", noisy())[1].tobytes()
    with pytest.raises(ValueError, match="neither libjpeg nor OpenCV decodes it"):
        decode_jpeg(data[:4000] + bytes(512) + data[4512:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"RIFF\x10\0\0\0WEBPVP8 ", "but a WebP picture: convert it to JPEG or PNG"),
        (b"GIF89a", "but a GIF picture: convert"),
        (b"BM\x36\x10\0\0\0\0\0\0\x36", "but a BMP picture: convert"),
        (b"II*\0\x08\0\0\0", "but a TIFF picture"),
        (b"MM\0*\0\0\0\x08", "but a TIFF picture"),
        (b"\0\0\0\x20ftypavif", "but an AVIF picture"),
        (b"\0\0\0\x18ftypheic", "but a HEIC picture"),
        (b"\0\0\0\x18ftypmp42", "but a video"),
        (b"<!DOCTYPE html>\n<html>", "but an HTML page, such as one to log in: fetch the image itself"),
        (b"\n <HTML><head>", "but an HTML page"),
        (b"<!-- x --><html>", "but an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "but an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "but an XML file, such as a server's"),
        (b'{"error": "not found"}', "but a JSON file, such as a server's error message: fetch"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a pointer of Git LFS, not the image: run git lfs pull"),
        (b"PK\x03\x04\x14\0", "but a ZIP archive: unpack it"),
        (b"\x1f\x8b\x08", "but an archive: unpack it"),
        (b"%PDF-1.7", "but a PDF document"),
        (b"", "but an empty file: copy it again"),
        (bytes(4096), "but a file of zeros, which a disk left: copy it again"),
        (b"\x01\x02no idea", r"\(it begins with 01 02 6e 6f 20 69 64 65\)"),
    ],
)
def test_a_file_of_another_kind_is_named_in_words(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^neither a JPEG nor a PNG,? {words}"):
        image_size(data)
    assert image_extension(data) is None
    assert other_content(data).startswith("neither a JPEG nor a PNG")


def test_depth_and_transparency_of_a_png_are_in_its_header() -> None:
    deep = cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes()
    clear = cv2.imencode(".png", np.zeros((4, 4, 4), np.uint8))[1].tobytes()
    stored = io.BytesIO()
    Image.fromarray(photo(1)).convert("P").save(stored, "PNG", transparency=3)
    found = [png_depth(data) for data in (deep, clear, stored.getvalue(), jpeg(photo(1)), b"")]
    assert found == [(16, False), (8, True), (8, True), (8, False), (8, False)]
