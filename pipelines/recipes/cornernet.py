"""CornerNet, CornerNet-Squeeze and CornerNet-Saccade: the authors' schedules in steps, and ours of 140 and 230 epochs.

All start from random weights, with Adam at 2.5e-4, without weight decay or warm-up, and train on crowds like on other
boxes. Their data were COCO's train2014 and the 35,000 images of val2014 beside minival; train2017 has the same images.

Their batches hardly divide among GPUs: the authors gave the first GPU fewer images (4 and then 5 for 49, 13 and then 14
for 55). Here workers share a batch equally, so 49 images train on 1, 7 or 49 workers, and 55 on 1, 5, 11 or 55. The
nearest batch for another number is a flag: `--batch.global_size 50` for 10 workers, 48 for 8, 56 for 4 or 8. As
published, pull and push are summed over the images of a GPU, so their weight beside the other losses grows with a
worker's share: stay near 5 images a worker for CornerNet, 14 for Squeeze and 12 for Saccade, or set
`--batch.microbatch_limit` to that.
"""

from dataclasses import replace

from data_shards.settings import AugmentationSettings
from pipelines.recipes.settings import (
    BatchSettings,
    DataSettings,
    DetectorSettings,
    EvaluationSettings,
    OptimizerSettings,
    Recipe,
    Schedule,
)

# As published, numpy.arange(0.6, 1.4, 0.1) and numpy.arange(0.5, 1.1, 0.1), with 0.9999999999999999 in the place of 1:
# such a crop has 510 pixels, not 511.
_CROP_SCALES = tuple(0.6 + turn * (0.7 - 0.6) for turn in range(8))
_ZOOMS = tuple(0.5 + turn * (0.6 - 0.5) for turn in range(7))

_STEPS = Schedule(epochs=0, drops_at=(), steps=500_000, drops_at_steps=(450_000,))
EPOCHS_140 = Schedule(epochs=140, drops_at=(90, 120))
EPOCHS_230 = Schedule(epochs=230, drops_at=(180, 210))


def cornernet_hourglass104() -> Recipe:
    """CornerNet: 40.6 AP on COCO test-dev, with flip.

    That is the paper's second version; the conference's, which Keypoint Triplets cites, says 40.5. Radii are those of
    the code since March 2019: correct roots, at an IoU of 0.3 (`gaussian_iou`); before, it took `(b + sqrt) / 2` at
    0.7, as the paper has it. The paper trains its ablations for 250,000 steps.
    """
    return Recipe(
        recipe="cornernet_hourglass104",
        purpose="CornerNet, Hourglass-104: 500,000 steps of 49 images (published: 40.6 AP on COCO test-dev, flip)",
        detector=DetectorSettings(name="cornernet_hourglass104"),
        data=DataSettings(input_size=(511, 511)),
        augmentation=AugmentationSettings(geometry="pixel_crop", crop_scales=_CROP_SCALES),
        batch=BatchSettings(global_size=49),
        optimizer=OptimizerSettings(name="adam", learning_rate=2.5e-4),
        schedule=_STEPS,
        evaluation=EvaluationSettings(geometry="keep", tta="flip", published_rounding=True),
    )


def cornernet_hourglass104_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return in_epochs(cornernet_hourglass104(), EPOCHS_140)


def cornernet_hourglass104_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models; the published one has 207."""
    return in_epochs(cornernet_hourglass104(), EPOCHS_230)


def cornernet_squeeze() -> Recipe:
    """CornerNet-Squeeze: 34.4 AP on COCO test-dev, tested without flip, 30 ms on a 1080 Ti."""
    recipe = cornernet_hourglass104()
    return replace(
        recipe,
        recipe="cornernet_squeeze",
        purpose="CornerNet-Squeeze: 500,000 steps of 55 images (published: 34.4 AP on COCO test-dev)",
        detector=DetectorSettings(name="cornernet_squeeze"),
        batch=BatchSettings(global_size=55),
        evaluation=replace(recipe.evaluation, tta="none"),
    )


def cornernet_squeeze_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return in_epochs(cornernet_squeeze(), EPOCHS_140)


def cornernet_squeeze_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models; the published one has 232."""
    return in_epochs(cornernet_squeeze(), EPOCHS_230)


def cornernet_saccade() -> Recipe:
    """CornerNet-Saccade: 43.2 AP on COCO test-dev, 190 ms on a 1080 Ti.

    It trains on crops of 255 pixels around a random object. The published settings also name `rand_full_crop`,
    `height_mult` and `width_mult`, which its code does not read. Tested on whole images, of which it cuts crops itself.
    """
    recipe = cornernet_hourglass104()
    return replace(
        recipe,
        recipe="cornernet_saccade",
        purpose="CornerNet-Saccade: 500,000 steps of 48 images (published: 43.2 AP on COCO test-dev)",
        detector=DetectorSettings(name="cornernet_saccade"),
        data=DataSettings(input_size=(255, 255)),
        augmentation=AugmentationSettings(geometry="object_crop", crop_scales=_ZOOMS),
        batch=BatchSettings(global_size=48),
        evaluation=replace(recipe.evaluation, tta="none"),
    )


def cornernet_saccade_140() -> Recipe:
    """140 epochs, CenterNet's schedule."""
    return in_epochs(cornernet_saccade(), EPOCHS_140)


def cornernet_saccade_230() -> Recipe:
    """230 epochs, the schedule of CenterNet's best models; the published one has 203."""
    return in_epochs(cornernet_saccade(), EPOCHS_230)


def in_epochs(recipe: Recipe, schedule: Schedule) -> Recipe:
    """Return a recipe of the family with a schedule that counts epochs."""
    length = f"{schedule.epochs} epochs, batch {recipe.batch.global_size}"
    return replace(
        recipe,
        recipe=f"{recipe.recipe}_{schedule.epochs}",
        purpose=f"{recipe.purpose.split(':')[0]}: {length}",
        schedule=schedule,
    )
