"""FCOS: its authors' schedules (in steps), those of three libraries, and ours of 140 and 230 epochs.

SGD with a learning rate and weight decay of their own for biases, a warm-up, and no clipping. The detector itself
freezes batch norm, stem and first stage. All start from ImageNet weights: the ResNets that the paper took from
Detectron, or torchvision's.
"""

from dataclasses import replace

from data_shards.settings import AugmentationSettings, Resizing
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

_FLIP_ONLY = replace(AugmentationSettings.off(), geometry="shorter_side", shorter_sides=(800,), flip_probability=0.5)
_MANY_SCALES = replace(_FLIP_ONLY, shorter_side_range=(640, 800))
_AUTHORS_SGD = OptimizerSettings(
    name="sgd",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    bias_learning_rate_factor=2.0,
    bias_weight_decay=0.0,
)
_ONCE = Schedule(
    epochs=0,
    drops_at=(),
    steps=90_000,
    drops_at_steps=(60_000, 80_000),
    warmup="constant",
    warmup_steps=500,
    warmup_factor=1 / 3,
)
_12_EPOCHS = replace(_ONCE, steps=0, drops_at_steps=(), epochs=12, drops_at=(8, 11))
_TWICE = replace(_ONCE, steps=180_000, drops_at_steps=(120_000, 160_000))
_140_EPOCHS = replace(_ONCE, steps=0, drops_at_steps=(), epochs=140, drops_at=(90, 120))
_230_EPOCHS = replace(_140_EPOCHS, epochs=230, drops_at=(180, 210))


def fcos_resnet50_1x() -> Recipe:
    """The paper's version: FCOS_R_50_FPN_1x, 37.1 AP on COCO minival."""
    return Recipe(
        recipe="fcos_resnet50_1x",
        purpose="FCOS, ResNet-50: 90,000 steps of 16 images (published: 37.1 AP on COCO)",
        detector=DetectorSettings(name="fcos_resnet50", weights=IMAGENET),
        data=DataSettings(crowd="drop", box_ends="last_pixel", resizing="authors", group_by_aspect_ratio=True),
        augmentation=_FLIP_ONLY,
        batch=BatchSettings(global_size=16),
        optimizer=_AUTHORS_SGD,
        schedule=_ONCE,
        evaluation=EvaluationSettings(geometry="shorter_side"),
    )


def fcos_resnet50_2x() -> Recipe:
    """Twice the steps, with shorter sides of 640 to 800 pixels."""
    return replace(_scheduled(fcos_resnet50_1x(), "2x", _TWICE), augmentation=_MANY_SCALES)


def fcos_resnet50_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return _scheduled(fcos_resnet50_1x(), "140", _140_EPOCHS)


def fcos_resnet50_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models."""
    return _scheduled(fcos_resnet50_1x(), "230", _230_EPOCHS)


def fcos_resnet101_2x() -> Recipe:
    """FCOS_R_101_FPN_2x: 41.4 AP on COCO minival."""
    return _deeper(fcos_resnet50_2x(), 41.4)


def fcos_improved_resnet50_1x() -> Recipe:
    """FCOS_imprv_R_50_FPN_1x: 38.7 AP on COCO minival."""
    recipe = fcos_resnet50_1x()
    return replace(
        recipe,
        recipe="fcos_improved_resnet50_1x",
        purpose="FCOS improved, ResNet-50: 90,000 steps of 16 images (published: 38.7 AP on COCO)",
        detector=replace(recipe.detector, settings={"variant": "improved"}),
    )


def fcos_improved_resnet50_2x() -> Recipe:
    """Twice the steps, with shorter sides of 640 to 800 pixels."""
    return replace(_scheduled(fcos_improved_resnet50_1x(), "2x", _TWICE), augmentation=_MANY_SCALES)


def fcos_improved_resnet50_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return _scheduled(fcos_improved_resnet50_1x(), "140", _140_EPOCHS)


def fcos_improved_resnet50_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models."""
    return _scheduled(fcos_improved_resnet50_1x(), "230", _230_EPOCHS)


