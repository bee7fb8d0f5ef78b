from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.loading.batch import Batch
from data_shards.loading.random_draws import resized
from data_shards.order.plan import World, make_plan
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.shards import Shards
from data_shards.storage.open import open_store
from detectors.sizes import Multiples
from tests.data_shards.loaders import evaluation_loader
from tests.data_shards.samples import document, jpeg, photo, write_coco

INPUT = (64, 96)


def evaluate(report: BuildReport, ranks: int = 1, **options: Any) -> list[list[Batch]]:
    return [list(evaluation_loader(report.location, World(ranks, rank), **options)) for rank in range(ranks)]


@pytest.mark.parametrize(("geometry", "ranks"), [("fixed", 1), ("fixed", 5), ("keep", 2), ("keep", 20)])
def test_each_image_is_evaluated_once_whatever_the_world(built: BuildReport, geometry: str, ranks: int) -> None:
    shares = evaluate(built, ranks, geometry=geometry, input_size=INPUT, batch_size=4)
    ids = [[int(number) for batch in share for number in batch.sample_ids] for share in shares]
    assert sorted(number for share in ids for number in share) == list(range(14))
    assert max(map(len, ids)) - min(map(len, ids)) <= 1
    assert max(len(batch.images) for share in shares for batch in share) <= 4
    assert all(batch.flips is None and batch.epoch == -1 for share in shares for batch in share)


def test_fixed_geometry_is_the_published_letterbox(built: BuildReport) -> None:
    shards = Shards(open_store(built.location), built.manifest)
    (batches,) = evaluate(built, geometry="fixed", input_size=(128, 128), batch_size=5)
    assert [len(batch.images) for batch in batches] == [5, 5, 4]
    shard, row = make_plan(built.manifest, seed=0, global_batch_size=1).locate(batches[0].sample_ids.numpy())
    for number in range(5):
        image = decode_jpeg(shards.read_image(shard[number], row[number]))
        height, width = image.shape[:2]
        zoom = 128 / max(height, width)
        expected = [[zoom, 0, 64 - zoom * width / 2], [0, zoom, 64 - zoom * height / 2]]
        assert_allclose(batches[0].transforms[number], expected, atol=1e-5)
        pixels = cv2.warpAffine(image, np.array(expected), (128, 128), flags=cv2.INTER_LINEAR)
        assert np.array_equal(batches[0].images[number].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("divisor", [32, 128])
def test_kept_resolution_is_pasted_in_the_middle_of_the_next_multiple(tmp_path: Path, divisor: int) -> None:
    # Strictly greater, as published: 480 becomes 512, but 512 becomes 544 (here 64 becomes 96).
    sizes = ((64, 63), (33, 64), (64, 63))
    content = document(3, sizes)
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="val")
    (batches,) = evaluate(report, geometry="keep", sizes=Multiples(divisor), batch_size=8)
    padded = {32: [(64, 96), (96, 64)], 128: [(128, 128)]}[divisor]
    assert sorted(batch.input_size for batch in batches) == padded
    seen = 0
    for batch in batches:
        for row in range(len(batch.images)):
            seen += 1
            image = decode_jpeg((images / f"{int(batch.image_ids[row])}.jpg").read_bytes())
            height, width = image.shape[:2]
            left, upper = batch.input_size[1] // 2 - width // 2, batch.input_size[0] // 2 - height // 2
            expected = np.zeros((*batch.input_size, 3), np.uint8)
            expected[upper : upper + height, left : left + width] = image
            assert np.array_equal(batch.images[row].permute(1, 2, 0), expected)
            assert batch.transforms[row].tolist() == [[1, 0, left], [0, 1, upper]]
    assert seen == 3


def test_all_annotations_are_kept_unless_a_number_is_given(built: BuildReport) -> None:
    (batches,) = evaluate(built, input_size=INPUT, batch_size=14)
    assert batches[0].labels.shape == (14, 3)
    assert int((batches[0].labels >= 0).sum()) == built.manifest.source.boxes
    (batches,) = evaluate(built, input_size=INPUT, batch_size=14, max_objects=1)
    assert batches[0].boxes.shape == (14, 1, 4)


def test_a_limit_takes_the_first_samples_in_any_world(built: BuildReport) -> None:
    for ranks in (1, 3):
        for geometry in ("fixed", "keep"):
            shares = evaluate(built, ranks, geometry=geometry, input_size=INPUT, limit=8)
            assert sorted(int(b.sample_ids) for share in shares for b in share) == list(range(8))
    loader = evaluation_loader(built.location, World(1, 0), limit=99)
    assert loader.num_samples == 14
    loader.close()


