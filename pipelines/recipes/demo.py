"""The demo: a narrow CenterNet that learns its small data set within minutes on two CPU cores."""

from cluster.settings import CheckpointSettings
from data_shards.settings import AugmentationSettings
from pipelines.recipes.settings import (
    BatchSettings,
    DataSettings,
    DetectorSettings,
    EvaluationSettings,
    OptimizerSettings,
    Recipe,
    Schedule,
    TrackingSettings,
)


def demo() -> Recipe:
    """The network, data path, engine and evaluation of the published schedules, at a laptop's size."""
    return Recipe(
        recipe="demo",
        purpose="A narrow CenterNet for a laptop: what `aweigh demo` trains, minutes on two CPU cores",
        detector=DetectorSettings(
            name="centernet_resnet18",
            settings={"width": 24, "deconv_channels": [64, 48, 32], "head_channels": 32, "trunk_start": "he"},
        ),
        data=DataSettings(train="demo/shards/train", validation="demo/shards/val", input_size=(160, 160)),
        # Milder than COCO's: there is no time to learn the smallest scales and the most unusual light.
        augmentation=AugmentationSettings(
            crop_scales=(0.9, 1.0, 1.1, 1.2), brightness=0.15, contrast=0.15, saturation=0.15, lighting=0.05
        ),
        # Many small steps: a network with random weights gains more from them than from large batches.
        batch=BatchSettings(global_size=8),
        optimizer=OptimizerSettings(name="adam", learning_rate=1.5e-3),
        schedule=Schedule(epochs=40, drops_at=(30, 36), warmup_steps=50),
        evaluation=EvaluationSettings(every_epochs=10),
        checkpoint=CheckpointSettings(every_epochs=5),
        tracking=TrackingSettings(every_steps=10, system_seconds=5),
    )
