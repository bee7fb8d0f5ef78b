"""A small data set to try everything with: still lifes with COCO annotations, drawn on the spot.

It has the quirks of real files: category and image ids with gaps, several image sizes, large and small objects that
overlap or leave the frame, images without objects, a crowd, and grayscale JPEGs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Float32
from numpy.typing import NDArray

from data_shards.demo.rendering import Generator, Lamp
from data_shards.demo.scenery import photograph, put, surface
from data_shards.demo.things import Drawing, book, leaf, lemon, mug, orange, pencil, plate
from data_shards.errors import DataError

Mask = Bool[NDArray[np.bool_], "height width"]

DEFAULT_TRAIN_IMAGES = 240
DEFAULT_VAL_IMAGES = 60


@dataclass(frozen=True)
class DemoClass:
    """One class of the set: its COCO category and its drawing."""

    id: int
    name: str
    supercategory: str
    draw: Drawing
    sizes: tuple[int, int]
    """Smallest and largest extent, in pixels."""


DEMO_CLASSES = (
    DemoClass(1, "orange", "fruit", orange, (24, 132)),
    DemoClass(3, "lemon", "fruit", lemon, (28, 140)),
    DemoClass(7, "mug", "kitchen", mug, (34, 146)),
    DemoClass(12, "book", "indoor", book, (40, 150)),
    DemoClass(18, "leaf", "plant", leaf, (34, 140)),
)

_SIZES = ((240, 320), (240, 320), (240, 320), (320, 240), (256, 256))  # height, width
_MOST_OBJECTS = 6
# The special images of every forty. All are among the first six, so that the smallest set has one of each kind.
_EMPTY, _GRAY, _CROWD = (5, 25), (2,), (3,)


@dataclass(frozen=True)
class DemoDataset:
    """The files of a written set."""

    train_annotations: Path
    val_annotations: Path
    images: Path
    """The folder with the images of both splits."""


def write_demo(
    folder: str | Path,
    *,
    train_images: int = DEFAULT_TRAIN_IMAGES,
    val_images: int = DEFAULT_VAL_IMAGES,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DemoDataset:
    """Draw the set into a folder; the same arguments always write the same bytes.

    Args:
        folder: created if it does not exist. Gets `annotations/instances_train.json`, `annotations/instances_val.json`
            and `images/`.
        train_images: number of images to train on.
        val_images: number of images to evaluate on; they differ from the others.
        seed: a different seed draws different images.
        progress: called after each image with the number of images done and of all images.

    Raises:
        DataError: a number of images is below 1, or the folder cannot be written.
    """
    for name, count in [("train_images", train_images), ("val_images", val_images)]:
        if count < 1:
            raise DataError(f"{name} is {count}; set it to 1 or more.")
    written = DemoDataset(
        train_annotations=Path(folder) / "annotations" / "instances_train.json",
        val_annotations=Path(folder) / "annotations" / "instances_val.json",
        images=Path(folder) / "images",
    )
    splits = (("train", train_images, written.train_annotations), ("val", val_images, written.val_annotations))
    try:
        for directory in (written.images, written.train_annotations.parent):
            directory.mkdir(parents=True, exist_ok=True)
        done = 0
        for split, (name, count, path) in enumerate(splits):
            document = _document(name)
            for number in range(count):
                _add_picture(document, written.images, seed, split, number)
                done += 1
                progress(done, train_images + val_images)
            path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write the demonstration set to {folder}: {error}. Choose another folder.") from error
    return written


def _add_picture(document: dict[str, Any], images: Path, seed: int, split: int, number: int) -> None:
    """Draw one image, write its file and add it to the annotations."""
    # Seeded one by one, so that asking for more images does not change the first ones.
    picture = _Picture.take(np.random.Generator(np.random.PCG64([seed, split, number])), number)
    image_id = 100_000 * split + 139 + 17 * number + number % 5
    file_name = f"{image_id:012d}.jpg"
    (images / file_name).write_bytes(picture.jpeg)
    height, width = picture.size
    document["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1})
    for annotation in picture.annotations:
        identity = {"id": 1_000_000 * split + len(document["annotations"]) + 1, "image_id": image_id}
        document["annotations"].append(identity | annotation)


def _document(split: str) -> dict[str, Any]:
    return {
        "info": {"description": f"aweigh demonstration set, {split}: still lifes drawn by a program"},
        "licenses": [{"id": 1, "name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [
            {"id": item.id, "name": item.name, "supercategory": item.supercategory} for item in DEMO_CLASSES
        ],
        "images": [],
        "annotations": [],
    }


@dataclass(frozen=True)
class _Picture:
    """One photograph and its COCO annotations, without ids."""

    jpeg: bytes
    size: tuple[int, int]
    annotations: list[dict[str, Any]]

    @classmethod
    def take(cls, random: Generator, number: int) -> "_Picture":
        height, width = _SIZES[random.integers(len(_SIZES))]
        lamp = Lamp.draw(random)
        scene = surface(random, height, width, lamp)
        for drawing, chance, sizes in ((plate, 0.2, (110, 190)), (pencil, 0.25, (70, 150))):
            if random.random() < chance:
                size = random.uniform(*sizes)
                x, y = random.uniform(0.1, 0.9) * width, random.uniform(0.1, 0.9) * height
                put(scene, drawing(random, size, lamp), x, y, lamp)

        in_forty = number % 40
        pile = _pile(random, height, width) if in_forty in _CROWD else []
        places = [] if in_forty in _EMPTY else _arrange(random, height, width, pile)
        coverages = [
            put(scene, place.item.draw(random, place.size, lamp), place.x, place.y, lamp) for place in [*pile, *places]
        ]
        visible = _visible(coverages)
        annotations = [
            annotation
            for place, mask in zip(places, visible[len(pile) :], strict=True)
            if (annotation := _annotation(place.item, mask)) is not None
        ]
        if pile:
            annotations.append(_crowd_annotation(pile[0].item, np.any(visible[: len(pile)], axis=0)))
        image = photograph(random, scene)
        quality = int(random.integers(82, 96))
        if in_forty in _GRAY:
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
            jpeg = simplejpeg.encode_jpeg(gray, quality, "GRAY", "Gray")
        else:
            jpeg = simplejpeg.encode_jpeg(image, quality, "RGB", "420" if random.random() < 0.5 else "444")
        return cls(jpeg, (height, width), annotations)


@dataclass(frozen=True)
class _Place:
    item: DemoClass
    size: float
    x: float
    y: float


def _arrange(random: Generator, height: int, width: int, pile: list[_Place]) -> list[_Place]:
    """Place one to six things that may overlap but never hide one another; the farthest come first."""
    wanted = int(random.integers(1, _MOST_OBJECTS + 1))
    places: list[_Place] = []
    for _ in range(12 * wanted):
        item = DEMO_CLASSES[random.integers(len(DEMO_CLASSES))]
        # More large than small, as in photographs that people take of things.
        least, most = item.sizes
        size = float(least * (most / least) ** random.beta(2, 1))
        margin = 0.3 * size
        x, y = random.uniform(margin, width - margin), random.uniform(margin, height - margin)
        place = _Place(item, size, x, y)
        if all(_apart(place, other) for other in [*pile, *places]):
            places.append(place)
        if len(places) == wanted:
            break
    return sorted(places, key=lambda place: place.y)


def _apart(one: _Place, other: _Place) -> bool:
    distance = np.hypot(one.x - other.x, one.y - other.y)
    return bool(distance > 0.36 * (one.size + other.size) and distance > 0.46 * max(one.size, other.size))


def _pile(random: Generator, height: int, width: int) -> list[_Place]:
    """Place a heap of one fruit, which COCO would annotate as a crowd."""
    item = DEMO_CLASSES[random.integers(2)]
    x, y = random.uniform(0.25, 0.75) * width, random.uniform(0.25, 0.75) * height
    places = [
        _Place(item, random.uniform(22, 30), x + random.normal(0, 24), y + random.normal(0, 14))
        for _ in range(random.integers(10, 15))
    ]
    return sorted(places, key=lambda place: place.y)


def _visible(coverages: list[Float32[NDArray[np.float32], "height width"]]) -> list[Mask]:
    """Return the visible part of each thing; later things hide earlier ones."""
    masks: list[Mask] = []
    covered: Mask | None = None
    for coverage in reversed(coverages):
        mask = coverage > 0.5
        masks.append(mask if covered is None else mask & ~covered)
        covered = mask if covered is None else mask | covered
    return masks[::-1]


def _annotation(item: DemoClass, mask: Mask) -> dict[str, Any] | None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [cv2.approxPolyDP(contour, 0.7, True).reshape(-1) for contour in contours]
    polygons = [[float(value) for value in outline] for outline in outlines if len(outline) >= 6]
    if not polygons:
        return None
    return {
        "category_id": item.id,
        "bbox": _box(mask),
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": polygons,
    }


def _crowd_annotation(item: DemoClass, mask: Mask) -> dict[str, Any]:
    # COCO's run lengths run down the columns and begin with the background.
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {
        "category_id": item.id,
        "bbox": _box(mask),
        "area": float(mask.sum()),
        "iscrowd": 1,
        "segmentation": {"counts": counts.tolist(), "size": list(mask.shape)},
    }


def _box(mask: Mask) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1] + 1) - x, float(rows[-1] + 1) - y]
