"""CenterNet: Keypoint Triplets, CornerNet with centres: its authors' schedules, and ours of 140 and 230 epochs.

Everything that is not here is as in `cornernet.py`: random weights, data, crops, optimizer, and losses that are summed
over the images of a GPU, of which the authors had 6 on each of 8.
"""

from dataclasses import replace

from pipelines.recipes.cornernet import EPOCHS_140, EPOCHS_230, cornernet_hourglass104, in_epochs
from pipelines.recipes.settings import BatchSettings, DetectorSettings, Recipe


def keypoint_triplets_hourglass104() -> Recipe:
    """Hourglass-104: 44.9 AP on COCO test-dev, with flip; 47.0 at several scales.

    The published settings leave out `gaussian_iou`, so radii follow from the code's default of 0.7, by CornerNet's
    first formula; both are the detector's defaults.
    """
    recipe = cornernet_hourglass104()
    return replace(
        recipe,
        recipe="keypoint_triplets_hourglass104",
        purpose="Keypoint Triplets, Hourglass-104: 480,000 steps of 48 images "
        "(published: 44.9 AP on COCO test-dev, flip)",
        detector=DetectorSettings(name="keypoint_triplets_hourglass104"),
        batch=BatchSettings(global_size=48),
        schedule=replace(recipe.schedule, steps=480_000),
    )


def keypoint_triplets_hourglass104_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return in_epochs(keypoint_triplets_hourglass104(), EPOCHS_140)


def keypoint_triplets_hourglass104_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models; the published one has 195."""
    return in_epochs(keypoint_triplets_hourglass104(), EPOCHS_230)


def keypoint_triplets_hourglass52() -> Recipe:
    """Hourglass-52: 41.6 AP on COCO test-dev, with flip; 43.5 at several scales.

    The published settings say 500,000 steps; the paper and the published file, CenterNet-52_480000.pkl, 480,000.
    """
    recipe = keypoint_triplets_hourglass104()
    return replace(
        recipe,
        recipe="keypoint_triplets_hourglass52",
        purpose=recipe.purpose.replace("-104", "-52").replace("44.9", "41.6"),
        detector=DetectorSettings(name="keypoint_triplets_hourglass52"),
    )


def keypoint_triplets_hourglass52_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return in_epochs(keypoint_triplets_hourglass52(), EPOCHS_140)


def keypoint_triplets_hourglass52_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models; the published one has 195."""
    return in_epochs(keypoint_triplets_hourglass52(), EPOCHS_230)
