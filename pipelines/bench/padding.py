"""Pixels of a training's inputs with and without grouping by aspect ratio, beside the published grouping."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64

import detectors
from data_shards.format.manifest import CocoClass, Manifest, Shard, Source
from data_shards.loading.random_draws import draw
from data_shards.order.plan import Plan, Portraits, World, make_plan
from detectors.sizes import InputSizes
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.recipes.settings import Recipe

# Width, height and number of images: 455 images of COCO's train2017, val2017 and val2014, whose longer side was scaled
# to 640 pixels, and whose shorter side was rounded to the nearest of these.
_COCO_SIZES = (
    *((640, 480, 161), (640, 427, 134), (480, 640, 50), (427, 640, 39), (640, 640, 15), (640, 400, 14)),
    *((640, 520, 9), (520, 640, 7), (640, 360, 7), (640, 560, 4), (360, 640, 4), (640, 240, 3), (600, 640, 3)),
    *((560, 640, 2), (640, 320, 2), (400, 640, 1)),
)
# The 117,266 images of COCO's train2017 that have an object, in shards of about 100 MB.
_COCO_SHARDS = (*(620,) * 189, 86)
_SHARD_BYTES = 100_000_000


@dataclass(frozen=True)
class Row:
    """Some images that are padded to one size: a worker's share of a step, or a microbatch of it."""

    images: int
    apart: float
    """Pixels of the inputs in multiples of the images' own pixels, in the order without groups."""
    grouped: float
    """The same in the grouped order."""
    published: float
    """The same in the authors' order, which groups the images of each worker."""

    @property
    def more(self) -> float:
        """Pixels that the inputs have more without groups, as a share of the grouped ones."""
        return self.apart / self.grouped - 1

    @property
    def saved(self) -> float:
        """Share of the inputs' pixels that grouping saves."""
        return 1 - self.grouped / self.apart

    @property
    def padding_saved(self) -> float:
        """Share of the padding that grouping saves."""
        return 1 - (self.grouped - 1) / (self.apart - 1) if self.apart > 1 else 0.0


@dataclass(frozen=True)
class _Images:
    """The images of a training: their heights and widths, and the split they come from."""

    sizes: Int64[np.ndarray, "images 2"]
    manifest: Manifest
    portraits: Portraits


