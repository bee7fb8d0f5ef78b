"""CenterNet (Objects as Points) for boxes: the published schedules of each network on COCO and on Pascal VOC.

Batch and learning rate are those of the published scripts (`experiments/ctdet_*.sh`), which trained the published
models, even though the paper says 128 images for all ResNets. The plain ResNets and the original DLA-34 have no script
and take the paper's values (section 5: 128 images, 5e-4). All but the hourglass start from ImageNet weights.
"""

from dataclasses import replace

from pipelines.recipes.settings import (
    IMAGENET,
    BatchSettings,
    DataSettings,
    DetectorSettings,
    OptimizerSettings,
    Recipe,
    Schedule,
)

ONCE = Schedule(epochs=140, drops_at=(90, 120))
LONG = Schedule(epochs=230, drops_at=(180, 210))


def centernet_resnet18_1x() -> Recipe:
    """ResNet-18 with transposed convolutions, 140 epochs."""
    return Recipe(
        recipe="centernet_resnet18_1x",
        purpose="CenterNet, plain ResNet-18: 140 epochs, the paper's batch of 128",
        detector=DetectorSettings(name="centernet_resnet18", weights=IMAGENET),
        batch=BatchSettings(global_size=128),
        optimizer=OptimizerSettings(name="adam", learning_rate=5e-4),
        schedule=ONCE,
    )


def centernet_resnet18_2x() -> Recipe:
    """The 230-epoch schedule."""
    return _longer(centernet_resnet18_1x())


def centernet_resnet101_1x() -> Recipe:
    """ResNet-101 with transposed convolutions, 140 epochs."""
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_resnet101_1x",
        purpose="CenterNet, plain ResNet-101: 140 epochs, the paper's batch of 128",
        detector=DetectorSettings(name="centernet_resnet101", weights=IMAGENET),
    )


def centernet_resnet101_2x() -> Recipe:
    """The 230-epoch schedule."""
    return _longer(centernet_resnet101_1x())


def centernet_resdcn18_1x() -> Recipe:
    """ResNet-18 with deformable convolutions: published at 28.1 AP, 142 FPS."""
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_resdcn18_1x",
        purpose="CenterNet, deformable ResNet-18: 140 epochs, batch 114 (published: 28.1 AP on COCO)",
        detector=DetectorSettings(name="centernet_resdcn18", weights=IMAGENET),
        batch=BatchSettings(global_size=114),
    )


def centernet_resdcn18_2x() -> Recipe:
    """The 230-epoch schedule."""
    return _longer(centernet_resdcn18_1x())


def centernet_resdcn101_1x() -> Recipe:
    """ResNet-101 with deformable convolutions: published at 34.6 AP, 45 FPS."""
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_resdcn101_1x",
        purpose="CenterNet, deformable ResNet-101: 140 epochs, batch 96 (published: 34.6 AP on COCO)",
        detector=DetectorSettings(name="centernet_resdcn101", weights=IMAGENET),
        batch=BatchSettings(global_size=96),
        optimizer=OptimizerSettings(name="adam", learning_rate=3.75e-4),
    )


def centernet_resdcn101_2x() -> Recipe:
    """The 230-epoch schedule."""
    return _longer(centernet_resdcn101_1x())


def centernet_dla34_1x() -> Recipe:
    """DLA-34 with deformable convolutions: published at 36.3 AP."""
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_dla34_1x",
        purpose="CenterNet, deformable DLA-34: 140 epochs, batch 128 (published: 36.3 AP on COCO)",
        detector=DetectorSettings(name="centernet_dla34", weights=IMAGENET),
    )


def centernet_dla34_2x() -> Recipe:
    """The 230-epoch schedule of the published DLA-34: 37.4 AP, 52 FPS.

    The published script lacks the dashes of `--lr_step` and would not start; the model's log has these drops.
    """
    return replace(
        _longer(centernet_dla34_1x()),
        purpose="CenterNet, deformable DLA-34: 230 epochs, batch 128 (published: 37.4 AP on COCO)",
    )