@pytest.mark.parametrize(("geometry", "scale"), [("fixed", 0.5), ("fixed", 1.25), ("keep", 0.75), ("keep", 1.5)])
def test_a_scale_resizes_the_image_before_it_is_placed(built: BuildReport, geometry: str, scale: float) -> None:
    shards = Shards(open_store(built.location), built.manifest)
    for whole, batch in zip(
        evaluation_loader(
            built.location, World(1, 0), geometry=geometry, input_size=(128, 128), beside=[(scale, 1333)]
        ),  # type: ignore[arg-type]
        evaluation_loader(
            built.location,
            World(1, 0),
            geometry=geometry,  # type: ignore[arg-type]
            input_size=(128, 128),
            scale=scale,
            beside=[(1.0, 1333)],
        ),
        strict=True,
    ):
        assert whole.image_ids.tolist() == batch.image_ids.tolist()
        assert torch.equal(whole.original_sizes, batch.original_sizes)
        shard, row = make_plan(built.manifest, seed=0, global_batch_size=1).locate(batch.sample_ids.numpy())
        image = decode_jpeg(shards.read_image(shard[0], row[0]))
        height, width = image.shape[:2]
        now_height, now_width = int(height * scale), int(width * scale)
        resized = cv2.resize(image, (now_width, now_height))
        if geometry == "keep":
            assert batch.input_size == ((now_height | 31) + 1, (now_width | 31) + 1)
            zoom, middle = 1.0, (now_width // 2, now_height // 2)
        else:
            # As published: the zoom is that of the image before it was resized.
            zoom, middle = 128 / max(height, width), (now_width / 2, now_height / 2)
        input_height, input_width = batch.input_size
        matrix = np.array(
            [[zoom, 0, input_width / 2 - zoom * middle[0]], [0, zoom, input_height / 2 - zoom * middle[1]]]
        )
        expected = cv2.warpAffine(resized, matrix, (input_width, input_height), flags=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
        to_input = np.array([[zoom * scale, 0, matrix[0, 2]], [0, zoom * scale, matrix[1, 2]]])
        np.testing.assert_allclose(batch.transforms[0], to_input, rtol=1e-6)
        in_image = shards.index(shard[0])
        first, last = in_image.row_splits[row[0] : row[0] + 2]
        boxes = in_image.boxes[first:last] * (zoom * scale) + np.tile(matrix[:, 2], 2)
        np.testing.assert_allclose(batch.boxes[0, : last - first], boxes, rtol=1e-4, atol=1e-3)


def test_shorter_side_geometry_pads_behind(built: BuildReport) -> None:
    options: dict[str, Any] = {
        "geometry": "shorter_side",
        "shorter_side": 80,
        "longer_side_limit": 133,
        "batch_size": 3,
    }
    seen = []
    with evaluation_loader(built.location, World(1, 0), **options) as batches:
        for batch in batches:
            height, width = batch.original_sizes[0].tolist()
            ((to_height, to_width),) = resized(np.array([[height, width]]), 80, 133).tolist()
            assert batch.content_sizes is not None
            assert batch.content_sizes[0].tolist() == [to_height, to_width]
            assert batch.input_size == (-(-to_height // 32) * 32, -(-to_width // 32) * 32)
            assert_allclose(batch.transforms[0], [[to_width / width, 0, 0], [0, to_height / height, 0]], rtol=1e-6)
            assert batch.images[0, :, :to_height, :to_width].float().mean() > 20
            assert not batch.images[0, :, to_height:].any()
            assert not batch.images[0, :, :, to_width:].any()
            seen += batch.sample_ids.tolist()
    assert sorted(seen) == list(range(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "stretch"}, r"geometry is 'stretch'; set it to 'fixed', 'width', 'keep' or 'shorter_side'"),
        ({"shorter_side": 0}, r"shorter_side is 0 and longer_side_limit 1333; set both to 1 pixel or more"),
        ({"shorter_side": 800, "longer_side_limit": 700}, r"the limit no smaller than the side"),
        ({"scale": 0.0}, r"scale is 0; set it to more than 0"),
        ({"sizes": None, "geometry": "keep"}, r"sizes is None; pass the detector's, .* geometry 'keep'"),
        ({"batch_size": 0}, r"batch_size is 0; set it to 1 or more"),
        ({"limit": 0}, r"limit is 0; set it to 1 or more, or leave it out"),
        ({"input_size": (-1, 3)}, r"input_size is \(-1, 3\)"),
    ],
)
def test_impossible_evaluation_settings_are_refused(built: BuildReport, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluation_loader(built.location, World(1, 0), **options)


def test_gray_and_turned_images_come_out_upright_and_in_colour(tmp_path: Path) -> None:
    from tests.data_shards.building.test_build import with_orientation

    content = document(2, sizes=((48, 64),))
    annotations, images = write_coco(tmp_path, content)
    (images / "100.jpg").write_bytes(jpeg(photo(1, 48, 64)[..., 0]))
    (images / "107.jpg").write_bytes(with_orientation(jpeg(photo(2, 64, 48)), 6))
    report = build_shards(annotations, images, str(tmp_path / "out"), split="val")
    (batches,) = evaluate(report, geometry="keep", batch_size=2)
    for row, image_id in enumerate(batches[0].image_ids.tolist()):
        pixels = batches[0].images[row].permute(1, 2, 0).numpy()[8:56, 16:80]
        by_opencv = cv2.imread(str(images / f"{image_id}.jpg"))[..., ::-1]
        assert np.abs(pixels.astype(int) - by_opencv).max() <= 3
