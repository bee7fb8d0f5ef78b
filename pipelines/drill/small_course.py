"""The default course: the recipe `demo` at a size that takes seconds, on a small data set that is drawn for it."""

import shlex
from pathlib import Path

from data_shards.building.build import build_shards
from data_shards.demo.write import write_demo

# 40 images in batches of 8, 6 epochs, 30 steps; checkpoints inside the epochs and at their ends. fp32, so that other
# numbers of workers differ only by float32 rounding.
_FLAGS = shlex.split(
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16 "
    "--data.input_size 96 96 --batch.global_size 8 --schedule.epochs 6 --schedule.drops_at 4 --schedule.warmup_steps 5 "
    "--checkpoint.every_epochs 1 --checkpoint.every_steps 4 --evaluation.every_epochs 3 --evaluation.pictures 2 "
    "--tracking.system_seconds 0 --tracking.log_model false --engine.precision fp32"
)


def small_course(folder: Path) -> list[str]:
    """Write the data set below `folder` unless it is there; returns the flags that train the recipe `demo` on it."""
    shards = folder / "data" / "shards"
    if not (shards / "val" / "manifest.json").exists():
        written = write_demo(folder / "data", train_images=40, val_images=8)
        for split, annotations in (("train", written.train_annotations), ("val", written.val_annotations)):
            build_shards(annotations, written.images, str(shards), split=split, shard_bytes=200_000)
    return [*_FLAGS, "--data.train", str(shards / "train"), "--data.validation", str(shards / "val")]
