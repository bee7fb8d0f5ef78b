"""Images, VOC files and the boxes of COCO files, for tests of the imports."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import cv2

from tests.data_shards.samples import jpeg, photo

Box = tuple[str, float, float, float, float]


def write_images(folder: Path, names: list[str], height: int = 40, width: int = 80) -> Path:
    """Write a drawn JPEG or PNG under each name; return the folder."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = photo(number, height, width)
        data = jpeg(image) if not name.endswith(".png") else cv2.imencode(".png", image)[1].tobytes()
        (folder / name).write_bytes(data)
    return folder


def write_voc(folder: Path, name: str, boxes: list[Box], extra: str = "", size: str = "") -> None:
    """Write the XML file of one image, 80 x 40 pixels unless `size` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{escape(label)}</name>{extra}<bndbox><xmin>{x1!r}</xmin><ymin>{y1!r}</ymin>"
        f"<xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    size = size or "<size><width>80</width><height>40</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
    (folder / name).with_suffix(".xml").write_text(text)


def boxes_of(path: Path) -> dict[str, list[Box]]:
    """Return the class name and corners of every box in a COCO file, by image file name."""
    document = json.loads(path.read_text())
    names = {item["id"]: item["name"] for item in document["categories"]}
    files = {item["id"]: item["file_name"] for item in document["images"]}
    found: dict[str, list[Box]] = {name: [] for name in files.values()}
    for item in document["annotations"]:
        x, y, width, height = item["bbox"]
        assert item["area"] == width * height
        found[files[item["image_id"]]].append((names[item["category_id"]], x, y, x + width, y + height))
    return found
