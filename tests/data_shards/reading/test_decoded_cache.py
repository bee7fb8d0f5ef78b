"""The decode-once tier: the same pixels, within its budget, whatever happens to its files."""

import io
import multiprocessing
import os
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.order.plan import World, make_plan
from data_shards.reading.decoded_cache import DecodedImages, checksum
from data_shards.reading.samples import ShardSamples
from data_shards.reading.shards import Shards
from data_shards.storage.open import open_store
from tests.data_shards.loaders import training_loader
from tests.data_shards.samples import document, jpeg, photo, write_coco

INPUT = (64, 96)
PLENTY = 10**9


def batches(
    report: BuildReport, cache: Path | None, start: int = 0, stop: int = 6, budget: int = PLENTY, location: str = ""
) -> list[tuple[torch.Tensor, ...]]:
    with training_loader(
        location or report.location,
        make_plan(report.manifest, seed=4, global_batch_size=7),
        World(1, 0),
        input_size=INPUT,
        start_step=start,
        stop_step=stop,
        cache_folder=cache,
        decoded_cache_bytes=budget if cache is not None else 0,
    ) as loader:
        return [(batch.images.clone(), batch.boxes.clone(), batch.original_sizes.clone()) for batch in loader]


def assert_same(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pixel_files(cache: Path) -> list[Path]:
    return sorted((cache / "decoded").glob("*.pixels"))


def test_both_tiers_give_the_same_and_the_second_epoch_reads_no_jpeg(
    built: BuildReport, copied: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    expected = batches(built, None)
    # 14 images are 2 steps an epoch.
    assert_same(batches(built, cache, stop=2), expected[:2])
    assert len(pixel_files(cache)) == 3
    for shard in built.manifest.shards:
        (copied / shard.name).unlink()
    assert_same(batches(built, cache, start=2, location=str(copied)), expected[2:])
    with pytest.raises(DataError, match=r"train-00000\d\.tar cannot be opened"):
        batches(built, None, location=str(copied))


@pytest.mark.parametrize("place", [0, 1234, -1])
def test_damaged_pixels_are_decoded_again_and_mended(built: BuildReport, tmp_path: Path, place: int) -> None:
    expected = batches(built, None)
    batches(built, tmp_path, stop=2)
    whole = [path.read_bytes() for path in pixel_files(tmp_path)]
    for path, content in zip(pixel_files(tmp_path), whole, strict=True):
        damaged = bytearray(content)
        # The pixels begin behind the page with the checksums.
        damaged[place if place < 0 else 4096 + place] ^= 1
        path.write_bytes(damaged)
    assert_same(batches(built, tmp_path, start=2), expected[2:])
    assert [path.read_bytes() for path in pixel_files(tmp_path)] == whole


def test_files_keep_to_the_budget(built: BuildReport, tmp_path: Path) -> None:
    expected = batches(built, None)
    batches(built, tmp_path / "all", stop=2)
    sizes = sorted(path.stat().st_size for path in pixel_files(tmp_path / "all"))
    for budget in (sizes[0] - 1, sizes[0] + sizes[1] + 10, sum(sizes)):
        cache = tmp_path / str(budget)
        assert_same(batches(built, cache, budget=budget), expected)
        assert sum(path.stat().st_size for path in pixel_files(cache)) <= budget
    assert len(pixel_files(tmp_path / str(sizes[0] - 1))) == 0
    assert len(pixel_files(tmp_path / str(sum(sizes)))) == 3


def test_files_of_other_data_make_room_unless_somebody_has_them_open(built: BuildReport, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "other", document(14, sizes=((50, 60),)))
    other = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    batches(other, tmp_path, stop=2)
    (theirs,) = pixel_files(tmp_path)
    budget = theirs.stat().st_size + 10_000
    shards = Shards(open_store(other.location), other.manifest)
    reader = DecodedImages(shards, tmp_path / "decoded", PLENTY)
    height, width = shards.size(0, 0)
    pixels = np.empty(height * width * 3, np.uint8)
    assert reader.read(0, 0, pixels)
    expected = batches(built, None)
    assert_same(batches(built, tmp_path, budget=budget), expected)
    assert pixel_files(tmp_path) == [theirs]
    reader.close()
    assert_same(batches(built, tmp_path, budget=budget), expected)
    assert theirs not in pixel_files(tmp_path)
    assert pixel_files(tmp_path)


def test_a_killed_process_leaves_files_that_the_next_one_uses(built: BuildReport, tmp_path: Path) -> None:
    expected = batches(built, None)
    loader = training_loader(
        built.location,
        make_plan(built.manifest, seed=4, global_batch_size=7),
        World(1, 0),
        input_size=INPUT,
        cache_folder=tmp_path,
        decoded_cache_bytes=PLENTY,
    )
    next(loader)
    os.kill(loader.process_id, signal.SIGKILL)
    loader.close()
    # What a kill in the middle of making a file leaves.
    (tmp_path / "decoded" / "half.part").write_bytes(b"half")
    for path in pixel_files(tmp_path):
        path.unlink()
    assert_same(batches(built, tmp_path), expected)
    assert {path.suffix for path in (tmp_path / "decoded").iterdir() if path.name != ".lock"} == {".pixels"}


def test_two_ranks_share_the_files(built: BuildReport, tmp_path: Path) -> None:
    plan = make_plan(built.manifest, seed=4, global_batch_size=14)
    with (
        training_loader(
            built.location, plan, World(2, 0), input_size=INPUT, cache_folder=tmp_path, decoded_cache_bytes=PLENTY
        ) as one,
        training_loader(
            built.location, plan, World(2, 1), input_size=INPUT, cache_folder=tmp_path, decoded_cache_bytes=PLENTY
        ) as two,
        training_loader(built.location, plan, World(1, 0), input_size=INPUT) as plain,
    ):
        for _ in range(6):
            assert torch.equal(torch.cat([next(one).images, next(two).images]), next(plain).images)
    assert len(pixel_files(tmp_path)) == 3


def test_gray_cmyk_turned_and_png_images_come_out_alike(tmp_path: Path) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(1, 64, 48)).save(turned, "JPEG", quality=95, exif=exif.tobytes())
    cmyk = io.BytesIO()
    Image.fromarray(photo(2, 64, 48)).convert("CMYK").save(cmyk, "JPEG", quality=95)
    files = [
        jpeg(photo(0)[..., 0]),
        turned.getvalue(),
        cmyk.getvalue(),
        cv2.imencode(".png", photo(3, 40, 40)[..., ::-1])[1].tobytes(),
    ]
    content = document(4, sizes=((48, 64), (48, 64), (64, 48), (40, 40)))
    annotations, images = write_coco(tmp_path, content)
    for image, data in zip(content["images"], files, strict=True):
        (images / image["file_name"]).write_bytes(data)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    shards = Shards(open_store(report.location), report.manifest)
    plain = ShardSamples(shards)
    decoded = ShardSamples(shards, decoded=DecodedImages(shards, tmp_path / "decoded", PLENTY))
    for row in range(4):
        expected = plain.image(row)
        assert expected is not None
        expected = expected.copy()
        for _ in range(2):
            found = decoded.image(row)
            assert found is not None
            assert np.array_equal(found, expected)
        pixels = np.empty(expected.size, np.uint8)
        assert DecodedImages(shards, tmp_path / "decoded", PLENTY).read(0, row, pixels)
        assert np.array_equal(pixels, expected.reshape(-1))


def test_a_checksum_notices_bits_words_and_pages() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 3 * 4096 + 11, dtype=np.uint8)
    harmed = []
    for place in (0, 7, 4095, 4096, 9000, len(pixels) - 1):
        changed = pixels.copy()
        changed[place] ^= 64
        harmed.append(changed)
    swapped = pixels.copy()
    swapped[:4096], swapped[4096:8192] = pixels[4096:8192], pixels[:4096]
    missing = pixels.copy()
    missing[4096:8192] = 0
    for other in (*harmed, swapped, missing):
        assert checksum(other) != checksum(pixels)
    # What stands in a file where nothing was written is nobody's checksum.
    assert checksum(np.zeros(100, np.uint8)) != 0


