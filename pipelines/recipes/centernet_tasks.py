"""CenterNet for human pose on COCO and for 3D on KITTI: `experiments/multi_pose_*.sh` and `ddd_*.sh`.

The published pose detectors start from the published box detectors, which you supply as `--detector.weights`. All but
the heatmap of 80 classes fits; that layer is reinitialised.
"""

from dataclasses import replace

from data_shards.settings import AugmentationSettings
from pipelines.recipes.centernet import ONCE, centernet_dla34_1x, centernet_hourglass104
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


def centernet_dla34_pose_1x() -> Recipe:
    """DLA-34: 54.7 keypoint AP on COCO val2017, with flip."""
    return replace(
        centernet_dla34_1x(),
        recipe="centernet_dla34_pose_1x",
        purpose="CenterNet pose, DLA-34: 140 epochs, batch 128, from --detector.weights ctdet_coco_dla_2x.pth "
        "(published: 54.7 keypoint AP)",
        detector=DetectorSettings(name="centernet_dla34_pose", skip_mismatched=True),
        data=DataSettings(max_objects=32),
        schedule=ONCE,
    )


def centernet_dla34_pose_3x() -> Recipe:
    """The 320-epoch schedule: 58.9 keypoint AP. The published script lacks the dashes of `--lr_step`."""
    return replace(
        centernet_dla34_pose_1x(),
        recipe="centernet_dla34_pose_3x",
        purpose="CenterNet pose, DLA-34: 320 epochs, batch 128, from --detector.weights ctdet_coco_dla_2x.pth "
        "(published: 58.9 keypoint AP)",
        schedule=Schedule(epochs=320, drops_at=(270, 300)),
    )


def centernet_hourglass104_pose_1x() -> Recipe:
    """Hourglass-104: 58.7 keypoint AP on COCO val2017, with flip."""
    return replace(
        centernet_hourglass104(),
        recipe="centernet_hourglass104_pose_1x",
        purpose="CenterNet pose, Hourglass-104: 50 epochs, batch 24, from --detector.weights ctdet_coco_hg.pth "
        "(published: 58.7 keypoint AP)",
        detector=DetectorSettings(name="centernet_hourglass104_pose", skip_mismatched=True),
        data=DataSettings(max_objects=32),
    )


def centernet_hourglass104_pose_3x() -> Recipe:
    """The 150-epoch schedule: 64.0 keypoint AP. The published script lacks a dash of `--load_model`."""
    return replace(
        centernet_hourglass104_pose_1x(),
        recipe="centernet_hourglass104_pose_3x",
        purpose="CenterNet pose, Hourglass-104: 150 epochs, batch 24, from --detector.weights ctdet_coco_hg.pth "
        "(published: 64.0 keypoint AP)",
        schedule=Schedule(epochs=150, drops_at=(130,)),
    )


def centernet_dla34_3d_3dop() -> Recipe:
    """KITTI, the split of 3DOP."""
    return Recipe(
        recipe="centernet_dla34_3d_3dop",
        purpose="CenterNet 3D, DLA-34 on KITTI, 3DOP's split: 70 epochs, batch 16 (published: car AP 96.9 / 87.8 / "
        "79.2, easy to hard)",
        detector=DetectorSettings(name="centernet_dla34_3d", weights=IMAGENET),
        data=DataSettings(input_size=(384, 1280), max_objects=50),
        # Half of the images are shifted and scaled, by the default amounts; none is mirrored or changed in colour.
        augmentation=replace(AugmentationSettings.off(), geometry="shift", fit="width", shift_probability=0.5),
        batch=BatchSettings(global_size=16),
        optimizer=OptimizerSettings(name="adam", learning_rate=1.25e-4),
        schedule=Schedule(epochs=70, drops_at=(45, 60)),
        evaluation=EvaluationSettings(geometry="width"),
    )


def centernet_dla34_3d_sub() -> Recipe:
    """KITTI, the split of SubCNN, trained as on the split of 3DOP."""
    return replace(
        centernet_dla34_3d_3dop(),
        recipe="centernet_dla34_3d_sub",
        purpose="CenterNet 3D, DLA-34 on KITTI, SubCNN's split: 70 epochs, batch 16 (published: car AP 89.6 / 79.8 / "
        "70.3, easy to hard)",
    )
