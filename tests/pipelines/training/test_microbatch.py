"""The largest microbatch: the search, the GPU by a stand-in that runs out of memory, the CPU by estimate."""

import json
from pathlib import Path

import pytest
import torch

from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import with_flags
from pipelines.training import microbatch
from pipelines.training.microbatch import find_batch, fits_on_gpu, largest_that_fits

_FLAGS = (
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16 "
    "--data.input_size 64 64 --batch.global_size 24 --engine.precision fp32 --detector.weights none --cluster.workers 2"
)


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 7, 8, 9, 37, 63, 64])
def test_the_search_finds_the_largest_size_in_few_tries(largest: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= largest

    assert largest_that_fits(fits, most=64) == largest
    assert len(tried) == len(set(tried)) <= 13


def test_running_out_of_memory_on_a_gpu_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []

    def train_within(recipe: object, manifest: object, device: object, size: int, usable: float) -> None:
        if 100 * size > usable:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(microbatch, "_train_within", train_within)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    device = torch.device("cuda")
    recipe = recipes.get("demo")
    found = largest_that_fits(lambda size: fits_on_gpu(recipe, None, device, size, 1150.0))  # type: ignore[arg-type]
    assert found == 11
    # After every try, also a successful one: the next one needs the memory.
    assert len(emptied) == 8


def test_other_errors_on_a_gpu_are_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_within(*arguments: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(microbatch, "_train_within", train_within)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(RuntimeError, match="device-side assert"):
        fits_on_gpu(recipes.get("demo"), None, torch.device("cuda"), 1, 1.0)  # type: ignore[arg-type]


def test_on_the_cpu_the_arithmetic_adds_up_and_flags_follow(
    small_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*_FLAGS.split(), "--data.train", str(small_shards / "train"), "--batch.global_size", "12"]
    recipe = with_flags(recipes.get("demo"), flags)
    cpu = torch.device("cpu")
    find_batch(recipe, cpu, 0.006, as_json=True)
    small = json.loads(capsys.readouterr().out)
    assert small["usable_bytes"] == pytest.approx(5.4e6)
    assert small["peak_bytes"] <= 5.4e6 < small["peak_bytes"] + small["per_image_bytes"]
    assert 1 <= small["microbatch"] < 6
    assert small["flags"] == f"--batch.microbatch_limit {small['microbatch']}"
    find_batch(recipe, cpu, 1.0, as_json=False)
    text = capsys.readouterr().out
    assert "optimizer state" in text
    assert "--batch.microbatch_limit 0    (a worker's share of the batch, 6 images, fits whole)" in text
    with pytest.raises(ConfigError, match=r"not even one image fits in 1 MB: lower data.input_size"):
        find_batch(recipe, cpu, 0.001, as_json=False)
