"""Image files of every kind that building accepts, and shards with the same bytes."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_shards.building.build import build_shards
from data_shards.reading.decode import decode_jpeg
from tests.data_shards.building.test_build import with_orientation
from tests.data_shards.reading.test_decode import turned_png
from tests.data_shards.samples import CATEGORIES, jpeg, photo


def encoded_pictures() -> dict[str, bytes]:
    """JPEGs and PNGs by file name, some of one pixel or much longer than wide."""
    image = photo(1, 40, 56)
    cmyk = io.BytesIO()
    Image.fromarray(255 - np.dstack([image, image[..., :1]]), mode="CMYK").save(cmyk, "JPEG", quality=95)
    deep = photo(2, 48, 64).astype(np.uint16) * 256 + 77
    return {
        "plain.jpg": jpeg(photo(3)),
        "gray.jpg": jpeg(photo(4)[..., 0]),
        "turned.jpg": with_orientation(jpeg(photo(5, 64, 48)), 6),
        "mirrored.jpg": with_orientation(jpeg(photo(6)), 4),
        "cmyk.jpg": cmyk.getvalue(),
        "cut header.jpg": jpeg(photo(7))[:2] + b"\xff\xe0\x00\x04ab" + jpeg(photo(7))[2:],
        "plain.png": _png(photo(8)),
        "alpha.png": _png(np.dstack([photo(9), photo(10)[..., :1]])),
        "deep.png": _png(deep),
        "turned.png": turned_png(6),
        "point.png": _png(photo(11, 8, 8)[:1, :1]),
        "long.png": _png(photo(12, 8, 300)[:3]),
        "tall.jpg": jpeg(photo(13, 250, 20)),
    }


def write_pictures(folder: Path) -> tuple[list[Path], str]:
    """Write the pictures and shards of them; give the files in the order of the samples, and the shards' location."""
    images = folder / "images"
    images.mkdir(parents=True)
    entries = []
    for number, (name, data) in enumerate(encoded_pictures().items(), start=1):
        (images / name).write_bytes(data)
        height, width = decode_jpeg(data).shape[:2]
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps({"images": entries, "annotations": [], "categories": CATEGORIES}))
    location = build_shards(annotations, images, str(folder / "shards"), split="all").location
    return [images / name for name in _order(location, [str(entry["file_name"]) for entry in entries])], location


def _order(location: str, names: list[str]) -> list[str]:
    from data_shards.reading.split import open_split

    shards = open_split(location).shards()
    try:
        ids = [image_id for shard in range(len(shards.manifest.shards)) for image_id in shards.index(shard).image_ids]
    finally:
        shards.close()
    return [names[image_id - 1] for image_id in ids]


def _png(image: np.ndarray) -> bytes:
    swapped = image[..., [2, 1, 0, *range(3, image.shape[2])]]
    return cv2.imencode(".png", swapped)[1].tobytes()
