"""A contact sheet of shards: the labels of the file, the input of the network, and the heatmap it should answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import detectors
from data_shards.checking.find_samples import find_samples
from data_shards.counting import counted
from data_shards.format.manifest import CocoClass, Manifest, sample_key
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.loading.random_draws import draw
from data_shards.loading.row_filling import fill
from data_shards.order.plan import make_plan
from data_shards.reading.samples import Samples, ShardSamples
from data_shards.reading.shards import Shards
from detectors import Preprocessing
from pipelines.errors import ConfigError
from pipelines.pictures.drawing import (
    Panel,
    check_picture_path,
    class_color,
    page_of_rows,
    row_of_panels,
    save_image,
)
from pipelines.recipes.settings import Recipe

# In pixels of the page.
_COLUMN_GAP, _ROW_GAP = 12, 4
_MINIMUM_WIDTH = 900  # the header needs it


@dataclass(frozen=True)
class _Row:
    """One sample, in the image frame and in the input frame."""

    key: str
    file_name: str
    """As the annotations have it."""
    photograph: NDArray[np.uint8]
    """(height, width, 3) RGB of the upright image."""
    boxes: NDArray[np.float32]
    """(objects, 4) x1, y1, x2, y2 in the image frame."""
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    joints: NDArray[np.float32] | None
    """(objects, joints, 3) x, y and visibility; None if the data has none."""
    received: NDArray[np.uint8]
    """(height, width, 3) RGB of the input, with the normalisation undone."""
    input_boxes: NDArray[np.float32]
    """(objects in the input, 4) x1, y1, x2, y2 in the input frame, unclipped."""
    input_labels: NDArray[np.int64]
    input_joints: NDArray[np.float32] | None
    heatmaps: dict[str, NDArray[np.float32]]
    """By their names, (planes, height, width) in cells; empty if the detector's targets have none."""


def write_contact_sheet(
    location: str,
    recipe: Recipe,
    output: Path,
    *,
    samples: int = 8,
    keys: Sequence[str] = (),
    epoch: int = 0,
) -> list[str]:
    """Draw samples of a split, each as a row of panels (two, and one for each heatmap), and write a PNG or JPEG.

    Args:
        location: `LOCATION/SPLIT` of the shards.
        recipe: the training to show: seed, input size, augmentation and detector.
        output: the file to write; its suffix decides the format.
        samples: number of samples, taken from the beginning of the epoch's order; ignored if there are `keys`.
        keys: samples to draw instead, by key, image id or file name.
        epoch: its augmentation is shown; counted from 0.

    Returns:
        The keys of the samples, from top to bottom.

    Raises:
        DataError: there are no such shards or samples.
        ConfigError: the output cannot be written, or a number is out of range.
        DetectorError: the recipe's detector cannot be built for the classes.
    """
    check_picture_path(output)
    if epoch < 0:
        raise ConfigError(f"--epoch is {epoch}; epochs are counted from 0.")
    split = recipe.data.split(location)
    manifest, shards = split.manifest, split.shards()
    sample_ids = find_samples(shards, keys) if keys else _first(manifest, recipe, samples, epoch)
    rows = _rows(shards, manifest, recipe, sample_ids, epoch)
    shards.close()
    header = f"{location}   recipe {recipe.recipe}, epoch {epoch}, seed {recipe.seed}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_image(_page(rows, manifest.classes, header), output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}. Choose another --output.") from error
    return [row.key for row in rows]


def _first(manifest: Manifest, recipe: Recipe, samples: int, epoch: int) -> NDArray[np.int64]:
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it must be 1 or more.")
    plan = make_plan(manifest, seed=recipe.seed, global_batch_size=min(samples, manifest.num_samples))
    return plan.batch(epoch, 0)


def _rows(shards: Shards, manifest: Manifest, recipe: Recipe, sample_ids: NDArray[np.int64], epoch: int) -> list[_Row]:
    """Read the samples and assemble their batch, as the loader of a training does."""
    images = ShardSamples(shards, undecodable=recipe.data.undecodable)
    sizes = np.array([images.size(number) for number in sample_ids.tolist()])
    draws = draw(recipe.augmentation, recipe.seed, epoch, sample_ids, sizes)
    with torch.random.fork_rng(devices=[]):
        detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    whole = bool(draws.content_sizes.any())
    input_size = recipe.data.input_size
    if whole:
        input_size = detector.sizes.padded(*draws.content_sizes.max(axis=0).tolist())
    arrays = BatchArrays.empty(
        sample_ids, input_size, recipe.data.max_objects, augmented=True, manifest=manifest, whole_images=whole
    )
    arrays.take(draws)
    for row, number in enumerate(sample_ids.tolist()):
        fill(arrays, row, images, number, draws.matrix(row, input_size), recipe.data.box_rules)
    batch = Batch.over(arrays, epoch, 0)
    photographs = [_photograph(images, number) for number in sample_ids.tolist()]
    received = received_pixels(augment(batch, detector.preprocessing), detector.preprocessing)
    heatmaps = detector.heatmaps(detector.encode(batch.boxes, batch.labels, input_size, **batch.extra))
    rows = []
    for row, number in enumerate(sample_ids.tolist()):
        known = images.labels(number)
        real = batch.labels[row] >= 0
        is_class = known.labels >= 0  # an ignored object has no class name to draw
        rows.append(
            _Row(
                key=sample_key(known.image_id),
                file_name=shards.read_json(*images.locate(number))["file_name"],
                photograph=photographs[row],
                boxes=known.boxes[is_class],
                labels=known.labels[is_class],
                iscrowd=known.iscrowd[is_class],
                joints=None if known.keypoints is None else known.keypoints[is_class],
                received=received[row],
                input_boxes=batch.boxes[row][real].numpy(),
                input_labels=batch.labels[row][real].numpy(),
                input_joints=None if batch.keypoints is None else batch.keypoints[row][real].numpy(),
                heatmaps={name: maps[row].float().numpy() for name, maps in heatmaps.items()},
            )
        )
    return rows


