import os
import re
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pycocotools.coco import COCO

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.loading.batch import Batch
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.loading.random_draws import draw, resized
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World, make_plan
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.shards import Shards
from data_shards.reading.split import open_split
from data_shards.settings import AugmentationSettings
from data_shards.storage.open import open_store
from tests.data_shards.loaders import evaluation_loader, training_loader
from tests.data_shards.samples import CATEGORIES, document, jpeg, photo, spoil, write_coco

INPUT = (64, 96)


def plan_of(report: BuildReport, global_batch_size: int = 6, seed: int = 4) -> Plan:
    return make_plan(report.manifest, seed=seed, global_batch_size=global_batch_size)


def train(report: BuildReport, world: World, stop_step: int | None = 5, **options: Any) -> TrainingLoader:
    options = {"input_size": INPUT, "max_objects": 4} | options
    plan = options.pop("plan", None) or plan_of(report)
    return training_loader(report.location, plan, world, stop_step=stop_step, **options)


def same(one: Batch, other: Batch) -> bool:
    values = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in values)


def straightforward(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling in double precision, one axis after the other; black where no pixel of the image is."""
    pixels = image.astype(np.float64)
    for axis, side in enumerate(size):
        zoom, shift = matrix[1 - axis, 1 - axis], matrix[1 - axis, 2]
        length = pixels.shape[axis]
        places = (np.arange(side) - shift) / zoom
        seen = (places > -0.5) & (places <= length - 0.5)
        places = places.clip(0, length - 1)
        before = np.floor(places).astype(int)
        fraction = (places - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        after = np.minimum(before + 1, length - 1)
        pixels = pixels.take(before, axis) * (1 - fraction) + pixels.take(after, axis) * fraction
        pixels = pixels * seen.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return pixels


def process_is_there(loader: TrainingLoader) -> bool:
    return Path(f"/proc/{loader.process_id}").exists()


def test_a_batch_keeps_the_contract(built: BuildReport) -> None:
    with train(built, World(2, 1)) as loader:
        batches = list(loader)
    assert len(batches) == 5
    # 14 images are 2 steps of 6 an epoch, so the fifth step is the first of the third epoch.
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4)]
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (3, 3, *INPUT))
        assert (batch.boxes.dtype, batch.boxes.shape) == (torch.float32, (3, 4, 4))
        assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (3, 4))
        assert (batch.image_ids.dtype, batch.image_ids.shape) == (torch.int64, (3,))
        assert (batch.transforms.dtype, batch.transforms.shape) == (torch.float32, (3, 2, 3))
        assert (batch.original_sizes.dtype, batch.original_sizes.shape) == (torch.int64, (3, 2))
        assert (batch.sample_ids.dtype, batch.sample_ids.shape) == (torch.int64, (3,))
        assert batch.input_size == INPUT
        assert batch.flips is not None
        assert batch.flips.dtype == torch.bool


def test_rows_hold_what_the_plan_and_the_draws_say(built: BuildReport) -> None:
    plan = plan_of(built)
    shards = Shards(open_store(built.location), built.manifest)
    with train(built, World(1, 0)) as loader:
        for batch in loader:
            ids = plan.batch(batch.epoch, batch.step % plan.steps_per_epoch)
            assert batch.sample_ids.tolist() == ids.tolist()
            draws = draw(AugmentationSettings(), plan.seed, batch.epoch, ids, batch.original_sizes.numpy())
            assert np.array_equal(batch.flips, draws.flips)
            assert np.array_equal(batch.colour_factors, draws.colour_factors)
            assert np.array_equal(batch.colour_order, draws.colour_order)
            assert np.array_equal(batch.lighting, draws.lighting)
            for row, (shard, place) in enumerate(zip(*plan.locate(ids), strict=True)):
                index = shards.index(shard)
                image = decode_jpeg(shards.read_image(shard, place))
                matrix = draws.matrix(row, INPUT)
                assert batch.image_ids[row] == index.image_ids[place]
                assert batch.original_sizes[row].tolist() == list(image.shape[:2])
                assert_allclose(batch.transforms[row], matrix, rtol=1e-6)
                expected = straightforward(image, matrix, INPUT)
                assert np.abs(batch.images[row].permute(1, 2, 0).numpy() - expected).max() <= 1
                boxes = index.boxes[index.row_splits[place] : index.row_splits[place + 1]]
                count = len(boxes)
                corners = np.concatenate([boxes.reshape(-1, 2), np.ones((2 * count, 1))], axis=1) @ matrix.T
                assert_allclose(batch.boxes[row, :count], corners.reshape(-1, 4), atol=1e-4)
                assert (batch.boxes[row, count:] == 0).all()
                assert (batch.labels[row, :count] >= 0).all()
                assert (batch.labels[row, count:] == -1).all()


def test_crowds_are_ordinary_boxes_and_only_the_first_annotations_count(tmp_path: Path) -> None:
    content = document(4)  # the last image has three boxes, the third of which is a crowd
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    order = sorted(item["id"] for item in CATEGORIES)
    expected = [order.index(item["category_id"]) for item in content["annotations"][-3:]]
    for max_objects, wanted in [(5, [*expected, -1, -1]), (3, expected), (2, expected[:2])]:
        with train(report, World(1, 0), 1, plan=plan_of(report, 4), max_objects=max_objects) as loader:
            batch = next(loader)
        (row,) = (batch.image_ids == 121).nonzero()
        assert batch.labels[int(row)].tolist() == wanted


def test_the_samples_and_pixels_do_not_depend_on_the_world_or_the_threads(built: BuildReport) -> None:
    def gathered(ranks: int, **options: Any) -> list[list[Batch]]:
        loaders = [list(train(built, World(ranks, rank), 4, **options)) for rank in range(ranks)]
        return [[batch for rank in loaders for batch in rank if batch.step == step] for step in range(4)]

    alone = gathered(1, threads=1, prefetch=1)
    for other in (gathered(2, threads=3), gathered(3, prefetch=4), gathered(1, threads=4, microbatches=3)):
        for one, many in zip(alone, other, strict=True):
            for name in ("images", "boxes", "labels", "image_ids", "transforms", "flips", "lighting", "sample_ids"):
                joined = torch.cat([getattr(batch, name) for batch in many])
                assert torch.equal(getattr(one[0], name), joined), name


def test_starting_at_any_step_goes_on_as_if_never_stopped(built: BuildReport) -> None:
    whole = list(train(built, World(2, 1), 7))
    for start in range(8):
        rest = list(train(built, World(2, 1), 7, start_step=start))
        assert len(rest) == 7 - start
        assert all(same(one, other) for one, other in zip(whole[start:], rest, strict=True))


def test_without_an_end_it_goes_on_over_epochs(built: BuildReport) -> None:
    with train(built, World(1, 0), None) as loader:
        epochs = [next(loader).epoch for _ in range(9)]
    assert epochs == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_closing_leaves_no_process_behind(built: BuildReport) -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    loader = train(built, World(1, 0), None, threads=4, prefetch=3)
    next(loader)
    assert process_is_there(loader)
    assert loader.wait_seconds > 0
    loader.close()
    loader.close()
    assert not process_is_there(loader)
    assert list(loader) == []
    finished = train(built, World(1, 0), 2)
    assert len(list(finished)) == 2
    assert not process_is_there(finished)
    forgotten = train(built, World(1, 0), None)
    identifier = forgotten.process_id
    del forgotten
    assert not Path(f"/proc/{identifier}").exists()
    del loader, finished
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_an_error_reaches_the_consumer_at_its_batch_and_ends_the_process(built: BuildReport, copied: Path) -> None:
    path = copied / built.manifest.shards[2].name
    path.write_bytes(path.read_bytes()[:-512])
    plan = plan_of(built)
    shards = [plan.locate(plan.batch(*divmod(step, plan.steps_per_epoch)))[0] for step in range(20)]
    first_bad = next(step for step in range(20) if 2 in shards[step])
    with training_loader(str(copied), plan, World(1, 0), input_size=INPUT, stop_step=20) as loader:
        for step in range(first_bad):
            assert next(loader).step == step
        with pytest.raises(DataError, match=r"train-000002\.tar has .* bytes, but the manifest says"):
            next(loader)
        assert not process_is_there(loader)
        assert list(loader) == []


@pytest.fixture
def undecodable(built: BuildReport, copied: Path) -> tuple[str, Manifest, int]:
    """Shards whose bytes are what manifest and index say, but one image of which is none; gives its sample id."""
    manifest, _ = spoil(copied, 1, 2)
    return str(copied), manifest, built.manifest.shards[0].samples + 2


def test_an_image_that_decodes_no_more_is_named(undecodable: tuple[str, Manifest, int]) -> None:
    location, manifest, sample = undecodable
    plan = make_plan(manifest, seed=4, global_batch_size=1)
    step = next(step for step in range(14) if plan.batch(0, step)[0] == sample)
    with training_loader(location, plan, World(1, 0), input_size=INPUT, start_step=max(0, step - 2)) as loader:
        for _ in range(min(2, step)):
            next(loader)
        with pytest.raises(
            DataError,
            match=r"shard train-000001\.tar, image \d+ does not decode \(neither libjpeg nor OpenCV decodes it\)\. "
            r"Build the shards again without it, or set data\.undecodable to gray",
        ):
            next(loader)


def test_or_gray_stands_in_its_place_and_is_said_once(
    undecodable: tuple[str, Manifest, int], built: BuildReport, caplog: pytest.LogCaptureFixture
) -> None:
    location, manifest, sample = undecodable
    plan = make_plan(manifest, seed=4, global_batch_size=14)
    options = {"input_size": INPUT, "max_objects": 4, "stop_step": 3}
    with training_loader(location, plan, World(1, 0), undecodable="gray", **options) as loader:
        replaced = list(loader)
    whole = list(train(built, World(1, 0), 3, plan=plan_of(built, 14)))
    for one, other in zip(replaced, whole, strict=True):
        rows = one.sample_ids == sample
        assert rows.sum() == 1
        assert (one.images[rows] == 128).all()
        assert (one.labels[rows] == -1).all()
        assert torch.equal(one.transforms, other.transforms)
        assert torch.equal(one.images[~rows], other.images[~rows])
        assert torch.equal(one.labels[~rows], other.labels[~rows])
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(
        r"shard train-000001\.tar, .* does not decode \(.*\): a gray image without objects replaces it", line
    )
    with evaluation_loader(location, World(1, 0), input_size=INPUT, batch_size=14, undecodable="gray") as evaluation:
        batch = next(evaluation)
    assert (batch.images[batch.sample_ids == sample] == 128).all()


def test_a_plan_for_other_shards_is_refused(built: BuildReport, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(14, sizes=((40, 50),)))
    other = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    with pytest.raises(
        DataError,
        match=rf"plan was made for manifest {built.manifest.digest[:6]}, but .* has {other.manifest.digest[:6]}: the",
    ):
        train(other, World(1, 0), plan=plan_of(built))


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        (World(4, 0), {}, r"a global batch of 6 cannot be divided equally among 4 ranks\. Set it to 4 or 8"),
        (World(2, 0), {"microbatches": 2}, r"among 4 microbatches \(2 ranks × 2\)\. Set it to 4 or 8"),
        (World(1, 0), {"microbatches": 0}, r"microbatches is 0; set it to 1 or more"),
        (World(1, 0), {"threads": 0}, r"threads is 0; set it to 1 or more"),
        (World(1, 0), {"prefetch": 0}, r"prefetch is 0; set it to 1 or more"),
        (World(1, 0), {"prefetch": 999}, r"prefetch is 999; set it to 200 or less"),
        (World(1, 0), {"max_objects": 0}, r"max_objects is 0; set it to 1 or more"),
        (World(1, 0), {"start_step": -1}, r"start_step is -1; steps are counted from 0"),
        (World(1, 0), {"input_size": (0, 64)}, r"input_size is \(0, 64\); give height and width"),
    ],
)
def test_impossible_settings_are_refused(
    built: BuildReport, world: World, options: dict[str, Any], message: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match=message):
        train(built, world, **options)
    assert len(os.listdir("/proc/self/fd")) == before


def test_shards_in_s3_give_the_same_batches(built: BuildReport, s3: str, tmp_path: Path) -> None:
    from data_shards.storage.open import open_store

    store = open_store(f"{s3}/set/train")
    for path in Path(built.location).iterdir():
        store.upload(path, path.name)
    here = list(train(built, World(2, 0), 3))
    with training_loader(
        store.location,
        plan_of(built),
        World(2, 0),
        input_size=INPUT,
        max_objects=4,
        stop_step=3,
        cache_folder=tmp_path / "cache",
    ) as loader:
        there = list(loader)
    assert all(same(one, other) for one, other in zip(here, there, strict=True))


def test_a_batch_moves_to_a_device_whole(built: BuildReport) -> None:
    with train(built, World(1, 0), 1) as loader:
        batch = next(loader)
    moved = batch.to("meta")
    assert moved.step == batch.step
    assert all(
        getattr(moved, item.name).device.type == "meta"
        for item in fields(Batch)
        if isinstance(getattr(batch, item.name), torch.Tensor)
    )


# --- evaluation


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
    (batches,) = evaluate(report, geometry="keep", size_divisor=divisor, batch_size=8)
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
        ({"size_divisor": 48}, r"size_divisor is 48; set it to a power of two"),
        ({"batch_size": 0}, r"batch_size is 0; set it to 1 or more"),
        ({"limit": 0}, r"limit is 0; set it to 1 or more, or leave it out"),
        ({"input_size": (-1, 3)}, r"input_size is \(-1, 3\)"),
    ],
)
def test_impossible_evaluation_settings_are_refused(built: BuildReport, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluation_loader(built.location, World(1, 0), **options)


def test_the_ground_truth_is_that_of_the_file(tmp_path: Path) -> None:
    content = document(9)
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="val", shard_bytes=12_000)
    truth = coco_ground_truth(open_split(report.location))
    by_id = lambda item: item["id"]  # noqa: E731
    assert sorted(truth["images"], key=by_id) == sorted(content["images"], key=by_id)
    assert sorted(truth["annotations"], key=by_id) == sorted(content["annotations"], key=by_id)
    assert truth["categories"] == sorted(content["categories"], key=by_id)
    # Images come in the order of the samples.
    with evaluation_loader(report.location, World(1, 0), batch_size=9) as loader:
        assert [image["id"] for image in truth["images"]] == next(loader).image_ids.tolist()


def test_missing_fields_of_the_ground_truth_are_filled_for_pycocotools(tmp_path: Path) -> None:
    content = document(2)
    for name in ("area", "iscrowd"):
        del content["annotations"][0][name]
    annotations, images = write_coco(tmp_path, content)
    truth = coco_ground_truth(
        open_split(build_shards(annotations, images, str(tmp_path / "out"), split="val").location)
    )
    # The box is 13 wide and 9.5 high.
    assert (truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]) == (123.5, 0)
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    assert len(coco.getAnnIds(imgIds=[107])) == 1


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
