"""Folders of annotated photographs, in the layouts of the tools that export them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data_shards.samples import jpeg, photo

CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Photo:
    """A photograph and its boxes: class, x1, y1, x2, y2 in pixels."""

    name: str
    data: bytes
    boxes: tuple[tuple[int, int, int, int, int], ...] = ((0, 4, 4, 24, 28), (1, 30, 10, 60, 40))
    width: int = 64
    height: int = 48


def photos(count: int, first: int = 0, name: str = "photo {}.jpg") -> list[Photo]:
    """Photographs that do not resemble one another."""
    return [Photo(name.format(first + number), jpeg(photo(first + number))) for number in range(count)]


def document(
    images: Sequence[Photo], prefix: str = "", classes: Sequence[str] = CLASSES, first_id: int = 1
) -> dict[str, Any]:
    """A COCO document of them."""
    annotations = [
        {
            "image_id": row,
            "category_id": first_id + label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
            "area": 1.0,
        }
        for row, image in enumerate(images, start=1)
        for label, x1, y1, x2, y2 in image.boxes
    ]
    return {
        "images": [
            {"id": row, "file_name": f"{prefix}{image.name}", "width": image.width, "height": image.height}
            for row, image in enumerate(images, start=1)
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [{"id": first_id + label, "name": name} for label, name in enumerate(classes)],
    }


def put(folder: Path, images: Sequence[Photo]) -> Path:
    """Write the files of photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image.name).write_bytes(image.data)
    return folder


def put_labels(folder: Path, images: Sequence[Photo]) -> None:
    """Write YOLO's text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        lines = [
            f"{label} {(x1 + x2) / 2 / image.width} {(y1 + y2) / 2 / image.height} "
            f"{(x2 - x1) / image.width} {(y2 - y1) / image.height}"
            for label, x1, y1, x2, y2 in image.boxes
        ]
        (folder / image.name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def put_xml(folder: Path, images: Sequence[Photo], database: str = "Unknown") -> None:
    """Write VOC's .xml files."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for label, x1, y1, x2, y2 in image.boxes
        )
        (folder / image.name).with_suffix(".xml").write_text(
            f"<annotation><filename>{image.name}</filename><source><database>{database}</database></source>"
            f"<size><width>{image.width}</width><height>{image.height}</height></size>{objects}</annotation>"
        )


def put_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def roboflow_yolo(root: Path, splits: Mapping[str, Sequence[Photo]]) -> Path:
    """Roboflow's YOLO export, whose data.yaml points one folder too high."""
    for split, images in splits.items():
        put(root / split / "images", images)
        put_labels(root / split / "labels", images)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    )
    return root


def roboflow_coco(root: Path, splits: Mapping[str, Sequence[Photo]]) -> Path:
    """Roboflow's COCO export, with the project itself as category 0."""
    for split, images in splits.items():
        put(root / split, images)
        content = document(images)
        content["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            *({**item, "supercategory": "pets"} for item in content["categories"]),
        ]
        put_json(root / split / "_annotations.coco.json", content)
    return root
