"""A contact sheet of shards: what the file says, what the network receives, and what it is told to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import detectors
from data_shards.building.build import sample_key
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, Manifest, load_manifest
from data_shards.loading.augment import augment, draw
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import Slot
from data_shards.loading.random_draws import padded_size
from data_shards.order.plan import make_plan
from data_shards.reading.samples import Samples
from data_shards.reading.shards import Shards
from detectors import Preprocessing
from pipelines.errors import ConfigError
from pipelines.pictures.drawing import Panel, class_color, save_page, write_text
from pipelines.recipes.settings import Recipe

_MARGIN, _GAP, _HEADER, _CAPTION = 24, 12, 64, 34
_BACKGROUND, _INK, _PALE_INK = (250, 250, 248), (32, 32, 36), (120, 120, 126)


@dataclass(frozen=True)
class _Row:
    """One sample, in both frames."""

    key: str
    photograph: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    joints: NDArray[np.float32] | None
    """(objects, joints, 3) x, y and visibility; None where the data has none."""
    received: NDArray[np.uint8]
    """(height, width, 3) RGB of the input, the normalisation taken back."""
    input_boxes: NDArray[np.float32]
    input_labels: NDArray[np.int64]
    input_joints: NDArray[np.float32] | None
    heatmap: NDArray[np.float32] | None
    """(classes, height, width) in cells; None where the detector's targets have none."""


def write_contact_sheet(
    location: str,
    recipe: Recipe,
    output: Path,
    *,
    samples: int = 8,
    keys: Sequence[str] = (),
    epoch: int = 0,
) -> list[str]:
    """Draw some samples of a split, each as a row of three panels, two where targets have no heatmap, into a PNG.

    Args:
        location: where the manifest lies.
        recipe: its seed, input size, augmentation and detector are those of the training that is shown.
        output: the PNG.
        samples: how many, the first of the epoch's order; not used with `keys`.
        keys: image ids to draw instead.
        epoch: whose augmentation is shown, counted from 0.

    Returns:
        The keys that were drawn, from top to bottom.

    Raises:
        DataError: there are no such shards or samples.
        ConfigError: the PNG cannot be written, or a number is out of range.
        DetectorError: the recipe's detector cannot be built for the classes.
    """
    if epoch < 0:
        raise ConfigError(f"--epoch is {epoch}; epochs are counted from 0.")
    manifest = load_manifest(location)
    data = recipe.data
    shards = Shards(data.store(location), manifest, data.cache_folder or None, cache_bytes=data.cache_bytes)
    sample_ids = _find(shards, keys) if keys else _first(manifest, recipe, samples, epoch)
    rows = _rows(shards, manifest, recipe, sample_ids, epoch)
    shards.close()
    header = f"{location}   recipe {recipe.recipe}, epoch {epoch}, seed {recipe.seed}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_page(_page(rows, manifest.classes, header), output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}. Choose another --output.") from error
    return [row.key for row in rows]


def _first(manifest: Manifest, recipe: Recipe, samples: int, epoch: int) -> NDArray[np.int64]:
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it must be 1 or more.")
    plan = make_plan(manifest, seed=recipe.seed, global_batch_size=min(samples, manifest.num_samples))
    return plan.batch(epoch, 0)


def _find(shards: Shards, keys: Sequence[str]) -> NDArray[np.int64]:
    wanted: dict[int, int] = {}
    for place, text in enumerate(keys):
        if not text.isdigit():
            raise DataError(f"--key is {text!r}; a sample's key is its image id, such as {sample_key(139)}.")
        wanted[int(text)] = place
    found: dict[int, int] = {}
    first = 0
    for shard, record in enumerate(shards.manifest.shards):
        for row, image_id in enumerate(shards.index(shard).image_ids.tolist()):
            if image_id in wanted:
                found[image_id] = first + row
        first += record.samples
    if missing := [image_id for image_id in wanted if image_id not in found]:
        raise DataError(
            f"{shards.store.location} has no sample {sample_key(missing[0])}; `aweigh shards examine` prints keys."
        )
    return np.array([found[image_id] for image_id in wanted], dtype=np.int64)


