"""A handful of real photographs' worth of shards, built once a session."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_shards.build import build_shards


def write_coco(folder: Path, num_images: int, classes: dict[int, str], seed: int = 0) -> tuple[Path, Path]:
    """Write noise images with one bright square each; returns the annotations' path and the images' folder."""
    generator = np.random.default_rng(seed)
    images = folder / "images"
    images.mkdir(parents=True)
    entries, annotations = [], []
    for image_id in range(1, num_images + 1):
        pixels = generator.integers(0, 90, (64, 80, 3), dtype=np.uint8)
        left, top = (int(value) for value in generator.integers(4, 36, 2))
        pixels[top : top + 20, left : left + 24] = 255
        cv2.imwrite(str(images / f"{image_id}.jpg"), pixels)
        entries.append({"id": image_id, "file_name": f"{image_id}.jpg", "width": 80, "height": 64})
        category = list(classes)[image_id % len(classes)]
        annotations.append(
            {
                "id": image_id,
                "image_id": image_id,
                "category_id": category,
                "bbox": [left, top, 24, 20],
                "area": 480,
                "iscrowd": 0,
            }
        )
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return path, images


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A location with splits `train` (12 images), `val` (6) and `other` (6, with another class list)."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count, classes in (
        ("train", 12, {3: "square", 7: "tile"}),
        ("val", 6, {3: "square", 7: "tile"}),
        ("other", 6, {3: "square", 8: "disc"}),
    ):
        annotations, images = write_coco(folder / split, count, classes)
        build_shards(annotations, images, str(folder / "shards"), split=split)
    return folder / "shards"
