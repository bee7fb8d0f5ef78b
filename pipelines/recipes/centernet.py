"""CenterNet (Objects as Points): the published schedules of each network.

Batch and learning rate are those of the published scripts (`experiments/ctdet_coco_*.sh`); the plain ResNets, which
have no script, take the paper's (section 5: 128 images, 5e-4). The published runs start from ImageNet weights: give
them as `--detector.weights FILE`.
"""

from dataclasses import replace

from pipelines.recipe import BatchSettings, DetectorSettings, OptimizerSettings, Recipe, Schedule

_LONG = Schedule(epochs=230, drops_at=(180, 210))


def centernet_resnet18_1x() -> Recipe:
    """ResNet-18 with transposed convolutions, 140 epochs."""
    return Recipe(
        recipe="centernet_resnet18_1x",
        purpose="CenterNet, plain ResNet-18: 140 epochs, the paper's batch of 128",
        detector=DetectorSettings(name="centernet_resnet18"),
        batch=BatchSettings(global_size=128),
        optimizer=OptimizerSettings(name="adam", learning_rate=5e-4),
        schedule=Schedule(epochs=140, drops_at=(90, 120)),
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
        detector=DetectorSettings(name="centernet_resnet101"),
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
        detector=DetectorSettings(name="centernet_resdcn18"),
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
        detector=DetectorSettings(name="centernet_resdcn101"),
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
        detector=DetectorSettings(name="centernet_dla34"),
    )


def centernet_dla34_2x() -> Recipe:
    """The 230-epoch schedule of the published DLA-34: 37.4 AP, 52 FPS."""
    return replace(
        _longer(centernet_dla34_1x()),
        purpose="CenterNet, deformable DLA-34: 230 epochs, batch 128 (published: 37.4 AP on COCO)",
    )


def centernet_hourglass104() -> Recipe:
    """Hourglass-104: published at 40.3 AP, from ExtremeNet's weights.

    The published script lacks the schedule; its author confirms 50 epochs with one drop (issues 384 and 829), and 24
    images where the paper says 29 (issue 811).
    """
    return replace(
        centernet_resnet18_1x(),
        recipe="centernet_hourglass104",
        purpose="CenterNet, Hourglass-104: 50 epochs, batch 24 (published: 40.3 AP on COCO)",
        detector=DetectorSettings(name="centernet_hourglass104"),
        batch=BatchSettings(global_size=24),
        optimizer=OptimizerSettings(name="adam", learning_rate=2.5e-4),
        schedule=Schedule(epochs=50, drops_at=(40,)),
    )


def _longer(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        recipe=recipe.recipe.replace("_1x", "_2x"),
        purpose=recipe.purpose.replace("140 epochs", "230 epochs").split(" (published")[0],
        schedule=_LONG,
    )
