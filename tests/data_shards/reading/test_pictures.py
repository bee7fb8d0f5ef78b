"""Pictures as samples: the pixels that shards have, sizes from headers, and refusals in one line."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.pictures import PictureSamples, read_picture
from data_shards.reading.samples import Samples
from data_shards.reading.split import open_split
from tests.data_shards.pictures import encoded_pictures, write_pictures
from tests.data_shards.samples import jpeg, photo


def test_a_file_has_the_pixels_of_its_copy_in_shards(tmp_path: Path) -> None:
    files, location = write_pictures(tmp_path)
    samples, shards = PictureSamples(files), open_split(location).shards()
    try:
        assert len(samples) == len(files) == len(encoded_pictures())
        number = 0
        for shard, described in enumerate(shards.manifest.shards):
            for row in range(described.samples):
                there = decode_jpeg(bytes(shards.read_image(shard, row)))
                assert samples.size(number) == shards.size(shard, row) == there.shape[:2], files[number].name
                assert np.array_equal(samples.image(number), there), files[number].name
                number += 1
    finally:
        shards.close()


@pytest.mark.parametrize("name", encoded_pictures())
def test_sizes_come_from_headers_and_bytes_equal_files(tmp_path: Path, name: str) -> None:
    data = encoded_pictures()[name]
    (tmp_path / name).write_bytes(data)
    samples = PictureSamples([tmp_path / name, data])
    assert samples.size(0) == samples.size(1)
    image = samples.image(0).copy()
    assert samples.size(0) == image.shape[:2]
    assert np.array_equal(image, samples.image(1))
    assert np.array_equal(image, read_picture(str(tmp_path / name)))


def test_pixels_are_taken_as_they_are() -> None:
    image = photo(1)
    samples = PictureSamples([image])
    assert samples.size(0) == (48, 64)
    assert samples.image(0) is image


def test_pictures_have_no_labels() -> None:
    samples = PictureSamples([photo(1), photo(2)])
    assert isinstance(samples, Samples)
    assert samples.classes == ()
    found = samples.labels(1)
    assert (found.image_id, len(found.labels), found.boxes.shape) == (1, 0, (0, 4))
    assert samples.take_notes() == []


def test_a_picture_is_read_again_after_another_one() -> None:
    files = [jpeg(photo(1)), jpeg(photo(2, 32, 40))]
    samples = PictureSamples(files)
    first = samples.image(0).copy()
    second = samples.image(1).copy()
    assert np.array_equal(samples.image(0), first)
    assert np.array_equal(samples.image(1), second)
    samples.close()
    assert np.array_equal(samples.image(0), first)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(jpeg(photo(1))[:30])
    for name, message in (
        ("page.jpg", r"page\.jpg is neither a JPEG nor a PNG, but an HTML page"),
        ("empty.png", r"empty\.png is neither a JPEG nor a PNG, but an empty file: copy it again\."),
        ("cut.jpg", r"cut\.jpg does not decode \("),
        ("absent.jpg", r"absent\.jpg cannot be read \(No such file or directory\)\."),
        ("", r"cannot be read \(Is a directory\)\."),
        ("a\0b", r"cannot be read \(embedded null byte\)\."),
    ):
        for ask in (PictureSamples([tmp_path / name]).size, PictureSamples([str(tmp_path / name)]).image):
            with pytest.raises(DataError, match=message):
                ask(0)
    with pytest.raises(DataError, match=r"^frame 7 is neither a JPEG nor a PNG, but a WebP picture: convert it"):
        read_picture(b"RIFF0000WEBPVP8 ", "frame 7")
    with pytest.raises(DataError, match=r"^picture 1 is neither"):
        PictureSamples([b"", b"GIF89a"]).image(1)


def test_a_size_that_is_not_that_of_the_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.reading.pictures.image_size", lambda data: (64, 64))
    with pytest.raises(DataError, match=r"picture 0 has 64 x 48 pixels, but its header says 64 x 64; save it again\."):
        PictureSamples([jpeg(photo(1))]).image(0)