def fcos_improved_resnet101_2x() -> Recipe:
    """FCOS_imprv_R_101_FPN_2x: 43.0 AP on COCO minival."""
    return _deeper(fcos_improved_resnet50_2x(), 43.0)


def fcos_adelaidet_resnet50_1x() -> Recipe:
    """AdelaiDet's FCOS_R_50_1x: 38.7 AP on COCO val2017. Here the norms' weights decay, too."""
    return _of_library(
        "adelaidet",
        "FCOS of AdelaiDet, ResNet-50: 90,000 steps of 16 images (published: 38.7 AP on COCO)",
        resizing="detectron2",
        optimizer=replace(_AUTHORS_SGD, bias_learning_rate_factor=1.0, bias_weight_decay=None),
        schedule=replace(_ONCE, warmup="linear", warmup_steps=1000, warmup_factor=1e-3),
    )


def fcos_mmdetection_resnet50_1x() -> Recipe:
    """mmdetection's improved version, with centre sampling, GIoU and centerness beside boxes: 38.7 AP on COCO."""
    return _of_library(
        "mmdetection",
        "FCOS of mmdetection, improved, ResNet-50: 12 epochs, batch 16 (published: 38.7 AP on COCO)",
        schedule=replace(_12_EPOCHS, warmup="linear"),
    )


def fcos_mmdetection_base_resnet50_1x() -> Recipe:
    """mmdetection's version of the paper: 36.6 AP on COCO val2017; gradients are clipped."""
    recipe = _of_library(
        "mmdetection_base",
        "FCOS of mmdetection, ResNet-50: 12 epochs, batch 16 (published: 36.6 AP on COCO)",
        schedule=_12_EPOCHS,
    )
    return replace(recipe, engine=replace(recipe.engine, clip_norm=35.0))


def fcos_torchvision_resnet50() -> Recipe:
    """torchvision's fcos_resnet50_fpn: 39.2 AP on COCO val2017; one rate and decay for all parameters."""
    recipe = fcos_resnet50_1x()
    return replace(
        recipe,
        recipe="fcos_torchvision_resnet50",
        purpose="FCOS of torchvision, ResNet-50: 26 epochs, batch 16 (published: 39.2 AP on COCO)",
        detector=replace(recipe.detector, settings={"variant": "torchvision"}),
        data=replace(recipe.data, box_ends="edge", resizing="torchvision"),
        optimizer=replace(_AUTHORS_SGD, bias_learning_rate_factor=1.0, bias_weight_decay=None),
        schedule=Schedule(epochs=26, drops_at=(16, 22), warmup="linear", warmup_steps=1000, warmup_factor=1e-3),
    )


def _of_library(
    variant: str,
    purpose: str,
    *,
    schedule: Schedule,
    resizing: Resizing = "mmdetection",
    optimizer: OptimizerSettings = _AUTHORS_SGD,
) -> Recipe:
    """A recipe for a library's variant; its boxes end on edges."""
    recipe = fcos_resnet50_1x()
    return replace(
        recipe,
        recipe=f"fcos_{variant}_resnet50_1x",
        purpose=purpose,
        detector=replace(recipe.detector, settings={"variant": variant}),
        data=replace(recipe.data, box_ends="edge", resizing=resizing),
        optimizer=optimizer,
        schedule=schedule,
    )


def _scheduled(recipe: Recipe, name: str, schedule: Schedule) -> Recipe:
    length = f"{schedule.steps:,} steps of 16 images" if schedule.steps else f"{schedule.epochs} epochs, batch 16"
    return replace(
        recipe,
        recipe=recipe.recipe.replace("_1x", f"_{name}"),
        purpose=f"{recipe.purpose.split(':')[0]}: {length}",
        schedule=schedule,
    )


def _deeper(recipe: Recipe, published: float) -> Recipe:
    return replace(
        recipe,
        recipe=recipe.recipe.replace("resnet50", "resnet101"),
        purpose=f"{recipe.purpose.replace('ResNet-50', 'ResNet-101')} (published: {published} AP on COCO)",
        detector=replace(recipe.detector, name="fcos_resnet101"),
    )
