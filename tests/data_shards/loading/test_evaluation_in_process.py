"""Batches made in this process against those of the loader process: the same tensors, bit for bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.loading.batch import Batch
from data_shards.loading.evaluation_in_process import batches_of_views
from data_shards.loading.evaluation_inputs import EvaluationInputs, View
from data_shards.order.plan import World
from data_shards.reading.pictures import PictureSamples
from data_shards.settings import BoxRules
from detectors.sizes import Multiples, OneLessThanMultiples
from tests.data_shards.loaders import evaluation_loader
from tests.data_shards.pictures import write_pictures
from tests.data_shards.samples import photo

GEOMETRIES = ("fixed", "width", "keep", "shorter_side")
LABELS = ("boxes", "labels", "image_ids")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(params=[False, True], ids=["here", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor | None]:
    if not request.param:
        yield None
        return
    with ThreadPoolExecutor(2) as pool:
        yield pool


def assert_same_inputs(here: Batch, there: Batch) -> None:
    for item in fields(Batch):
        one, other = getattr(here, item.name), getattr(there, item.name)
        if item.name not in LABELS:
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, item.name


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("corners", ["indexes", "edges"])
def test_files_and_shards_give_the_same_inputs(
    pictures: tuple[list[Path], str], threads: ThreadPoolExecutor | None, geometry: Any, corners: Any
) -> None:
    files, location = pictures
    rules = BoxRules(corners=corners)
    options: dict[str, Any] = {"geometry": geometry, "input_size": (64, 96), "shorter_side": 40}
    views = [View(0.5, 120), View(1.0, 90), View(1.5, 120)]
    inputs = EvaluationInputs(**options, sizes=Multiples(32), resizing="authors", boxes=rules)
    here = list(batches_of_views(PictureSamples(files), inputs, views, batch_size=3, threads=threads))
    assert sum(len(batch[0].images) for batch in here) == len(files)
    for place, view in enumerate(views):
        with evaluation_loader(
            location,
            World(1, 0),
            **options,
            scale=view.scale,
            longer_side_limit=view.longer_side_limit,
            beside=views,
            batch_size=3,
            boxes=rules,
            resizing="authors",
        ) as loader:
            there = [batch.clone() for batch in loader]
        assert len(there) == len(here)
        for one, other in zip(here, there, strict=True):
            assert_same_inputs(one[place], other)


def test_cornernets_sizes_are_those_of_the_loader(pictures: tuple[list[Path], str]) -> None:
    files, location = pictures
    sizes = OneLessThanMultiples(128)
    inputs = EvaluationInputs(geometry="keep", sizes=sizes)
    here = list(batches_of_views(PictureSamples(files), inputs, [View(1.0, 1333)], batch_size=2))
    with evaluation_loader(location, World(1, 0), geometry="keep", sizes=sizes, batch_size=2) as loader:
        for (one,), other in zip(here, loader, strict=True):
            assert_same_inputs(one, other)


def test_pixels_in_memory_are_shown_as_their_file_is(pictures: tuple[list[Path], str]) -> None:
    files = pictures[0]
    decoded = [PictureSamples([file]).image(0) for file in files]
    inputs = EvaluationInputs(geometry="shorter_side", sizes=Multiples(32), shorter_side=40)
    for some in (decoded, [file.read_bytes() for file in files]):
        here = batches_of_views(PictureSamples(some), inputs, [View(1.0, 90)], batch_size=4)
        again = batches_of_views(PictureSamples(files), inputs, [View(1.0, 90)], batch_size=4)
        for one, other in zip(here, again, strict=True):
            assert_same_inputs(one[0], other[0])


def test_each_batch_holds_the_images_of_one_input_size() -> None:
    sizes = [(64, 64), (32, 64), (64, 64), (32, 64), (64, 64)]
    samples = PictureSamples([photo(seed, *size) for seed, size in enumerate(sizes)])
    inputs = EvaluationInputs(geometry="keep", sizes=Multiples(32))
    batches = list(batches_of_views(samples, inputs, [View(1.0, 1333)], batch_size=2))
    assert [batch[0].sample_ids.tolist() for batch in batches] == [[1, 3], [0, 2], [4]]
    assert [batch[0].input_size for batch in batches] == [(64, 96), (96, 96), (96, 96)]
    assert [batch[0].step for batch in batches] == [0, 1, 2]


def test_a_picture_that_cannot_be_read_is_named(
    tmp_path: Path, threads: ThreadPoolExecutor | None, pictures: tuple[list[Path], str]
) -> None:
    broken = tmp_path / "broken.jpg"
    data = next(file for file in pictures[0] if file.name == "plain.jpg").read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    samples = PictureSamples([photo(1), broken, photo(2)])
    batches = batches_of_views(samples, EvaluationInputs(), [View(1.0, 1333)], batch_size=1, threads=threads)
    assert next(batches)[0].sample_ids.tolist() == [0]
    with pytest.raises(DataError, match=r"broken\.jpg does not decode \(the JPEG ends early\)"):
        next(batches)


def test_the_views_of_a_picture_are_made_from_one_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_shards.reading import pictures as module
    from tests.data_shards.samples import jpeg

    decoded = []
    decode = module.decode_jpeg

    def counted(data: bytes, buffer: Any = None) -> np.ndarray:
        decoded.append(len(data))
        return decode(data, buffer)

    monkeypatch.setattr(module, "decode_jpeg", counted)
    samples = PictureSamples([jpeg(photo(seed)) for seed in range(3)])
    views = [View(scale, 2000) for scale in (0.5, 1.0, 2.0)]
    assert len(list(batches_of_views(samples, EvaluationInputs(), views, batch_size=2))) == 2
    assert len(decoded) == 3


def test_no_pictures_make_no_batches() -> None:
    for geometry in GEOMETRIES:
        inputs = EvaluationInputs(geometry=geometry, sizes=Multiples(32))  # type: ignore[arg-type]
        assert list(batches_of_views(PictureSamples([]), inputs, [View(1.0, 1333)], batch_size=2)) == []


def test_impossible_views_are_refused() -> None:
    samples = PictureSamples([photo(1)])
    with pytest.raises(DataError, match=r"scale is 0; set it to more than 0"):
        next(batches_of_views(samples, EvaluationInputs(), [View(0.0, 1333)], batch_size=1))
    with pytest.raises(DataError, match=r"sizes is None; pass the detector's"):
        EvaluationInputs(geometry="keep")
