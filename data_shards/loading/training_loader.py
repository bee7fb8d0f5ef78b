"""The training loader: batches of one rank, made ahead by a process, from any step on.

The contents of a batch depend on the plan and the step alone; the number of threads, and which of them finishes first,
change nothing. Colour, mirroring and normalisation are left to the device (`augment`).
"""

from dataclasses import replace

from data_shards.errors import DataError
from data_shards.loading.batch import check_input_size
from data_shards.loading.shared_memory import RingLoader
from data_shards.loading.training_batches import TrainingSource
from data_shards.order.plan import Plan, World, check_divisible
from data_shards.reading.reading import Reading
from data_shards.settings import AugmentationSettings, InputSizes


class TrainingLoader(RingLoader):
    """The batches of one rank of a training run, from any step on.

    Iterating yields `microbatches` batches for every step from `start_step` (counted over all epochs) up to, but not
    including, `stop_step`; without one it never ends. The plan, the settings and the step decide which samples a batch
    holds and how they look, so a loader that starts at step k yields exactly what an earlier one would have from there.

    Args:
        reading: the split, and how to read it.
        plan: made from that split's manifest.
        world: this rank's place.
        input_size: height and width of the input, in pixels; not used where images are resized by their shorter side.
        augmentation: what to draw at random; None takes the defaults.
        sizes: sizes that the network takes; needed where images are resized by their shorter side, to pad each batch.
        start_step: the first step.
        stop_step: the step before which to stop; None never stops.
        microbatches: number of parts in which to yield the rank's batch of a step, one after the other.

    Raises:
        DataError: the ranks and microbatches do not divide the global batch, the plan was made for other shards, a
            shard differs from its manifest, or an image does not decode. Errors in the loader process are raised
            by the batch they belong to.
        LoaderError: the loader process was killed, or failed for a reason other than the data.
    """

    def __init__(
        self,
        reading: Reading,
        plan: Plan,
        world: World,
        *,
        input_size: tuple[int, int],
        augmentation: AugmentationSettings | None = None,
        sizes: InputSizes | None = None,
        start_step: int = 0,
        stop_step: int | None = None,
        microbatches: int = 1,
    ) -> None:
        if reading.max_objects is None:
            raise DataError("max_objects is None; set it to 1 or more for training.")
        if microbatches < 1:
            raise DataError(f"microbatches is {microbatches}; set it to 1 or more.")
        if start_step < 0:
            raise DataError(f"start_step is {start_step}; steps are counted from 0.")
        check_divisible(plan.global_batch_size, world.ranks)
        check_divisible(
            plan.global_batch_size, world.ranks * microbatches, f"microbatches ({world.ranks} ranks × {microbatches})"
        )
        check_input_size(input_size)
        split, manifest = reading.split, reading.split.manifest
        if plan.manifest_digest != manifest.digest:
            raise DataError(
                f"the plan was made for manifest {plan.manifest_digest[:6]}, but {split.location} has "
                f"{manifest.digest[:6]}: the shards were built again. Start a new run, or restore the old shards."
            )
        augmentation = augmentation if augmentation is not None else AugmentationSettings()
        if augmentation.geometry == "shorter_side" and sizes is None:
            raise DataError("sizes is None; pass the detector's, to which images resized by a side are padded.")
        if augmentation.rotation_probability and not manifest.joints:
            raise DataError(
                f"rotation_probability is {augmentation.rotation_probability:g}, but {split.location} has no joints: "
                "as published, only joints turn with their image. Set it to 0."
            )
        self.manifest = manifest
        self.plan = plan
        self.world = world
        if split.cache_bytes:
            # Refuse a cache that is too small now, not at the first batch.
            split.shards().schedule(plan, world, stop_step)
        source = TrainingSource(
            reading=reading,
            # Without the orders of epochs computed since it was made: they would only be pickled.
            plan=replace(plan, _epochs={}),
            world=world,
            input_size=input_size,
            augmentation=augmentation,
            sizes=sizes,
            start_step=start_step,
            stop_step=stop_step,
            microbatches=microbatches,
        )
        super().__init__(source, threads=reading.threads, prefetch=reading.prefetch)
