"""The ablations of Objects as Points (table 3), all on DLA-34, with one change each.

Published on COCO val2017, AP: test resolution original 36.3, 512 36.2, 384 33.2; λ_size 0.2 33.5, 0.1 36.3, 0.02 35.4;
L1 36.3, smooth L1 33.9; 140 epochs 36.3, 230 epochs 37.4.
"""

from dataclasses import replace
from typing import Any

from pipelines.recipes.centernet import LONG, centernet_dla34_1x
from pipelines.recipes.settings import EvaluationSettings, Recipe


def ablation_test_resolution_original() -> Recipe:
    """Tested at the images' own resolution, padded. One training serves (a): set these fields in `aweigh evaluate`."""
    return _ablation(
        "a", "test_resolution_original", "tested at the images' own resolution", 36.3, _tested(geometry="keep")
    )


def ablation_test_resolution_512() -> Recipe:
    """Tested at 512 pixels."""
    return _ablation("a", "test_resolution_512", "tested at 512 pixels", 36.2, _tested(input_size=(512, 512)))


def ablation_test_resolution_384() -> Recipe:
    """Trained at 512 pixels, tested at 384."""
    return _ablation(
        "a", "test_resolution_384", "trained at 512 pixels, tested at 384", 33.2, _tested(input_size=(384, 384))
    )


def ablation_size_weight_0_2() -> Recipe:
    """λ_size 0.2."""
    return _ablation("b", "size_weight_0_2", "λ_size 0.2", 33.5, _tested(geometry="keep"), size_weight=0.2)


def ablation_size_weight_0_1() -> Recipe:
    """λ_size 0.1, the paper's choice."""
    return _ablation("b", "size_weight_0_1", "λ_size 0.1", 36.3, _tested(geometry="keep"), size_weight=0.1)


def ablation_size_weight_0_02() -> Recipe:
    """λ_size 0.02."""
    return _ablation("b", "size_weight_0_02", "λ_size 0.02", 35.4, _tested(geometry="keep"), size_weight=0.02)


def ablation_loss_l1() -> Recipe:
    """L1 for sizes and offsets, the paper's choice."""
    return _ablation("c", "loss_l1", "L1 for sizes and offsets", 36.3, _tested(geometry="keep"), regression_loss="l1")


def ablation_loss_smooth_l1() -> Recipe:
    """Smooth L1 for sizes and offsets; the published code divides it by the objects, not by the coordinates."""
    return _ablation(
        "c",
        "loss_smooth_l1",
        "smooth L1 for sizes and offsets",
        33.9,
        _tested(geometry="keep"),
        regression_loss="smooth_l1",
    )


def ablation_epochs_140() -> Recipe:
    """140 epochs."""
    return _ablation("d", "epochs_140", "140 epochs", 36.3, _tested(geometry="keep"))


def ablation_epochs_230() -> Recipe:
    """230 epochs."""
    return replace(_ablation("d", "epochs_230", "230 epochs", 37.4, _tested(geometry="keep")), schedule=LONG)


def _tested(**fields: Any) -> EvaluationSettings:
    """The published evaluation, which rounds to two decimals."""
    return EvaluationSettings(published_rounding=True, **fields)


def _ablation(
    part: str, name: str, what: str, published: float, evaluation: EvaluationSettings, **settings: Any
) -> Recipe:
    recipe = centernet_dla34_1x()
    return replace(
        recipe,
        recipe=f"ablation_{name}",
        purpose=f"Objects as Points, table 3{part}: DLA-34, {what} (published: {published} AP on COCO)",
        detector=replace(recipe.detector, settings=settings),
        evaluation=evaluation,
    )
