"""Training steps in this process, without Ray and DeepSpeed, for studies that keep nothing of what they train.

The step is the one of `loop`: the same augmentation, targets, losses, precision and parameter groups.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cluster.engine.engine import resolve_precision
from data_shards.format.manifest import Manifest
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays
from pipelines.recipes.recipe import absolute
from pipelines.recipes.settings import Recipe
from pipelines.training.from_recipe import OPTIMIZERS, build_detector, parameter_groups


class SingleProcess:
    """A detector and its optimizer, which take steps on one device.

    Args:
        recipe: what is trained.
        manifest: its classes are learnt.
        device: where the steps are computed.
        initial: load the recipe's initial weights.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, device: torch.device, *, initial: bool) -> None:
        self._recipe, self._device = recipe, device
        self.detector = build_detector(recipe, manifest, initial=initial).to(device).train()
        groups = parameter_groups(self.detector, recipe.optimizer)
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[recipe.optimizer.name](groups)
        precision = resolve_precision(recipe.engine.precision, device)
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(self, microbatches: Sequence[Batch], rate: float) -> float:
        """Train one optimizer step. Returns the mean loss of its microbatches."""
        loss = self.compute_gradients(microbatches)
        self.update(rate)
        return float(loss)

    def compute_gradients(self, microbatches: Sequence[Batch]) -> Tensor:
        """Take the microbatches of a step forward and backward. Returns their mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for one in microbatches:
            batch = one.to(self._device)
            size = batch.images.shape[-2], batch.images.shape[-1]
            images = augment(batch, self.detector.preprocessing)
            targets = self.detector.encode(batch.boxes, batch.labels, size, **batch.extra)
            with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
                outputs = self.detector(images)
            loss = self.detector.losses(outputs, targets)["loss"] / len(microbatches)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def update(self, rate: float) -> None:
        """Step the optimizer with a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        if self._recipe.engine.clip_norm:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self._recipe.engine.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()


def without_evaluation(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths and without its validation shards, which a study of steps does not read."""
    return absolute(
        replace(
            recipe,
            data=replace(recipe.data, validation=""),
            schedule=replace(recipe.schedule, patience=0),
        )
    )


def largest_input(recipe: Recipe) -> tuple[int, int]:
    """Return the height and width of the recipe's largest training input.

    Whole images are padded to the largest of their batch: unless portraits and others are in batches of their own, one
    of each makes both sides as long as the longer one may be.
    """
    settings = recipe.augmentation
    if settings.geometry != "shorter_side":
        return recipe.data.input_size
    shorter = max(settings.shorter_side_range or settings.shorter_sides)
    longer = max(settings.longer_side_limit, shorter)
    height, width = (shorter if recipe.data.group_by_aspect_ratio else longer), longer
    # Inputs are padded to multiples of 32.
    return -(-height // 32) * 32, -(-width // 32) * 32


def blank_batch(recipe: Recipe, manifest: Manifest, size: int) -> Batch:
    """Return a batch of black images without objects, of the largest shape that the recipe's own batches have."""
    arrays = BatchArrays.empty(
        np.zeros(size, dtype=np.int64),
        largest_input(recipe),
        recipe.data.max_objects,
        augmented=True,
        manifest=manifest,
    )
    batch = Batch.over(arrays, 0, 0)
    batch.labels.fill_(-1)
    return batch