def test_a_folder_that_cannot_be_written_is_one_line(built: BuildReport, tmp_path: Path) -> None:
    (tmp_path / "decoded").write_text("a file")
    with pytest.raises(DataError, match=r"cannot keep decoded images in .*decoded: .*set data\.decoded_cache_gb to 0"):
        batches(built, tmp_path)


def test_many_shards_take_more_files_than_a_shell_allows(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(80))
    report = build_shards(annotations, images, str(tmp_path), split="train", shard_bytes=1)
    assert len(report.manifest.shards) == 80
    # A process of its own, which has no other files open and whose loader process inherits the limit: 1,024 is what a
    # shell gives, and a large data set has more shards.
    limited = _batches_with_few_files(report, tmp_path / "cache")
    for batch, arrays in zip(batches(report, None, stop=11), limited, strict=True):
        for tensor, array in zip(batch, arrays, strict=True):
            assert np.array_equal(tensor.numpy(), array)


def _batches_with_few_files(report: BuildReport, cache: Path) -> list[list[np.ndarray]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_limit_files_and_read, report, cache).result()


def _limit_files_and_read(report: BuildReport, cache: Path) -> list[list[np.ndarray]]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    return [[tensor.numpy() for tensor in batch] for batch in batches(report, cache, stop=11)]
