"""The loaders: batches of one rank, decoded ahead by threads, from exactly the step that is asked for.

What is in a batch depends on the plan and the step alone; how many threads work on it, or which finishes
first, changes nothing. Colour, mirroring and normalisation are left to the device (`augment`).
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np

from data_shards.augment import Draws, draw
from data_shards.batch import Batch, Slot, check_input_size
from data_shards.draws import padded_size
from data_shards.errors import DataError
from data_shards.evaluation import EvaluationLoader, coco_ground_truth
from data_shards.manifest import load_manifest
from data_shards.plan import Plan, World, check_divisible
from data_shards.prefetch import Prefetcher
from data_shards.settings import AugmentationSettings, BoxRules
from data_shards.shards import Shards
from data_shards.store import Store, open_store

__all__ = ["Batch", "EvaluationLoader", "TrainingLoader", "coco_ground_truth"]


class TrainingLoader(Prefetcher[tuple[int, int]]):
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

    Raises:
        DataError: the ranks and microbatches do not divide the global batch, the plan was made for other
            shards, a shard does not match its manifest, or an image does not decode. Errors of the threads
            are raised by the batch they belong to.
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
        self._shards = Shards(store, manifest, cache_folder, cache_bytes=cache_bytes)
        self._input_size = input_size
        self._max_objects = max_objects
        self._augmentation = augmentation if augmentation is not None else AugmentationSettings()
        self._boxes = boxes if boxes is not None else BoxRules()
        self._size_divisor = size_divisor
        self._start_step, self._stop_step = start_step, stop_step
        self._microbatches = microbatches
        super().__init__(threads=threads, prefetch=prefetch)
        self._shards.fetch_ahead(plan, world, start_step, stop_step)

    def close(self) -> None:
        """Stop the threads, those that fetch and those that decode. Closing twice is fine."""
        self._shards.close()
        super().close()

    def _schedule(self) -> Iterator[tuple[int, int]]:
        step = self._start_step
        while self._stop_step is None or step < self._stop_step:
            for microbatch in range(self._microbatches):
                yield step, microbatch
            step += 1

    def _start(self, item: tuple[int, int]) -> tuple[Batch, list[Future[None]]]:
        step, microbatch = item
        # Batches before those that are worked on have been handed over.
        self._shards.reached(step - self._prefetch)
        epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
        sample_ids = self.plan.rank_batch(epoch, step_in_epoch, self.world)
        size = len(sample_ids) // self._microbatches
        sample_ids = sample_ids[microbatch * size : (microbatch + 1) * size]
        shards, rows = self.plan.locate(sample_ids)

        def prepare() -> Draws:
            # Sizes stand in the indexes, which may have to come from S3: not in the trainer's time.
            sizes = np.array([self._shards.size(*place) for place in zip(shards, rows, strict=True)])
            return draw(self._augmentation, self.plan.seed, epoch, sample_ids, sizes)

        whole = self._augmentation.geometry == "shorter_side"
        input_size = self._input_size
        prepared: Future[Draws]
        if whole:
            # The size of the input follows from what is drawn, so there is no slot before.
            prepared = Future()
            prepared.set_result(prepare())
            input_size = padded_size(prepared.result().content_sizes, self._size_divisor)
        else:
            # Submitted first, so a thread is at it, or done, before any row waits for it.
            prepared = self._pool.submit(prepare)
        slot = Slot.empty(
            sample_ids, input_size, self._max_objects, augmented=True, manifest=self.manifest, whole_images=whole
        )
        taken = self._pool.submit(lambda: slot.take(prepared.result()))

        def fill(row: int) -> None:
            taken.result()
            matrix = prepared.result().matrix(row, input_size)
            slot.fill(row, self._shards, int(shards[row]), int(rows[row]), matrix, self._boxes)

        return slot.batch(epoch, step), [self._pool.submit(fill, row) for row in range(len(sample_ids))]