def bench_padding(recipe: Recipe, *, as_json: bool) -> None:
    """Count the pixels of an epoch's inputs; a row for each number of images that may be padded together.

    Args:
        recipe: its batch and augmentation, and its training shards; images with the shapes of COCO's if it has none.
        as_json: print the rows as JSON.

    Raises:
        ConfigError: all inputs of the recipe have one size, or it has steps of one image.
        DataError: the shards cannot be read, or hold fewer images than a step.
    """
    augmentation, batch = recipe.augmentation, recipe.batch.global_size
    if augmentation.geometry != "shorter_side" or batch < 2:
        raise ConfigError(
            f"recipe {recipe.recipe} pads nothing: it has the geometry {augmentation.geometry} and steps of {batch}. "
            "Choose one with the geometry shorter_side, such as fcos_resnet50_1x, and steps of 2 or more."
        )
    images = _of_shards(recipe) if recipe.data.train else _like_coco(recipe.seed)
    with torch.device("meta"):
        input_sizes = detectors.build(recipe.detector.name, 1, **recipe.detector.settings).sizes
    plans = [
        make_plan(images.manifest, seed=recipe.seed, global_batch_size=batch, portraits=portraits)
        for portraits in (None, images.portraits)
    ]
    apart, grouped = (plan.rank_batches(0, 0, plan.steps_per_epoch, World(1, 0)) for plan in plans)
    is_portrait = images.sizes[:, 0] >= images.sizes[:, 1]
    rows = [
        Row(
            together,
            *(
                _input_pixels(recipe, images.sizes, order.reshape(-1, together), input_sizes)
                for order in (apart, grouped, _published(is_portrait, together, batch // together, recipe.seed))
            ),
        )
        for together in range(batch, 1, -1)
        if batch % together == 0
    ]
    of_step = is_portrait[grouped]
    facts = {
        "images": len(images.sizes),
        "portraits": float(is_portrait.mean()),
        "mixed_steps": float((of_step.any(axis=1) != of_step.all(axis=1)).mean()),
        "shards_per_step": _shards_per_step(plans[0], apart),
        "shards_per_grouped_step": _shards_per_step(plans[1], grouped),
    }
    if as_json:
        shown = [
            {**asdict(row), "more": row.more, "saved": row.saved, "padding_saved": row.padding_saved} for row in rows
        ]
        print(json.dumps({**facts, "rows": shown}))
        return
    console.say(
        "bench",
        f"{facts['images']:,} images, {facts['portraits']:.0%} of them portraits, {batch} in a step; "
        f"{facts['mixed_steps']:.1%} of the grouped steps hold both kinds; a step takes samples from "
        f"{facts['shards_per_step']:.1f} shards, a grouped one from {facts['shards_per_grouped_step']:.1f}",
    )
    print(
        f"{'padded together':<17}{'apart':>8}{'grouped':>10}{'published':>11}{'apart needs':>14}{'saved':>8}"
        f"{'of the padding':>16}"
    )
    for row in rows:
        print(
            f"{row.images:<17}{row.apart:7.3f}×{row.grouped:9.3f}×{row.published:10.3f}×{row.more:+14.1%}{row.saved:8.1%}"
            f"{row.padding_saved:16.0%}"
        )


def _of_shards(recipe: Recipe) -> _Images:
    split = recipe.data.split(recipe.data.train)
    shards = split.shards()
    indexes = [shards.index(number) for number in range(len(split.manifest.shards))]
    sizes = np.concatenate([np.stack([index.heights, index.widths], axis=1) for index in indexes])
    return _Images(sizes, split.manifest, shards.portraits)


def _like_coco(seed: int) -> _Images:
    widths, heights, counts = np.array(_COCO_SIZES).T
    drawn = np.random.default_rng(seed).choice(len(counts), sum(_COCO_SHARDS), p=counts / counts.sum())
    sizes = np.stack([heights, widths], axis=1)[drawn]
    shards = tuple(
        Shard(f"{number}.tar", samples, _SHARD_BYTES, "", f"{number}.index.npz", "")
        for number, samples in enumerate(_COCO_SHARDS)
    )
    manifest = Manifest("train", (CocoClass(1, "thing"),), shards, Source("", _SHARD_BYTES, "drop", 0, 0))
    of_shards = np.split(sizes[:, 0] >= sizes[:, 1], np.cumsum(_COCO_SHARDS)[:-1])
    return _Images(sizes, manifest, lambda shard: of_shards[shard])


def _published(
    is_portrait: Bool[np.ndarray, " images"], together: int, workers: int, seed: int
) -> Int64[np.ndarray, " samples"]:
    """Return the images of an epoch in batches of one group, as the authors' sampler makes them.

    Each worker groups its own share of the shuffled images. Batches that are not full are left out.

    Source:
        tianzhi0549/FCOS, fcos_core/data/samplers/grouped_batch_sampler.py.
    """
    shuffled = np.random.default_rng(seed).permutation(len(is_portrait))
    found = []
    for worker in range(workers):
        share = shuffled[worker::workers]
        for group in (True, False):
            members = share[is_portrait[share] == group]
            found.append(members[: len(members) // together * together])
    return np.concatenate(found)


def _input_pixels(
    recipe: Recipe,
    sizes: Int64[np.ndarray, "images 2"],
    batches: Int64[np.ndarray, "batches together"],
    input_sizes: InputSizes,
) -> float:
    """Return the pixels of the inputs of some batches, in multiples of their images' own pixels."""
    ids = batches.ravel()
    content = draw(recipe.augmentation, recipe.seed, 0, ids, sizes[ids]).content_sizes.reshape(*batches.shape, 2)
    inputs = [input_sizes.padded(height, width) for height, width in content.max(axis=1).tolist()]
    padded = sum(height * width for height, width in inputs) * batches.shape[1]
    return padded / int(content.prod(axis=-1).sum())


def _shards_per_step(plan: Plan, order: Int64[np.ndarray, "steps samples"]) -> float:
    shards = np.sort(plan.locate(order)[0], axis=1)
    return float(1 + (np.diff(shards, axis=1) != 0).sum(axis=1).mean())