def _rows(shards: Shards, manifest: Manifest, recipe: Recipe, sample_ids: NDArray[np.int64], epoch: int) -> list[_Row]:
    plan = make_plan(manifest, seed=recipe.seed, global_batch_size=1)
    places = [(int(shard), int(row)) for shard, row in zip(*plan.locate(sample_ids), strict=True)]
    sizes = np.array([shards.size(*place) for place in places])
    draws = draw(recipe.augmentation, recipe.seed, epoch, sample_ids, sizes)
    with torch.random.fork_rng(devices=[]):
        detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    whole = recipe.augmentation.geometry == "shorter_side"
    divisor = detector.preprocessing.size_divisor
    input_size = padded_size(draws.content_sizes, divisor) if whole else recipe.data.input_size
    slot = Slot.empty(
        sample_ids, input_size, recipe.data.max_objects, augmented=True, manifest=manifest, whole_images=whole
    )
    slot.take(draws)
    images = Samples(shards, undecodable=recipe.data.undecodable)
    for row, (shard, place) in enumerate(places):
        slot.fill(row, images, shard, place, draws.matrix(row, input_size), recipe.data.box_rules)
    batch = Batch.over(slot, epoch, 0)
    photographs = [_photograph(images, shard, place) for shard, place in places]
    received = received_pixels(augment(batch, detector.preprocessing), detector.preprocessing)
    heatmaps = _heatmaps(detector.encode(batch.boxes, batch.labels, input_size, **batch.extra))
    rows = []
    for row, (shard, place) in enumerate(places):
        index = shards.index(shard)
        first, last = index.row_splits[place : place + 2]
        real = batch.labels[row] >= 0
        is_class = index.labels[first:last] >= 0  # what is to be ignored has no name to draw
        rows.append(
            _Row(
                key=sample_key(int(index.image_ids[place])),
                photograph=photographs[row],
                boxes=index.boxes[first:last][is_class],
                labels=index.labels[first:last][is_class],
                iscrowd=index.iscrowd[first:last][is_class],
                joints=None if index.keypoints is None else index.keypoints[first:last][is_class],
                received=received[row],
                input_boxes=batch.boxes[row][real].numpy(),
                input_labels=batch.labels[row][real].numpy(),
                input_joints=None if batch.keypoints is None else batch.keypoints[row][real].numpy(),
                heatmap=None if heatmaps is None else heatmaps[row],
            )
        )
    return rows


def _photograph(images: Samples, shard: int, place: int) -> NDArray[np.uint8]:
    """The upright image, or the gray that stands in its place."""
    image = images.image(shard, place)
    if image is None:
        return np.full((*images.shards.size(shard, place), 3), 128, dtype=np.uint8)
    return image.copy()  # the next one comes into the same memory


