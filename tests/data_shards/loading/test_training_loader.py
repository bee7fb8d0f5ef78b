import os
import re
import threading
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.loading.batch import Batch
from data_shards.loading.random_draws import draw
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World, make_plan
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.shards import Shards
from data_shards.reading.split import open_split
from data_shards.settings import AugmentationSettings
from data_shards.storage.open import open_store
from tests.data_shards.loaders import evaluation_loader, training_loader
from tests.data_shards.samples import CATEGORIES, document, spoil, write_coco

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


def test_a_grouped_loader_pads_portraits_with_portraits_and_follows_its_plan(tmp_path: Path) -> None:
    contents = document(count=24)
    for number, image in enumerate(contents["images"]):
        image |= {"width": 32, "height": 64} if number % 3 == 0 else {"width": 64, "height": 32}
    annotations, images = write_coco(tmp_path, contents)
    report = build_shards(annotations, images, str(tmp_path), split="train")
    shards = open_split(report.location).shards()
    plan = make_plan(report.manifest, seed=4, global_batch_size=4, portraits=shards.portraits)
    settings = AugmentationSettings(geometry="shorter_side", shorter_sides=(32,), longer_side_limit=64)
    options: dict[str, Any] = {"plan": plan, "augmentation": settings, "microbatches": 2}
    inputs: list[tuple[int, int]] = []
    for step in range(6):
        # Every step by a loader of its own, in another world: what a resumed run does.
        ranks = (1, 2)[step % 2]
        samples = []
        for rank in range(ranks):
            with train(report, World(ranks, rank), step + 1, start_step=step, **options) as loader:
                batches = [batch.clone() for batch in loader]
            samples += [number for batch in batches for number in batch.sample_ids.tolist()]
            inputs += [batch.input_size for batch in batches]
        assert samples == plan.batch(0, step).tolist()
    # One shard in one window: 8 portraits fill two of the six steps, and no input holds images of both kinds.
    assert Counter(inputs) == {(64, 32): 6, (32, 64): 12}


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