def _photograph(images: Samples, number: int) -> NDArray[np.uint8]:
    """Return the upright image, or plain gray if it does not decode."""
    image = images.image(number)
    if image is None:
        return np.full((*images.size(number), 3), 128, dtype=np.uint8)
    return image.copy()  # the next image is decoded into the same memory


def received_pixels(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Undo the normalisation: an input `(batch, 3, height, width)` as RGB pixels `(batch, height, width, 3)`."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = ((images * std + mean) / preprocessing.scale).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels if preprocessing.channel_order == "rgb" else pixels.flip(1)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _page(rows: Sequence[_Row], classes: Sequence[CocoClass], header: str) -> NDArray[np.uint8]:
    panels = [_panels(row, classes) for row in rows]
    # One width for each column of the page, so that inputs are below inputs whatever the shapes of the photographs.
    widths = [max(row[column][0].shape[1] for row in panels) for column in range(len(panels[0]))]
    strips = [row_of_panels(row, gap=_COLUMN_GAP, widths=widths) for row in panels]
    notes = [
        "left: the file, crowds hatched",
        "middle: the network's input",
        "right: the heatmaps that it should answer",
    ]
    if len(widths) == 2:  # a detector without heatmaps
        notes = [notes[0], "right: the network's input"]
    return page_of_rows(strips, header, "     ".join(notes), gap=_ROW_GAP, minimum_width=_MINIMUM_WIDTH)


def _panels(row: _Row, classes: Sequence[CocoClass]) -> list[tuple[NDArray[np.uint8], str]]:
    """Draw the panels of one sample, with their captions; every row of a page has the same number."""
    file, network = Panel(row.photograph), Panel(row.received)
    for box, label, crowd in zip(row.boxes, row.labels, row.iscrowd, strict=True):
        file.add(box, classes[int(label)].name, class_color(int(label)), hatched=bool(crowd))
    for panel, joints, labels in ((file, row.joints, row.labels), (network, row.input_joints, row.input_labels)):
        for points, label in zip(joints if joints is not None else (), labels, strict=joints is not None):
            panel.add_joints(points, classes[int(label)].skeleton, class_color(int(label)))
    height, width = row.received.shape[:2]
    inside = 0
    for box, label in zip(row.input_boxes, row.input_labels, strict=True):
        # Boxes are not clipped, and a crop may leave an object out altogether.
        if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0:
            network.add(box, classes[int(label)].name, class_color(int(label)))
            inside += 1
    size = f"{row.photograph.shape[1]} x {row.photograph.shape[0]}"
    panels = [
        (file.drawn(), f"{row.file_name}   {row.key}   {size}   {counted(len(row.boxes), 'box')}"),
        (network.drawn(), f"input {width} x {height}   {inside} of {counted(len(row.input_boxes), 'box')} inside"),
    ]
    for name, heatmap in row.heatmaps.items():
        cells = heatmap.shape[1:]
        caption = f"{name} {cells[1]} x {cells[0]} cells   {counted(int((heatmap == 1).sum()), 'peak')}"
        panels.append((Panel(heatmap_over(row.received, heatmap)).canvas, caption))
    return panels


def heatmap_over(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw heatmaps over the dim gray input, each class in its colour, each cell as a square.

    Args:
        image: (height, width, 3) RGB.
        heatmap: (classes, rows, columns) in [0, 1].
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] * np.ones(3, dtype=np.float32) * 0.45
    size = (image.shape[1], image.shape[0])
    strongest = heatmap.max(axis=0)
    colors = np.array([class_color(label) for label in range(len(heatmap))], dtype=np.float32)[heatmap.argmax(axis=0)]
    strength = cv2.resize(strongest, size, interpolation=cv2.INTER_NEAREST)[..., None]
    color = cv2.resize(colors, size, interpolation=cv2.INTER_NEAREST)
    # Peaks are paler, so that neighbouring centres of one class can be told apart.
    color = color + 0.6 * (255 - color) * np.clip((strength - 0.8) / 0.2, 0, 1)
    return (gray * (1 - strength) + color * strength).round().clip(0, 255).astype(np.uint8)