def received_pixels(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The normalised input `(batch, 3, height, width)` as RGB pixels `(batch, height, width, 3)`."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = ((images * std + mean) / preprocessing.scale).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels if preprocessing.channel_order == "rgb" else pixels.flip(1)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _heatmaps(targets: Any) -> NDArray[np.float32] | None:
    heatmap = getattr(targets, "heatmap", None)
    return heatmap.float().numpy() if isinstance(heatmap, Tensor) and heatmap.ndim == 4 else None


def _page(rows: Sequence[_Row], classes: Sequence[CocoClass], header: str) -> NDArray[np.uint8]:
    panels = [_panels(row, classes) for row in rows]
    columns = [max(row[column][0].shape[1] for row in panels) for column in range(len(panels[0]))]
    strips = [_strip(row, columns) for row in panels]
    width = 2 * _MARGIN + max(900, *(strip.shape[1] for strip in strips))
    page = np.full((_HEADER + sum(strip.shape[0] for strip in strips) + _MARGIN, width, 3), _BACKGROUND, dtype=np.uint8)
    write_text(page, header, (_MARGIN, 34), _INK, 20, weight=600)
    notes = ["left: the file, crowds hatched", "middle: what the network receives", "right: the heatmap it should give"]
    if len(columns) == 2:  # a detector without heatmaps
        notes = [notes[0], "right: what the network receives"]
    note = "     ".join(notes)
    write_text(page, note, (_MARGIN, 54), _PALE_INK, 13)
    top = _HEADER
    for strip in strips:
        page[top : top + strip.shape[0], _MARGIN : _MARGIN + strip.shape[1]] = strip
        top += strip.shape[0]
    return page


def _panels(row: _Row, classes: Sequence[CocoClass]) -> list[tuple[NDArray[np.uint8], str]]:
    """The panels of one sample with their captions; every row of a page has as many."""
    file, network = Panel(row.photograph), Panel(row.received)
    for box, label, crowd in zip(row.boxes, row.labels, row.iscrowd, strict=True):
        file.add(box, classes[int(label)].name, class_color(int(label)), hatched=bool(crowd))
    for panel, joints, labels in ((file, row.joints, row.labels), (network, row.input_joints, row.input_labels)):
        for points, label in zip(joints if joints is not None else (), labels, strict=joints is not None):
            panel.add_joints(points, classes[int(label)].skeleton, class_color(int(label)))
    height, width = row.received.shape[:2]
    inside = 0
    for box, label in zip(row.input_boxes, row.input_labels, strict=True):
        # A crop may leave an object out altogether.
        if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0:
            network.add(box, classes[int(label)].name, class_color(int(label)))
            inside += 1
    size = f"{row.photograph.shape[1]} x {row.photograph.shape[0]}"
    panels = [
        (file.drawn(), f"{row.key}   {size}   {counted(len(row.boxes), 'box')}"),
        (network.drawn(), f"input {width} x {height}   {inside} of {len(row.input_boxes)} boxes in it"),
    ]
    if row.heatmap is not None:
        cells = row.heatmap.shape[1:]
        centres = int((row.heatmap == 1).sum())
        caption = f"heatmap {cells[1]} x {cells[0]} cells   {counted(centres, 'centre')}"
        panels.append((Panel(heatmap_over(row.received, row.heatmap)).canvas, caption))
    return panels


def _strip(panels: Sequence[tuple[NDArray[np.uint8], str]], columns: Sequence[int]) -> NDArray[np.uint8]:
    tallest = max(panel.shape[0] for panel, _ in panels)
    strip = np.full((tallest + _CAPTION, sum(columns) + _GAP * len(columns), 3), _BACKGROUND, dtype=np.uint8)
    left = 0
    for (panel, caption), column in zip(panels, columns, strict=True):
        strip[: panel.shape[0], left : left + panel.shape[1]] = panel
        write_text(strip, caption, (left, tallest + 19), _INK, 13)
        left += column + _GAP
    return strip


def heatmap_over(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The input in dim gray with every class's heatmap over it in its colour, a cell a square."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] * np.ones(3, dtype=np.float32) * 0.45
    size = (image.shape[1], image.shape[0])
    strongest = heatmap.max(axis=0)
    colors = np.array([class_color(label) for label in range(len(heatmap))], dtype=np.float32)[heatmap.argmax(axis=0)]
    strength = cv2.resize(strongest, size, interpolation=cv2.INTER_NEAREST)[..., None]
    color = cv2.resize(colors, size, interpolation=cv2.INTER_NEAREST)
    # Peaks are paler, so that neighbouring centres of one class can be told apart.
    color = color + 0.6 * (255 - color) * np.clip((strength - 0.8) / 0.2, 0, 1)
    return (gray * (1 - strength) + color * strength).round().clip(0, 255).astype(np.uint8)
