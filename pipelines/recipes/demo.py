"""The demo: a narrow CenterNet that learns its small data set on two CPU cores within minutes."""

from cluster.settings import CheckpointSettings
from pipelines.recipe import (
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
    """The same network, data path, engine and evaluation as the published schedules, at a laptop's size."""
    return Recipe(
        recipe="demo",
        purpose="A narrow CenterNet for a laptop: what `aweigh demo` trains, minutes on two CPU cores",
        detector=DetectorSettings(
            name="centernet_resnet18", settings={"width": 24, "deconv_channels": [96, 64, 48], "head_channels": 48}
        ),
        data=DataSettings(train="demo/shards/train", validation="demo/shards/val", input_size=(160, 160)),
        batch=BatchSettings(global_size=16),
        optimizer=OptimizerSettings(name="adam", learning_rate=2e-3),
        schedule=Schedule(epochs=40, drops_at=(30, 36), warmup_steps=50),
        evaluation=EvaluationSettings(every_epochs=10),
        checkpoint=CheckpointSettings(every_steps=50),
        tracking=TrackingSettings(every_steps=5, system_seconds=5),
    )
