"""The training loader: batches of one rank, made ahead by a process, from exactly the step that is asked for.

What is in a batch depends on the plan and the step alone; how many threads work on it, or which finishes
first, changes nothing. Colour, mirroring and normalisation are left to the device (`augment`).
"""

import os
from dataclasses import replace

from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.loading.batch import Batch, check_input_size
from data_shards.loading.evaluation_loader import EvaluationLoader, coco_ground_truth
from data_shards.loading.shared_memory import RingLoader
from data_shards.loading.training_batches import Reading, TrainingSource
from data_shards.order.plan import Plan, World, check_divisible
from data_shards.reading.samples import Undecodable
from data_shards.reading.shards import Shards
from data_shards.settings import AugmentationSettings, BoxRules
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

__all__ = ["Batch", "EvaluationLoader", "TrainingLoader", "coco_ground_truth"]


class TrainingLoader(RingLoader):
    """The batches of one rank of a training run, from any step on.

    Iterating yields `microbatches` batches for every step from `start_step` (over all epochs) up to, not
    including, `stop_step`; without one it goes on for ever. Which samples they hold and what they look like is
    decided by the plan, the settings and the step, so a loader that starts at step k gives exactly what an
    earlier one would have given from there.

    Args:
        location: `LOCATION/SPLIT`.
        plan: made from the manifest that lies there.
        world: this rank's place.
        input_size: height and width of the input, in pixels; not used where images are resized by their shorter side.
        max_objects: annotations of an image beyond so many, in the order of the file, are left out.
        augmentation: what is drawn at random.
        boxes: which boxes count, and where they end.
        size_divisor: for images that are resized by their shorter side, each batch of which is padded to the next
            multiple that holds its largest.
        start_step: the first step to give.
        stop_step: the step before which to stop.
        threads: how many decode at the same time.
        prefetch: how many batches are worked on ahead of the one that is used.
        cache_folder: where shards from S3 are kept; see `cache.default_cache_folder`.
        cache_bytes: how many bytes of them; 0 for no limit.
        microbatches: parts in which the rank's batch of a step is given, one after the other.
        undecodable: what to do about an image that no decoder reads; see `Samples`.
        decoded_cache_bytes: room in the cache folder for decoded images; 0 keeps none. See `DecodedImages`.

    Raises:
        DataError: the ranks and microbatches do not divide the global batch, the plan was made for other
            shards, a shard does not match its manifest, or an image does not decode. Errors of the loader
            process are raised by the batch they belong to.
        LoaderError: the loader process was killed, or failed for another reason than the data.
    """

    def __init__(
        self,
        location: str | Store,
        plan: Plan,
        world: World,
        *,
        input_size: tuple[int, int],
        max_objects: int = 128,
        augmentation: AugmentationSettings | None = None,
        boxes: BoxRules | None = None,
        size_divisor: int = 32,
        start_step: int = 0,
        stop_step: int | None = None,
        threads: int = 2,
        prefetch: int = 2,
        cache_folder: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
        microbatches: int = 1,
        undecodable: Undecodable = "refuse",
        decoded_cache_bytes: int = 0,
    ) -> None:
        if max_objects < 1:
            raise DataError(f"max_objects is {max_objects}; set it to 1 or more.")
        if microbatches < 1:
            raise DataError(f"microbatches is {microbatches}; set it to 1 or more.")
        if start_step < 0:
            raise DataError(f"start_step is {start_step}; steps are counted from 0.")
        check_divisible(plan.global_batch_size, world.ranks)
        check_divisible(
            plan.global_batch_size, world.ranks * microbatches, f"microbatches ({world.ranks} ranks × {microbatches})"
        )
        check_input_size(input_size)
        store = location if isinstance(location, Store) else open_store(location)
        manifest = load_manifest(store)
        if plan.manifest_digest != manifest.digest:
            raise DataError(
                f"the plan was made for manifest {plan.manifest_digest[:6]}, {store.location} holds "
                f"{manifest.digest[:6]}: "
                "the shards were built anew. Start a new run, or bring the old shards back."
            )
        if augmentation is not None and augmentation.rotation_probability and not manifest.joints:
            raise DataError(
                f"rotation_probability is {augmentation.rotation_probability:g}, and {location} has no joints: only "
                "those turn with their image, as published. Set it to 0."
            )
        self.manifest = manifest
        self.plan = plan
        self.world = world
        folder = None if cache_folder is None else os.fspath(cache_folder)
        if cache_bytes:
            # What can be refused is refused here, not by the first batch.
            Shards(store, manifest, folder, cache_bytes=cache_bytes).schedule(plan, world, stop_step)
        source = TrainingSource(
            reading=Reading(
                store=store,
                manifest=manifest,
                cache_folder=folder,
                cache_bytes=cache_bytes,
                undecodable=undecodable,
                decoded_cache_bytes=decoded_cache_bytes,
            ),
            # As it was made: without the orders of epochs that were asked for since.
            plan=replace(plan, _epochs={}),
            world=world,
            input_size=input_size,
            max_objects=max_objects,
            augmentation=augmentation if augmentation is not None else AugmentationSettings(),
            boxes=boxes if boxes is not None else BoxRules(),
            size_divisor=size_divisor,
            start_step=start_step,
            stop_step=stop_step,
            microbatches=microbatches,
        )
        super().__init__(source, threads=threads, prefetch=prefetch)
