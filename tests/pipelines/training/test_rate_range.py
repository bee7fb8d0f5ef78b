"""The range test: rising rates, a smoothed loss, the steepest descent, and nothing left in the run's folder."""

import json
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import with_flags
from pipelines.training.rate_range import RangeStep, find_rate, suggest

_FLAGS = (
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16 "
    "--data.input_size 64 64 --batch.global_size 4 --engine.precision fp32 --batch.microbatch_limit 2"
)


def curve(losses: list[float]) -> list[RangeStep]:
    """Steps whose rate grows tenfold every ten steps, from 1e-6."""
    return [RangeStep(rate=10 ** (number / 10 - 6), loss=one, smoothed=one) for number, one in enumerate(losses)]


def smoothed(losses: list[float]) -> list[RangeStep]:
    """The same with the average that the test keeps."""
    average, steps = 0.0, []
    for number, one in enumerate(curve(losses)):
        average = 0.9 * average + 0.1 * one.loss
        steps.append(replace(one, smoothed=average / (1 - 0.9 ** (number + 1))))
    return steps


def test_the_suggestion_is_where_the_loss_falls_most_steeply() -> None:
    # A logistic fall around step 40 (1e-2), then divergence from step 50 on.
    losses = [3 - 2 / (1 + math.exp(-(number - 40) / 3)) + max(0, number - 50) ** 2 / 4 for number in range(60)]
    suggestion = suggest(curve(losses))
    assert suggestion is not None
    assert 10**-2.2 <= suggestion <= 10**-1.8


def test_a_loss_that_only_rises_has_no_suggestion() -> None:
    assert suggest(curve([1 + number / 10 for number in range(50)])) is None


def test_losses_that_only_vary_have_no_suggestion_and_a_fall_among_them_has() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        noise = [chance.gauss(0, 0.2) for _ in range(60)]
        assert suggest(smoothed([3 + one for one in noise])) is None
        falling = [3 - 2 / (1 + math.exp(-(number - 40) / 3)) + one for number, one in enumerate(noise)]
        suggestion = suggest(smoothed(falling))
        assert suggestion is not None
        assert 10**-3 <= suggestion <= 10**-1


def test_a_steep_fall_beyond_the_least_loss_does_not_count() -> None:
    falling = [3 - number / 40 for number in range(40)]
    rebound = [9.0, 6.5, 4.0, 2.5, 2.2, 2.1, 2.1, 2.1, 2.1, 2.1]
    suggestion = suggest(curve(falling + rebound))
    assert suggestion is not None
    assert suggestion < 10**-2


def test_real_steps_are_measured_and_nothing_of_the_run_is_left(
    tmp_path: Path, small_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*_FLAGS.split(), "--data.train", str(small_shards / "train"), "--run.folder", str(tmp_path / "runs")]
    recipe = with_flags(recipes.get("demo"), [*flags, "--detector.weights", "none", "--run.name", "mine"])
    find_rate(recipe, torch.device("cpu"), (1e-5, 1e-2), 12, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    rates = [one["rate"] for one in printed["steps"]]
    assert len(rates) == 12
    assert rates[0] == pytest.approx(1e-5)
    assert rates[-1] == pytest.approx(1e-2)
    assert [later / earlier for earlier, later in pairwise(rates)] == pytest.approx([rates[1] / rates[0]] * 11)
    first, second = printed["steps"][:2]
    assert first["smoothed"] == pytest.approx(first["loss"])
    assert second["smoothed"] == pytest.approx((0.9 * first["loss"] + second["loss"]) / 1.9)
    assert Path(printed["plot"]).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs" / "mine").exists()
    assert not list(tmp_path.rglob("step-*"))


@pytest.mark.parametrize(
    ("rates", "steps", "message"),
    [
        ((1e-2, 1e-3), 50, "--from is 0.01 and --to 0.001; the rates must be above 0 and rise."),
        ((math.nan, 1.0), 50, "the rates must be above 0 and rise."),
        ((1e-3, 1.0), 9, "--steps is 9; at least 10 are needed to see a slope."),
    ],
)
def test_a_range_that_shows_nothing_is_refused(rates: tuple[float, float], steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_rate(recipes.get("demo"), torch.device("cpu"), rates, steps, as_json=False)
