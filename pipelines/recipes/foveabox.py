"""FoveaBox: its authors' schedules of 12 and 24 epochs, and ours of 140 and 230.

SGD with one rate for all parameters, a linear warm-up from a third, and gradients clipped at a norm of 35. Batch norm
keeps the statistics of ImageNet. All start from the ImageNet weights that PyTorch published first.

The files of the authors were trained with boxes that end on their last pixel. mmdetection trained again, with boxes
that end at x + width (`--data.box_ends edge --detector.settings.box_ends edge`), and reports up to 1.5 AP more. The
paper leaves a band around the fovea out of the loss; the authors' code does not, and neither do these recipes.
"""

from dataclasses import replace

from cluster.settings import EngineSettings
from data_shards.settings import AugmentationSettings
from pipelines.recipes.settings import (
    IMAGENET,
    BatchSettings,
    DataSettings,
    DetectorSettings,
    EvaluationSettings,
    OptimizerSettings,
    Recipe,
    Schedule,
)

_ONE_SCALE = replace(AugmentationSettings.off(), geometry="shorter_side", shorter_sides=(800,), flip_probability=0.5)
# One of the two; the numbers in the names of mmdetection's configurations read as if it were a range.
_TWO_SCALES = replace(_ONE_SCALE, shorter_sides=(640, 800))
_ONCE = Schedule(epochs=12, drops_at=(8, 11), warmup="linear", warmup_steps=500, warmup_factor=1 / 3)
_TWICE = replace(_ONCE, epochs=24, drops_at=(16, 22))
_140_EPOCHS = replace(_ONCE, epochs=140, drops_at=(90, 120))
_230_EPOCHS = replace(_ONCE, epochs=230, drops_at=(180, 210))


def foveabox_resnet50_1x() -> Recipe:
    """12 epochs: 36.5 AP on COCO val2017, the authors' and mmdetection's figure."""
    return Recipe(
        recipe="foveabox_resnet50_1x",
        purpose="FoveaBox, ResNet-50: 12 epochs, batch 16 (published: 36.5 AP on COCO)",
        detector=DetectorSettings(name="foveabox_resnet50", weights=IMAGENET),
        data=DataSettings(crowd="drop", box_ends="last_pixel", resizing="mmdetection", group_by_aspect_ratio=True),
        augmentation=_ONE_SCALE,
        batch=BatchSettings(global_size=16),
        optimizer=OptimizerSettings(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=_ONCE,
        engine=EngineSettings(clip_norm=35.0),
        evaluation=EvaluationSettings(geometry="shorter_side"),
    )


def foveabox_resnet50_2x() -> Recipe:
    """24 epochs: 36.9 AP on COCO val2017; mmdetection reports 37.2."""
    return _scheduled(foveabox_resnet50_1x(), "2x", _TWICE, 36.9)


def foveabox_resnet50_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return _scheduled(foveabox_resnet50_1x(), "140", _140_EPOCHS)


def foveabox_resnet50_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models."""
    return _scheduled(foveabox_resnet50_1x(), "230", _230_EPOCHS)


def foveabox_align_resnet50_2x() -> Recipe:
    """Aligned features, 24 epochs: 37.9 AP on COCO val2017, the authors' and mmdetection's figure."""
    return _aligned(foveabox_resnet50_2x(), 37.9)


def foveabox_align_resnet50_2x_two_scales() -> Recipe:
    """Shorter sides of 640 or 800 pixels: 40.1 AP on COCO val2017; mmdetection reports 40.4."""
    return _on_two_scales(foveabox_align_resnet50_2x(), 40.1)


def foveabox_align_resnet50_140() -> Recipe:
    """140 epochs on two scales."""
    return _scheduled(foveabox_align_resnet50_2x_two_scales(), "140", _140_EPOCHS)


def foveabox_align_resnet50_230() -> Recipe:
    """230 epochs on two scales."""
    return _scheduled(foveabox_align_resnet50_2x_two_scales(), "230", _230_EPOCHS)


def foveabox_resnet101_1x() -> Recipe:
    """12 epochs: 38.5 AP on COCO val2017; mmdetection reports 38.6."""
    return _deeper(foveabox_resnet50_1x(), 38.5)


def foveabox_resnet101_2x() -> Recipe:
    """24 epochs: 38.5 AP on COCO val2017, no more than after 12; mmdetection reports 40.0."""
    return _deeper(foveabox_resnet50_2x(), 38.5)


def foveabox_resnet101_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return _deeper(foveabox_resnet50_140())


def foveabox_resnet101_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models."""
    return _deeper(foveabox_resnet50_230())


def foveabox_align_resnet101_2x() -> Recipe:
    """Aligned features, 24 epochs: 39.4 AP on COCO val2017; mmdetection reports 40.0."""
    return _deeper(foveabox_align_resnet50_2x(), 39.4)


def foveabox_align_resnet101_2x_two_scales() -> Recipe:
    """Shorter sides of 640 or 800 pixels: 41.9 AP on COCO val2017; mmdetection reports 42.0."""
    return _deeper(foveabox_align_resnet50_2x_two_scales(), 41.9)


def foveabox_align_resnet101_140() -> Recipe:
    """140 epochs on two scales."""
    return _deeper(foveabox_align_resnet50_140())


def foveabox_align_resnet101_230() -> Recipe:
    """230 epochs on two scales."""
    return _deeper(foveabox_align_resnet50_230())


def _scheduled(recipe: Recipe, name: str, schedule: Schedule, published: float | None = None) -> Recipe:
    scales = " on two scales" if recipe.augmentation == _TWO_SCALES else ""
    return replace(
        recipe,
        recipe=f"{recipe.recipe.split('_resnet50')[0]}_resnet50_{name}",
        purpose=f"{recipe.purpose.split(':')[0]}: {schedule.epochs} epochs{scales}, batch 16{_figure(published)}",
        schedule=schedule,
    )


def _aligned(recipe: Recipe, published: float) -> Recipe:
    return replace(
        recipe,
        recipe=recipe.recipe.replace("foveabox_", "foveabox_align_"),
        purpose=recipe.purpose.replace("FoveaBox,", "FoveaBox aligned,").split(" (")[0] + _figure(published),
        detector=replace(recipe.detector, settings={"align": True}),
    )


def _on_two_scales(recipe: Recipe, published: float) -> Recipe:
    return replace(
        recipe,
        recipe=f"{recipe.recipe}_two_scales",
        purpose=recipe.purpose.split(", batch")[0] + " on two scales, batch 16" + _figure(published),
        augmentation=_TWO_SCALES,
    )


def _deeper(recipe: Recipe, published: float | None = None) -> Recipe:
    return replace(
        recipe,
        recipe=recipe.recipe.replace("resnet50", "resnet101"),
        purpose=recipe.purpose.replace("ResNet-50", "ResNet-101").split(" (")[0] + _figure(published),
        detector=replace(recipe.detector, name="foveabox_resnet101"),
    )


def _figure(published: float | None) -> str:
    return "" if published is None else f" (published: {published} AP on COCO)"