def centernet_dla34_original_1x() -> Recipe:
    """The original DLA-34, of ordinary convolutions (figure 6c of the paper); no script and no AP are published."""
    return replace(
        centernet_dla34_1x(),
        recipe="centernet_dla34_original_1x",
        purpose="CenterNet, original DLA-34: 140 epochs, batch 128 as for the deformable one",
        detector=DetectorSettings(name="centernet_dla34_original", weights=IMAGENET),
    )


def centernet_dla34_original_2x() -> Recipe:
    """The 230-epoch schedule."""
    return _longer(centernet_dla34_original_1x())


def centernet_hourglass104() -> Recipe:
    """Hourglass-104: published at 40.3 AP, from ExtremeNet's weights, which you have to supply.

    The published script lacks the schedule; its author confirms 50 epochs with one drop (issues 384 and 829), and 24
    images instead of the paper's 29 (issue 811). Only the trunk of ExtremeNet's file fits; all heads are reinitialised.
    """
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_hourglass104",
        purpose="CenterNet, Hourglass-104: 50 epochs, batch 24, from --detector.weights ExtremeNet_500000.pkl "
        "(published: 40.3 AP on COCO)",
        detector=DetectorSettings(name="centernet_hourglass104"),
        batch=BatchSettings(global_size=24),
        optimizer=OptimizerSettings(name="adam", learning_rate=2.5e-4),
        schedule=Schedule(epochs=50, drops_at=(40,)),
    )


def centernet_resdcn18_voc_384() -> Recipe:
    """Pascal VOC 07+12: 72.6 mAP at an IoU of 0.5 on VOC07 test, with flip."""
    return _voc(centernet_resdcn18_1x(), 384, 72.6)


def centernet_resdcn18_voc_512() -> Recipe:
    """The same at 512 pixels."""
    return _voc(centernet_resdcn18_1x(), 512, 75.7)


def centernet_resdcn101_voc_384() -> Recipe:
    """Pascal VOC 07+12: 77.6 in the paper, 77.1 in the published file."""
    return _voc(centernet_resdcn101_1x(), 384, 77.1)


def centernet_resdcn101_voc_512() -> Recipe:
    """The same at 512 pixels."""
    return _voc(centernet_resdcn101_1x(), 512, 78.7)


def centernet_dla34_voc_384() -> Recipe:
    """Pascal VOC 07+12 with DLA-34."""
    return _voc(centernet_dla34_1x(), 384, 79.3)


def centernet_dla34_voc_512() -> Recipe:
    """The same at 512 pixels."""
    return _voc(centernet_dla34_1x(), 512, 80.7)


def _longer(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        recipe=recipe.recipe.replace("_1x", "_2x"),
        purpose=recipe.purpose.replace("140 epochs", "230 epochs").split(" (published")[0],
        schedule=LONG,
    )


def _voc(recipe: Recipe, side: int, published: float) -> Recipe:
    """Follow `experiments/ctdet_pascal_*.sh`: 50 objects an image, ImageNet's statistics, half of COCO's epochs."""
    name = recipe.recipe.replace("_1x", f"_voc_{side}")
    network = recipe.purpose.split(":")[0]
    return replace(
        recipe,
        recipe=name,
        purpose=f"{network} on Pascal VOC at {side} pixels: 70 epochs, batch 32 (published: {published} mAP@0.5, flip)",
        detector=replace(recipe.detector, settings={"max_objects": 50, "pixel_statistics": "imagenet"}),
        data=DataSettings(input_size=(side, side), max_objects=50),
        batch=BatchSettings(global_size=32),
        optimizer=OptimizerSettings(name="adam", learning_rate=1.25e-4),
        schedule=Schedule(epochs=70, drops_at=(45, 60)),
    )
